"""The leaderboard: paired differences worked out by hand, averages, the gate's choice and the paper's rows."""

import json

import numpy as np
import pytest

from spin_core.leaderboard import board, reference_rows
from spin_core.leaderboard.board import Board, Row, decimals_of_column, format_difference, format_score, leaderboard
from spin_core.store.records import Comparison, Score
from tests.support.lineages.small_lineage import NLLS, build_lineage, report, suite_report


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    return build_lineage(tmp_path_factory.mktemp("runs"))


def test_rows_are_the_versions_in_order(lineage):
    rows = leaderboard(lineage).rows
    assert [(row.name, row.t) for row in rows] == [("θ_0", 0), ("θ_1", 1), ("θ_2", 2)]
    assert [row.scores["heldout_nll"].value for row in rows] == pytest.approx([3.5, 3.0, 2.9])
    records = lineage.records()
    assert [row.digest for row in rows] == [records[0].opponent.digest, *(record.player.digest for record in records)]
    assert rows[2].model == str(lineage.root / "iter_01" / "model")
    assert rows[0].model == str(records[0].opponent.path)


def test_differences_are_paired_item_by_item(lineage):
    rows = leaderboard(lineage).rows
    assert rows[0].differences == {}
    (first,) = rows[1].differences["heldout_nll"]
    # Differences -.5, -.6, -.4, -.5, twice: mean -.5, and their deviation is .0756 over the root of 8.
    assert (first.against, first.delta, first.stderr) == (0, pytest.approx(-0.5), pytest.approx(0.0267261))
    before, base = rows[2].differences["heldout_nll"]
    assert (before.against, base.against) == (1, 0)
    assert before.delta == pytest.approx(-0.1)
    assert base.delta == pytest.approx(-0.6)


def test_a_paired_error_is_smaller_than_that_of_the_means(lineage):
    row = leaderboard(lineage).rows[1]
    assert row.differences["heldout_nll"][0].stderr < 0.1 * row.scores["heldout_nll"].stderr


def test_controls_are_in_the_same_table(tmp_path):
    lineage = build_lineage(tmp_path)
    report(lineage.control("sft-lr-0.001") / "eval" / "self-play", "c" * 64, (1.9, 2.9, 3.9, 4.9))
    report(lineage.control("temperature-0.7") / "eval" / "self-play", "d" * 64, (3, 3, 3, 3))
    table = leaderboard(lineage)
    assert [row.name for row in table.controls] == ["sft-lr-0.001", "temperature-0.7"]
    control = table.controls[0]
    assert control.t is None
    assert control.differences["heldout_nll"][0].delta == pytest.approx(-0.1)
    assert control.differences["heldout_nll"][0].against == 0


def test_the_main_metric_comes_first(lineage):
    assert leaderboard(lineage).tasks() == ["heldout_nll", "reward_accuracy"]
    config = lineage.config.model_copy(
        update={"evaluate": lineage.config.evaluate.model_copy(update={"main_metric": "reward_accuracy"})}
    )
    assert leaderboard(type(lineage)(lineage.runs, lineage.name, config)).tasks() == ["reward_accuracy", "heldout_nll"]


def test_the_file_has_the_same_values_as_the_table(lineage):
    saved = board.save(lineage)
    assert (
        Board.model_validate(json.loads((lineage.root / "leaderboard.json").read_text()))
        == saved
        == leaderboard(lineage)
    )


def test_a_lineage_without_evaluations_has_an_empty_board(tmp_path):
    lineage = build_lineage(tmp_path, nlls=NLLS[:1])
    assert len(leaderboard(lineage).rows) == 1
    (lineage.eval_folder(0) / "self-play" / "manifest.json").unlink()
    assert leaderboard(lineage).rows == ()


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.12345, 0.0043, "0.1235 ± 0.0043"),
        (3.5, 0.65, "3.50 ± 0.65"),
        (123.4, 12.0, "123 ± 12"),
        (0.5, 0.0, "0.5"),
        (1e-6, 1e-9, "0.0000 ± 0.0000"),
    ],
)
def test_a_score_has_as_many_digits_as_its_error_justifies(value, stderr, text):
    assert format_score(Score(value=value, stderr=stderr, n=4)) == text


def change(delta: float, stderr: float, *, marked: bool) -> Comparison:
    error = 1.96 * stderr if not marked else abs(delta) / 2
    return Comparison(against=0, delta=delta, stderr=stderr, low=delta - error, high=delta + error)


def test_a_marked_score_has_the_digits_in_which_it_differs_from_the_first_version():
    base, other = (Score(value=value, stderr=0.0057, n=4) for value in (0.22930, 0.22928))
    rows = [
        Row(name="θ_0", t=0, model="", digest="", scores={"nll": base}),
        Row(
            name="θ_1",
            t=1,
            model="",
            digest="",
            scores={"nll": other},
            differences={"nll": (change(-0.00002, 1e-6, marked=True),)},
        ),
    ]
    least = decimals_of_column(rows, "nll")
    assert [format_score(row.scores["nll"], least) for row in rows] == ["0.22930 ± 0.0057", "0.22928 ± 0.0057"]
    assert decimals_of_column(rows[:1], "nll") == 0
    assert format_score(Score(value=0.5, stderr=0.0, n=4), 3) == "0.500"


