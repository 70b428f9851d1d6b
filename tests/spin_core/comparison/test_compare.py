"""A comparison over seeds: what is refused before compute, the numbers of its table, and its page."""

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from spin_core.comparison import compare
from spin_core.comparison import page as comparison_page
from spin_core.comparison.compare import Arm, prepare_comparison, seed_config, table
from spin_core.config.resolve import resolve
from spin_core.data.repetition import distinct
from spin_core.errors import ConfigError, DataError, SpinError
from spin_core.evaluation.statistics import t_quantile
from spin_core.lineage import controls
from spin_core.lineage.find import lineage_names
from spin_core.lineage.lineage import Lineage
from spin_core.store.records import ModelVersion, Score, TrainRun
from tests.support.lineages.small_lineage import (
    NLLS,
    build_lineage,
    demo_config,
    json_lines,
    publish,
    report,
    suite_report,
)

SETS = ("controls.sft_continued=true", "controls.longer=[2]", "controls.shares=[0.5]", "iterations=2", "train.epochs=3")
NAMES = ["θ_0", "θ_1", "θ_2", "SFT, equal steps, lr 0.001", "iteration 0, 6 epochs"]
SIZES = ["SPIN, iteration 0, 50% of prompts", "SFT, 50% of prompts, lr 0.001", "SFT, 100% of prompts, lr 0.001"]


def seed_of(runs, number: int, shift: float) -> Lineage:
    """A finished lineage whose last version is `shift` worse than the usual one, with its controls half a nat worse."""
    nlls = [*NLLS[:2], [value + shift for value in NLLS[2]]]
    lineage = build_lineage(runs, f"trial-seed-{number}", nlls, sets=[*SETS, f"play_seed={number}"])
    for control in controls.plan(lineage, lineage.records()):
        folder = lineage.control(control.name)
        job = {"control": control.name, "seed": number}
        weights = publish(folder / "model", job, {"w": control.name.encode()}, {"t": 1, "parent": "x"}, ModelVersion)
        fields = {"t": 0, "model": weights.digest, "steps": 5, "first_loss": 0.7, "metrics": {}}
        publish(folder / "train", job, {"log/timing.jsonl": json_lines([{"tokens": 9}] * 5)}, fields, TrainRun)
        report(folder / "eval" / "self-play", weights.digest, [value + 0.5 for value in NLLS[2]])
    return lineage


@pytest.fixture(scope="module")
def lineages(tmp_path_factory) -> list[Lineage]:
    runs = tmp_path_factory.mktemp("runs")
    return [seed_of(runs, number, shift) for number, shift in ((1, 0.0), (2, 0.1), (3, -0.1))]


@pytest.fixture(scope="module")
def standing(lineages):
    return table("trial", lineages, {"dpo": "needs data"})


def line(standing, name: str):
    (row,) = (candidate for candidate in standing.lines if candidate.name == name)
    return row


def test_every_method_is_one_line_over_all_seeds(standing):
    assert [row.name for row in standing.lines] == [*NAMES, *SIZES]
    assert {row.seeds for row in standing.lines} == {(1, 2, 3)}
    assert standing.lineages == ("trial-seed-1", "trial-seed-2", "trial-seed-3")


def test_a_score_is_the_mean_over_seeds_with_the_error_of_that_mean(standing):
    last = line(standing, "θ_2")
    assert last.values["heldout_nll"] == pytest.approx((2.9, 3.0, 2.8))
    assert last.scores["heldout_nll"].mean == pytest.approx(2.9)
    assert last.scores["heldout_nll"].stderr == pytest.approx(0.1 / np.sqrt(3))
    assert not last.scores["heldout_nll"].higher_is_better
    assert line(standing, "θ_0").scores["heldout_nll"].stderr == 0


def test_differences_are_taken_within_each_seed(standing):
    difference = line(standing, NAMES[3]).versus["heldout_nll"]
    # 0.5 worse than the usual θ_2, so 0.5, 0.4 and 0.6 worse than the seeds' own.
    assert difference.delta == pytest.approx(0.5)
    assert difference.stderr == pytest.approx(0.1 / np.sqrt(3))
    assert difference.low == pytest.approx(0.5)  # every item's mean over the seeds is half a nat worse
    assert difference.high == pytest.approx(0.5)
    assert difference.clear
    assert line(standing, "θ_2").versus == {}


