"""The frontier on the pages that people read."""

import pytest

from spin_core.leaderboard.board import Board, leaderboard
from spin_core.leaderboard.frontier import Gap
from spin_core.reports import frontier, html, markdown
from tests.support.lineages.small_lineage import build_lineage
from tests.support.lineages.small_sweeps import build_swept_lineage


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    return build_swept_lineage(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def board(lineage) -> Board:
    return leaderboard(lineage)


def gap(**changes) -> Gap:
    values = {"delta": -0.0051, "stderr": 0.0014, "low": -0.0089, "high": -0.0012, "temperature": 0.88}
    return Gap(**{**values, "reach": "inside", "bound": "", "verdict": "better", **changes})


def test_a_difference_has_its_error_its_interval_and_a_star():
    assert frontier.format_gap(gap()) == "-0.0051 ± 0.0014 *"
    assert frontier.format_gap(gap(verdict="")) == "-0.0051 ± 0.0014"
    assert frontier.format_gap(gap(reach="beyond", bound="≤")) == "≤-0.0051 ± 0.0014 *"
    assert frontier.format_gap(gap(reach="short", bound="≥", verdict="")) == "≥-0.0051 ± 0.0014"
    assert frontier.format_gap(None) == "–"
    assert frontier.tooltip(gap()) == "[-0.0089, -0.0012], at temperature 0.88 of the curve"


def test_the_result_is_one_line_about_the_version_that_the_gate_chose(board):
    line = frontier.summary(board)
    assert line.startswith("θ_2 at temperature 0.5 is below θ_0's curve over temperatures: invalid mass -0.02")
    assert line.endswith(" at equal total variation; below the curves of 1 of 1 controls")
    first = frontier.summary(board.model_copy(update={"choice": 1}))
    assert first.startswith("θ_1 at temperature 0.5 is not significantly off θ_0's curve over temperatures")


def test_without_a_frontier_or_without_versions_there_is_no_line(board, tmp_path):
    assert frontier.summary(leaderboard(build_lineage(tmp_path))) == ""
    alone = board.frontier.model_copy(update={"rows": board.frontier.rows[:1]})
    assert frontier.summary(board.model_copy(update={"frontier": alone})) == ""


def test_the_leaderboards_page_has_the_plot_and_both_tables(lineage, board):
    page = markdown.leaderboard_page(board, lineage.config)
    head, part = page.split("## Frontier")
    assert page.count("data:image/png") == 2
    assert "total variation" not in head, "its columns are as they were"
    lines = [line for line in part.splitlines() if line.startswith("| θ_2")]
    assert len(lines) == 2
    assert lines[0].count("*") == 2
    assert "| at temperature 0.5 | total variation ↓ | invalid mass ↓ | invalid mass from θ_0 at equal" in part
    assert "invalid mass from the curve of each control at equal total variation:" in part
    plain = markdown.leaderboard_page(board.model_copy(update={"frontier": None}), lineage.config)
    assert "Frontier" not in plain


def test_an_iterations_page_has_none_since_later_controls_would_change_it(lineage):
    assert "Frontier" not in markdown.iteration_page(lineage, lineage.records()[0])


def test_the_report_colours_what_is_significant(lineage, board):
    page = html.page(lineage, board)
    assert '<a href="#frontier">Frontier</a>' in page
    part = page.split('id="frontier"')[1].split("</section>")[0]
    assert part.count("<svg") == 1
    # Better: θ_2 than θ_0 in two ways, and θ_1 and θ_2 than the control. Worse: the control than θ_0 in two ways.
    assert part.count('class="better"') == 4
    assert part.count('class="worse"') == 2
    assert "of the curve" in part
    assert 'id="frontier"' not in html.page(lineage, board.model_copy(update={"frontier": None}))