@pytest.mark.parametrize(
    ("delta", "stderr", "marked", "text"),
    [
        (-0.0123, 0.0012, False, "-0.0123 [-0.0147, -0.0099]"),
        (-0.00002, 0.00001, True, "-0.00002 [-0.00003, -0.00001]"),
        (-0.00002, 0.0004, False, "+0.0000 [-0.0008, +0.0008]"),
    ],
)
def test_a_marked_difference_is_never_shown_as_0(delta, stderr, marked, text):
    assert format_difference(change(delta, stderr, marked=marked)) == text


def test_a_missing_score_is_a_dash():
    assert format_score(None) == "–"


def test_notes_of_every_version_are_kept_by_suite_and_the_last_ones_shown(tmp_path):
    lineage = build_lineage(tmp_path)
    for t, notes in enumerate([(), ("one",), ("two", "three")]):
        suite_report(lineage.eval_folder(t) / "mt-bench", f"{t}" * 64, {"mt-bench": [1, 2]}, notes=notes)
    table = board.save(lineage)
    assert [row.notes for row in table.rows] == [{}, {"mt-bench": ("one",)}, {"mt-bench": ("two", "three")}]
    assert table.head_notes() == ["θ_2, mt-bench: two", "θ_2, mt-bench: three"]
    saved = json.loads((lineage.root / "leaderboard.json").read_text())
    assert saved["rows"][2]["notes"] == {"mt-bench": ["two", "three"]}


SIX = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k")


def test_an_average_is_compared_part_by_part():
    """Every part has the same weight: one of four items rises by .4, one of two hundred falls by .1."""
    averages = {"both": ("few", "many"), "whole": ("both", "one")}
    small, large = np.array([0.0, 0.1, 0.9, 0.5]), np.linspace(0, 1, 200)
    mine = {"few": small + np.array([0.4, 0.4, 0.3, 0.5]), "many": large - 0.1, "one": small}
    theirs = {"few": small, "many": large, "one": small}
    values = [items_of(mine), items_of(theirs)]
    combined = board.difference("both", *values, averages)
    assert combined.mean == pytest.approx((0.4 - 0.1) / 2)
    assert combined.stderr == pytest.approx(np.std([0.4, 0.4, 0.3, 0.5], ddof=1) / 2 / 2)
    nested = board.difference("whole", *values, averages)
    assert nested.mean == pytest.approx(combined.mean / 2)
    assert board.difference("both", {"few": values[0]["few"]}, values[1], averages) is None, "a part is unknown"
    assert board.difference("bleu", *values, averages) is None


def items_of(tasks):
    return {task: {str(place): float(value) for place, value in enumerate(values)} for task, values in tasks.items()}


def with_suite(tmp_path, suite="open-llm-leaderboard", falls=0.0):
    """A lineage whose versions were scored on six tasks and their average."""
    lineage = build_lineage(tmp_path)
    rng = np.random.default_rng(0)
    right = {task: rng.random(60) for task in SIX}
    for t in range(3):
        tasks = {
            task: (score < 0.5 + 0.1 * t - (falls if task == "gsm8k" else 0)) * 1.0 for task, score in right.items()
        }
        suite_report(lineage.eval_folder(t) / suite, f"{t}" * 64, tasks, {suite: SIX})
    return lineage


def test_a_suite_has_its_own_tasks_and_its_average_a_paired_difference(tmp_path):
    table = leaderboard(with_suite(tmp_path))
    assert table.main_tasks("open-llm-leaderboard") == ["open-llm-leaderboard", *SIX]
    assert table.main_tasks("self-play") == ["heldout_nll", "reward_accuracy"]
    graded = table.model_copy(update={"suites": {"mt-bench": ("mt-bench", "mt-bench/math", "mt-bench/against-base")}})
    assert graded.main_tasks("mt-bench") == ["mt-bench", "mt-bench/math", "mt-bench/against-base"]
    before, base = table.rows[2].differences["open-llm-leaderboard"]
    assert (before.against, base.against) == (1, 0)
    scores = [row.scores["open-llm-leaderboard"].value for row in table.rows]
    assert base.delta == pytest.approx(scores[2] - scores[0])
    assert base.low < base.delta < base.high
    assert base.stderr < table.rows[2].scores["open-llm-leaderboard"].stderr


def test_the_gates_choice_and_its_decision_on_each_version_are_on_the_board(tmp_path):
    table = leaderboard(build_lineage(tmp_path, nlls=(NLLS[0], NLLS[1], NLLS[0]), sets=["gate.rule=best"]))
    assert [row.gate for row in table.rows] == [None, "promote", "keep-best"]
    assert table.choice == 1
    assert [table.name_of(row) for row in table.rows] == ["θ_0", "θ_1 ◂", "θ_2"]
    assert leaderboard(build_lineage(tmp_path, "new", nlls=NLLS[:1])).choice is None