def test_a_difference_that_seeds_or_items_explain_is_not_clear(tmp_path):
    noisy = [seed_of(tmp_path, number, shift) for number, shift in ((1, 0.0), (2, 1.5), (3, -1.5))]
    difference = line(table("trial", noisy, {}), NAMES[3]).versus["heldout_nll"]
    assert difference.delta == pytest.approx(0.5)
    assert difference.low == pytest.approx(0.5)
    assert not difference.clear


def test_rewards_are_not_compared_since_each_is_measured_against_another_opponent(lineages, standing):
    assert any("reward_accuracy" in report.scores for report in lineages[0].reports(1))
    assert not any(task.startswith("reward") for row in standing.lines for task in row.scores)


def arms_of(folder, name: str, values, **scores: Score) -> dict[int, Arm]:
    """One method over three seeds that differ by nothing; `scores` have no items."""
    return {
        seed: Arm("spin", name, 1, [report(folder / f"{name}-{seed}" / "self-play", name, values, **scores)])
        for seed in (1, 2, 3)
    }


def test_the_probability_metric_and_win_rates_over_the_version_before_are_rewards_of_that_kind(tmp_path):
    score = Score(value=0.5, stderr=0.1, n=4)
    against = dict.fromkeys(("ipm", "reward_margin", "mt-bench/against-previous", "mt-bench/against-base"), score)
    arms = arms_of(tmp_path, "θ_1", NLLS[0], **against)
    assert set(compare.line_of(arms, arms).scores) == {"heldout_nll", "mt-bench/against-base"}


def test_a_difference_without_items_is_not_marked_and_the_page_says_why(tmp_path):
    spin = arms_of(tmp_path, "θ_1", NLLS[0], bleu=Score(value=0.5, stderr=0.01, n=4))
    other = arms_of(tmp_path, "SFT", NLLS[1], bleu=Score(value=0.1, stderr=0.01, n=4))
    rows = (compare.line_of(spin, spin), compare.line_of(other, spin))
    bleu, nll = (rows[1].versus[task] for task in ("bleu", "heldout_nll"))
    assert (bleu.delta, bleu.low, bleu.clear) == (pytest.approx(-0.4), None, False)
    assert bleu.stderr < 1e-12, "the seeds alone would do"
    assert nll.clear
    values = {**EMPTY, "lines": rows, "lineages": ("a", "b", "c"), "left_out": {}}
    by_bleu = compare.Table.model_validate({**values, "main_metric": "bleu"})
    (note,) = (text for text in comparison_page.notes(by_bleu) if text.startswith("Never marked"))
    assert "bleu of SFT" in note
    assert comparison_page.difference(bleu) == "-0.4000 ± 0.0000"
    by_nll = compare.Table.model_validate({**values, "main_metric": "heldout_nll"})
    assert not any(note.startswith("Never marked") for note in comparison_page.notes(by_nll))


def test_how_diverse_methods_are_is_tested_over_the_prompts(tmp_path):
    rng = np.random.default_rng(0)
    tell = {"θ_1": 500, "SFT": 40}
    arms = {
        name: {
            seed: Arm(
                "spin",
                name,
                1,
                [
                    suite_report(
                        tmp_path / f"{name}-{seed}" / "self-play",
                        name,
                        {"distinct_2": distinct([" ".join(map(str, rng.integers(words, size=12))) for _ in range(64)])},
                    )
                ],
            )
            for seed in (1, 2, 3)
        }
        for name, words in tell.items()
    }
    difference = compare.line_of(arms["SFT"], arms["θ_1"]).versus["distinct_2"]
    assert difference.low < difference.delta < difference.high < 0
    assert difference.clear


def test_costs_are_counted_from_the_start(standing):
    assert [line(standing, f"θ_{t}").steps for t in range(3)] == [(0,) * 3, (2,) * 3, (4,) * 3]
    assert [line(standing, f"θ_{t}").tokens for t in range(3)] == [(0,) * 3, (14,) * 3, (28,) * 3]
    assert [line(standing, f"θ_{t}").answered for t in range(3)] == [(0,) * 3, (20,) * 3, (40,) * 3]
    sft, longer, share = (line(standing, name) for name in (*NAMES[3:], SIZES[0]))
    assert (sft.steps, sft.tokens, sft.answered) == ((5,) * 3, (45,) * 3, (0,) * 3)
    assert (longer.x, longer.answered) == (6, (20,) * 3)
    assert (share.x, share.answered) == (0.5, (10,) * 3)


