"""The frontier of a comparison, from seeds with chosen numbers."""

import json

import numpy as np
import pytest

from spin_core.comparison import compare, page
from spin_core.comparison.compare import Table, table
from spin_core.comparison.frontier import cells
from spin_core.leaderboard.frontier import Sweep
from tests.support.lineages.small_lineage import build_lineage
from tests.support.lineages.small_sweeps import build_swept_lineage


def compared(runs, *shifts: float) -> Table:
    """A comparison whose seeds differ in the invalid mass of θ_2."""
    return table(
        "trial",
        [
            build_swept_lineage(runs, f"trial-seed-{seed}", ["iterations=2", f"play_seed={seed}"], shift)
            for seed, shift in enumerate(shifts, 1)
        ],
        {},
    )


@pytest.fixture(scope="module")
def standing(tmp_path_factory) -> Table:
    return compared(tmp_path_factory.mktemp("runs"), 0.0, 0.002, -0.002)


def test_a_difference_is_the_mean_over_seeds_with_its_error(standing):
    base, first, second = standing.frontier.lines
    assert [line.name for line in standing.frontier.lines] == ["θ_0", "θ_1", "θ_2"]
    assert (base.delta, base.clear) == (None, False)
    assert first.deltas == pytest.approx((0, 0, 0), abs=1e-9)
    assert not first.clear
    assert second.deltas == pytest.approx((-0.02, -0.018, -0.022))
    assert (second.delta, second.stderr) == (pytest.approx(-0.02), pytest.approx(0.002 / np.sqrt(3)))
    assert second.low <= -0.02 <= second.high < 0
    assert second.clear
    assert second.quality == pytest.approx(0.02)


def test_a_difference_that_the_seeds_explain_is_not_clear(tmp_path):
    line = compared(tmp_path, 0.02, -0.02).frontier.lines[2]
    assert line.delta == pytest.approx(-0.02)
    assert line.high < 0, "the items alone would not explain it"
    assert not line.clear


def test_one_seed_has_no_error_over_seeds(tmp_path):
    line = compared(tmp_path, 0.0).frontier.lines[2]
    assert (line.stderr, line.clear) == (None, True)
    assert "±" not in cells(line)[3]


def test_a_method_that_a_seed_lacks_is_left_out_and_without_sweeps_there_is_no_frontier(tmp_path):
    swept = build_swept_lineage(tmp_path, "trial-seed-1", ["iterations=2", "play_seed=1"])
    plain = build_lineage(tmp_path, "trial-seed-2", sets=["iterations=2", "play_seed=2"])
    assert table("trial", [swept, plain], {}).frontier is None
    assert table("trial", [plain], {}).frontier is None


def test_a_mean_has_what_all_have():
    first = Sweep({"x": {0.3: {"a": 1.0, "b": 2.0}, 0.5: {"a": 4.0}}, "y": {0.3: {"a": 0.0}}})
    second = Sweep({"x": {0.3: {"a": 3.0, "c": 2.0}}})
    assert Sweep.mean_of([first, second]).values == {"x": {0.3: {"a": 2.0}}}


def test_the_pages_show_the_table(tmp_path, standing):
    assert cells(standing.frontier.lines[2])[3] == "-0.0200 ± 0.0012 *"
    markdown = page.markdown(standing)
    assert "## Frontier over temperatures" in markdown
    assert "| -0.0200 ± 0.0012 * | [" in markdown
    page.write(tmp_path / "report.html", standing, "this test")
    assert "<td>-0.0200 ± 0.0012 *</td>" in (tmp_path / "report.html").read_text()
    (tmp_path / standing.name).mkdir()
    assert Table.model_validate(json.loads(compare.save(tmp_path, standing).read_text())) == standing
    plain = standing.model_copy(update={"frontier": None})
    assert "Frontier" not in page.markdown(plain)
    assert "Frontier" not in page.render(plain, "this test")


def test_the_command_line_prints_it(tmp_path, standing, capsys):
    from flows.command_line.printing.comparison import print_comparison

    print_comparison(standing, tmp_path)
    assert "-0.0200±0.0012*" in capsys.readouterr().out