def test_the_papers_rows_are_listed_with_the_suites_that_it_ran(tmp_path):
    assert leaderboard(build_lineage(tmp_path, "other")).references == ()
    table = leaderboard(with_suite(tmp_path, "open-llm-leaderboard-quick"))
    base = table.references[0]
    assert base.name == "paper θ_0"
    assert "not measured here" in base.model
    assert set(base.scores) == {"open-llm-leaderboard-quick", *SIX}
    assert base.scores["gsm8k"].value == pytest.approx(0.2676)
    assert base.scores["open-llm-leaderboard-quick"].value == pytest.approx(0.5814)


def test_the_papers_rows_say_how_they_differ_from_the_measured_ones(tmp_path):
    part = "on the whole suites, while the scores here are on a part of the items"
    assert part in leaderboard(with_suite(tmp_path, "open-llm-leaderboard-quick")).references[0].model
    suites = {"big-bench": ("bbh_cot_fewshot_causal_judgement", "openbookqa", "openbookqa/acc", "big-bench")}
    scores = {
        task: Score(value=0.5, stderr=0.1, n=n)
        for task, n in zip(suites["big-bench"], (187, 500, 500, 687), strict=True)
    }
    assert reference_rows.source(suites, scores, chat_template=False) == reference_rows.SOURCE
    fewer = scores | {"openbookqa": Score(value=0.5, stderr=0.1, n=499)}
    assert part in reference_rows.source(suites, fewer, chat_template=False)
    assert "without the chat template that is applied" in reference_rows.source(suites, scores, chat_template=True)


def test_the_papers_grades_are_listed_only_with_those_of_the_published_prompts(tmp_path):
    for apart, names in (("graded by me", ()), ("", ("paper θ_0", "paper θ_1", "paper θ_2", "paper θ_3"))):
        lineage = build_lineage(tmp_path / f"runs-{bool(apart)}")
        for t in range(3):
            suite_report(lineage.eval_folder(t) / "mt-bench", f"{t}" * 64, {"mt-bench": [5.0] * 80}, apart=apart)
        references = leaderboard(lineage).references
        assert tuple(row.name for row in references) == names
        assert all("MT-Bench graded by GPT-4" in row.model for row in references)


def test_single_tasks_are_not_compared_with_the_papers_whose_examples_may_differ():
    assert reference_rows.matching({"lm-eval": SIX, "bbh": ("bbh_causal_judgement",)}) == {}
    names = ["bbh_cot_fewshot_causal_judgement", "mmlu_formal_logic", "openbookqa", "openbookqa/acc"]
    assert set(reference_rows.matching({"big-bench": names})["paper θ_1"]) == {names[0], "openbookqa"}


def test_the_papers_averages_are_the_means_of_its_parts():
    for name, (*parts, average) in reference_rows.ON_LEADERBOARD.items():
        told_apart = 0.69 if name == "paper θ_4 + DPO" else 0.0
        assert np.mean(parts) - average == pytest.approx(told_apart, abs=0.011), name


HALVES = ("a",) * 8 + ("b",) * 8
OF_HALVES = (tuple(range(16)), (*(value - 1 - value % 2 / 8 for value in range(8)), *range(8, 16)))
"""θ_1 is better on the first source's prompts and equal on the second's."""


def test_scores_and_differences_are_given_by_source(tmp_path):
    made = build_lineage(tmp_path, nlls=OF_HALVES, sources=HALVES)
    report(made.control("sft") / "eval" / "self-play", "c" * 64, [value + 1 for value in OF_HALVES[0]], "c", HALVES)
    table = leaderboard(made)
    assert table.sources() == ["a", "b"]
    assert [part.scores["heldout_nll"].value for part in table.of_source("b").rows] == [11.5, 11.5]
    assert table.of_source("a").tasks() == ["heldout_nll"]
    first, second = table.rows
    assert [first.by_source[source].scores["heldout_nll"].value for source in "ab"] == [3.5, 11.5]
    assert [second.by_source[source].scores["heldout_nll"].n for source in "ab"] == [8, 8]
    better, same = (table.of_source(source).rows[1] for source in "ab")
    assert better.differences["heldout_nll"][0].delta == pytest.approx(-1.0625)
    assert same.differences["heldout_nll"][0].delta == 0
    assert (board.differs_from_base(better, "heldout_nll"), board.differs_from_base(same, "heldout_nll")) == (
        True,
        False,
    )
    (control,) = table.controls
    assert control.by_source["b"].differences["heldout_nll"][0].delta == pytest.approx(1)
    saved = Board.model_validate_json((made.root / "leaderboard.json").read_text("utf-8"))
    assert saved.rows == table.rows


def test_a_lineage_with_one_source_has_no_scores_by_source(lineage):
    table = leaderboard(lineage)
    assert table.sources() == []
    assert all(row.by_source == {} for row in table.rows)