def test_one_seed_has_no_error_over_seeds_but_that_of_its_items(lineages):
    comparison = table("trial", lineages[:1], {})
    sft = line(comparison, NAMES[3])
    assert sft.scores["heldout_nll"].stderr is None
    assert sft.versus["heldout_nll"].stderr is None
    assert sft.versus["heldout_nll"].clear
    assert comparison_page.notes(comparison)[0].startswith("One seed")


@pytest.mark.parametrize(("seeds", "errors"), [(2, 12.71), (3, 4.303), (10, 2.262), (12, 2.201), (31, 2.042)])
def test_few_seeds_need_more_standard_errors(seeds, errors):
    assert t_quantile(seeds - 1) == pytest.approx(errors, abs=0.003)


def test_seeds_differ_only_in_the_run_and_no_gate_ends_one():
    config = resolve("demo", sets=["controls.dpo.source.path=p.jsonl", "gate.rule=stop"])
    first, second = (seed_config(config, (), seed) for seed in (1, 2))
    assert first.model_copy(update={"play_seed": 2}) == second
    assert (first.play_seed, first.gate.rule) == (1, "always")
    selected = first.controls
    assert (selected.sft_continued, selected.sft_tokens, selected.dpo_after, selected.dpo.equal_steps) == (True,) * 4
    assert (selected.longer, selected.shares, selected.temperatures) == ((2, 3), compare.SHARES, (0.3, 0.7, 1.0))
    assert selected.sft_learning_rate == config.controls.sft_learning_rate


def test_only_the_requested_methods_are_run():
    config = resolve("demo", sets=["controls.dpo.source.path=p.jsonl", "controls.temperatures=[]"])
    selected = seed_config(config, ("sft-tokens", "sizes"), 1).controls
    assert (selected.sft_continued, selected.sft_tokens, selected.dpo, selected.longer) == (False, True, None, ())
    assert selected.shares == compare.SHARES
    config = resolve("demo", sets=["controls.temperatures=[0.7]"])
    assert seed_config(config, ("sft-steps",), 1).controls.temperatures == ()
    assert seed_config(config, ("temperature",), 1).controls.temperatures == (0.7,)


@pytest.mark.parametrize(
    ("delta", "clear", "text"),
    [
        (-0.00002, True, "-0.00002 ± 0.0030 *"),
        (-0.00002, False, "+0.0000 ± 0.0030"),
        (0.0121, True, "+0.0121 ± 0.0030 *"),
    ],
)
def test_a_clear_difference_has_the_digits_that_show_it(delta, clear, text):
    assert (
        comparison_page.difference(compare.Versus(delta=delta, stderr=0.003, low=None, high=None, clear=clear)) == text
    )


PREFERENCES = "controls.dpo.source.path={}"


@pytest.mark.parametrize(
    ("sets", "seeds", "methods", "kind", "message"),
    [
        ([], 0, [], ConfigError, "0 seeds cannot be compared: choose 1 to 100"),
        (
            [],
            3,
            ["stf-steps"],
            ConfigError,
            r"no method 'stf-steps' \(did you mean sft-steps\?\): choose from sft-steps, ",
        ),
        ([], 3, ["dpo"], ConfigError, r"dpo needs preference data, .*set controls\.dpo\.source\.path to"),
        (
            ["controls.temperatures=[]"],
            3,
            ["temperature"],
            ConfigError,
            r"temperature needs temperatures: set controls",
        ),
        ([PREFERENCES.format("/nowhere.jsonl")], 3, [], DataError, r"/nowhere\.jsonl"),
        (["evaluate.main_metric=beauty"], 3, [], ConfigError, r"main_metric 'beauty' is not a score"),
    ],
)
def test_invalid_values_are_rejected_before_anything_is_written(tmp_path, sets, seeds, methods, kind, message):
    with pytest.raises(kind, match=message) as refused:
        prepare_comparison(tmp_path, "trial", resolve("demo", sets=sets), seeds, methods)
    assert isinstance(refused.value, SpinError)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_cannot_have_a_lineages_name(lineages, tmp_path):
    with pytest.raises(ConfigError, match=r"trial-seed-1 is a lineage in .*: give the comparison another name"):
        prepare_comparison(lineages[0].runs, "trial-seed-1", resolve("demo"), 1)
    with pytest.raises(ConfigError, match=r"'x+-seed-1' cannot name a lineage"):
        prepare_comparison(tmp_path, "x" * 60, resolve("demo"), 1)


def test_dpo_without_data_is_left_out_with_the_way_to_add_it(tmp_path):
    config = resolve("demo")
    (lineage,) = prepare_comparison(tmp_path, "trial", config, 1)
    assert lineage.config.controls.dpo is None
    assert lineage_names(tmp_path) == ["trial-seed-1"]
    assert set(compare.missing_methods(config, ())) == {"dpo", "spin-dpo"}
    comparison = compare.Table.model_validate({**EMPTY, "left_out": compare.missing_methods(config, ())})
    assert any("set controls.dpo.source.path to a file with them" in note for note in comparison_page.notes(comparison))


EMPTY = {
    **{"name": "trial", "recipe": "demo", "main_metric": "heldout_nll", "headline": (), "lineages": ("trial-seed-1",)},
    **{"epochs": (3,), "prompts": 2, "lines": ()},
}


class Page(HTMLParser):
    """What a browser makes of the page: its elements, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name in ("src", "href") and not value.startswith("#") for name, value in attrs)

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_the_table_and_the_papers_figures_and_loads_nothing(tmp_path, standing):
    odd = standing.model_copy(update={"recipe": "<script>alert(1)</script>"})
    comparison_page.write(tmp_path / "report.html", odd, "0.1.0 (abc)")
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    for name in (*NAMES, *SIZES, "2.9000 ± 0.0577", "+0.5000 ± 0.0577 *", "figure 5", "dpo is left out: it needs data"):
        assert name in page.text


def test_the_page_shows_the_suites_and_what_only_some_methods_have(tmp_path):
    spin = arms_of(tmp_path, "θ_1", NLLS[0], ifeval=Score(value=0.5, stderr=0.1, n=8))
    other = arms_of(tmp_path, "SFT", NLLS[1], ifeval=Score(value=0.25, stderr=0.1, n=8))
    for arms, fall in ((spin, 0.0), (other, 0.3)):
        for seed, arm in arms.items():
            folder = tmp_path / f"{arm.name}-{seed}" / "suite"
            arm.reports.append(suite_report(folder, "m", {"suite": np.arange(8) / 10 - fall, "part": np.ones(8)}))
    late = {
        1: dataclasses.replace(other[1], name="late", reports=[suite_report(tmp_path / "late", "m", {"new": [1] * 8})])
    }
    rows = tuple(compare.line_of(arms, spin) for arms in (spin, other, late))
    comparison = compare.Table.model_validate({**EMPTY, "lines": rows, "headline": ("suite",), "left_out": {}})
    assert comparison_page.shown(comparison) == ["heldout_nll", "suite"]
    head, further = comparison_page.render(comparison, "here").split("<h2>Further scores</h2>")
    assert "<th>suite ↑</th><th>minus SPIN</th>" in head
    assert "<td>-0.3000 ± 0.0000 *</td>" in head
    for name in ("ifeval ↑", "part ↑", "new ↑"):
        assert f"<th>{name}</th><th>minus SPIN</th>" in further
    assert "<td>0.2500 ± 0.0000</td><td>-0.2500 ± 0.0000</td>" in further, "no items, no star"


def test_a_lineages_suites_are_in_the_headline(lineages):
    evaluate = lineages[0].config.evaluate.model_copy(update={"suites": ("instruct",), "headline": ("heldout_nll",)})
    scored = [
        dataclasses.replace(lineage, config=lineage.config.model_copy(update={"evaluate": evaluate}))
        for lineage in lineages
    ]
    assert table("trial", scored, {}).headline == ("instruct", "heldout_nll")


def test_the_artifact_has_the_same_table_with_pictures(standing):
    text = comparison_page.markdown(standing)
    assert text.count("data:image/png;base64,") == 3
    assert "| θ_2 | 2.9000 ± 0.0577 | – |" in text
    picture = base64.b64decode(text.split("base64,")[1].split(")")[0])
    assert imread(io.BytesIO(picture))[0, 0].tolist() == [1, 1, 1, 1]  # white, not transparent: the UI may be dark


def test_figures_without_lines_are_not_drawn(lineages):
    bare = [
        dataclasses.replace(lineage, config=lineage.config.model_copy(update={"controls": demo_config().controls}))
        for lineage in lineages
    ]
    assert list(comparison_page.figures(table("trial", bare, {}))) == ["figure 3"]


def test_the_table_survives_json(tmp_path, standing):
    (tmp_path / "trial").mkdir()
    assert compare.Table.model_validate(json.loads(compare.save(tmp_path, standing).read_text())) == standing
