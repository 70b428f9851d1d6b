"""The leaderboard's paired differences and the gate, with numbers worked out by hand."""

import json

import pytest
from small_lineage import NLLS, build, report, settings

from spin_core import board
from spin_core.board import Board, decide, format_score, leaderboard
from spin_core.errors import ConfigError
from spin_core.records import Score


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    return build(tmp_path_factory.mktemp("runs"))


def made(folder, values, name="m", **scores):
    """One version's reports."""
    return [report(folder / name / "self-play", name, values, **scores)]


def gate(rule="stop", tolerance=2.0, metric="heldout_nll"):
    return settings(f"gate.rule={rule}", f"gate.tolerance={tolerance}", f"evaluate.main_metric={metric}")


def test_rows_are_the_versions_in_order(game):
    rows = leaderboard(game).rows
    assert [(row.name, row.t) for row in rows] == [("θ_0", 0), ("θ_1", 1), ("θ_2", 2)]
    assert [row.scores["heldout_nll"].value for row in rows] == pytest.approx([3.5, 3.0, 2.9])
    records = game.records()
    assert [row.digest for row in rows] == [records[0].opponent.digest, *(record.player.digest for record in records)]
    assert rows[2].model == str(game.root / "iter_01" / "model")
    assert rows[0].model == str(records[0].opponent.path)


def test_differences_are_paired_item_by_item(game):
    rows = leaderboard(game).rows
    assert rows[0].differences == {}
    (first,) = rows[1].differences["heldout_nll"]
    # Differences -.5, -.6, -.4, -.5: mean -.5, and their deviation is .0816 over the root of 4.
    assert (first.against, first.delta, first.stderr) == (0, pytest.approx(-0.5), pytest.approx(0.0408248))
    before, base = rows[2].differences["heldout_nll"]
    assert (before.against, base.against) == (1, 0)
    assert before.delta == pytest.approx(-0.1)
    assert base.delta == pytest.approx(-0.6)


def test_a_paired_error_is_smaller_than_that_of_the_means(game):
    row = leaderboard(game).rows[1]
    assert row.differences["heldout_nll"][0].stderr < 0.1 * row.scores["heldout_nll"].stderr


def test_only_items_that_both_have_are_compared():
    mine, theirs = {"a": 1.0, "b": 3.0, "c": 9.0}, {"a": 0.0, "b": 1.0, "d": 5.0}
    assert board.paired(mine, theirs) == (pytest.approx(1.5), pytest.approx(0.5))
    assert board.paired({"a": 1.0}, {"a": 0.0}) is None
    assert board.paired({}, theirs) is None


def test_controls_stand_in_the_same_table(tmp_path):
    game = build(tmp_path)
    report(game.control("sft-lr-0.001") / "eval" / "self-play", "c" * 64, (1.9, 2.9, 3.9, 4.9))
    report(game.control("temperature-0.7") / "eval" / "self-play", "d" * 64, (3, 3, 3, 3))
    table = leaderboard(game)
    assert [row.name for row in table.controls] == ["sft-lr-0.001", "temperature-0.7"]
    control = table.controls[0]
    assert control.t is None
    assert control.differences["heldout_nll"][0].delta == pytest.approx(-0.1)
    assert control.differences["heldout_nll"][0].against == 0


def test_the_main_metric_comes_first(game):
    assert leaderboard(game).tasks() == ["heldout_nll", "reward_accuracy"]
    config = game.config.model_copy(
        update={"evaluate": game.config.evaluate.model_copy(update={"main_metric": "reward_accuracy"})}
    )
    assert leaderboard(type(game)(game.runs, game.name, config)).tasks() == ["reward_accuracy", "heldout_nll"]


def test_the_file_says_what_the_table_says(game):
    saved = board.save(game)
    assert Board.model_validate(json.loads((game.root / "leaderboard.json").read_text())) == saved == leaderboard(game)


def test_a_lineage_without_evaluations_has_an_empty_board(tmp_path):
    game = build(tmp_path, nlls=NLLS[:1])
    assert len(leaderboard(game).rows) == 1
    (game.eval_folder(0) / "self-play" / "manifest.json").unlink()
    assert leaderboard(game).rows == ()


@pytest.mark.parametrize(
    ("rule", "outcome", "next_opponent"), [("stop", "stop", 0), ("best", "keep-best", 0), ("always", "promote", 1)]
)
def test_a_planted_regression_is_caught_and_the_rule_decides(tmp_path, rule, outcome, next_opponent):
    better, worse = made(tmp_path, (2.0, 3.0, 4.0, 5.0), "a"), made(tmp_path, (2.1, 3.2, 4.1, 5.2), "b")
    decision = decide(gate(rule), candidate=(1, worse), best=(0, better))
    assert (decision.outcome, decision.next_opponent) == (outcome, next_opponent)
    if rule != "always":
        assert "heldout_nll 3.65 against 3.5 of θ_0 (difference +0.15 ± 0.029)" in decision.reason


def test_a_version_that_is_better_or_equal_plays_next(tmp_path):
    before = made(tmp_path, (2.0, 3.0, 4.0, 5.0), "a")
    for name, values in [("b", (1.0, 2.0, 3.0, 4.0)), ("c", (2.0, 3.0, 4.0, 5.0))]:
        decision = decide(gate(), candidate=(1, made(tmp_path, values, name)), best=(0, before))
        assert (decision.outcome, decision.next_opponent) == ("promote", 1)


def test_a_fall_within_the_tolerance_is_noise(tmp_path):
    before = made(tmp_path, (2.0, 3.0, 4.0, 5.0), "a")
    # Differences .3, -.1, .3, -.1: mean .1, standard error .115.
    noisy = made(tmp_path, (2.3, 2.9, 4.3, 4.9), "b")
    assert decide(gate(tolerance=1.0), candidate=(1, noisy), best=(0, before)).outcome == "promote"
    assert decide(gate(tolerance=0.5), candidate=(1, noisy), best=(0, before)).outcome == "stop"


def test_the_gate_knows_which_way_is_better(tmp_path):
    low, high = Score(value=0.4, stderr=0.01, n=100), Score(value=0.6, stderr=0.01, n=100)
    before, after = made(tmp_path, (1, 2), "a", arc_easy=low), made(tmp_path, (1, 2), "b", arc_easy=high)
    config = gate(metric="arc_easy")
    assert decide(config, candidate=(1, after), best=(0, before)).outcome == "promote"
    assert decide(config, candidate=(1, before), best=(0, after)).outcome == "stop"


def test_without_single_items_the_errors_of_the_means_add_up(tmp_path):
    before = made(tmp_path, (1, 2), "a", bleu=Score(value=0.5, stderr=0.03, n=10))
    after = made(tmp_path, (1, 2), "b", bleu=Score(value=0.42, stderr=0.04, n=10))
    decision = decide(gate(metric="bleu"), candidate=(1, after), best=(0, before))
    assert "(difference -0.08 ± 0.05)" in decision.reason
    assert decision.outcome == "promote", "1.6 standard errors"


def test_the_best_version_is_the_earliest_of_equals(tmp_path):
    values = [(3.0, 3.0), (2.0, 2.0), (2.0, 2.0), (2.5, 2.5)]
    reports = {t: made(tmp_path, value, str(t)) for t, value in enumerate(values)}
    assert board.best(gate(), reports, 3)[0] == 1
    assert board.best(gate(), reports, 0)[0] == 0


def test_a_main_metric_that_nobody_gives_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="'elo', which no suite gives: choose one of heldout_nll"):
        board.best(gate(metric="elo"), {0: made(tmp_path, (1, 2))}, 0)


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
def test_a_score_has_as_many_digits_as_its_error_bears(value, stderr, text):
    assert format_score(Score(value=value, stderr=stderr, n=4)) == text


def test_a_score_that_is_not_there_is_a_dash():
    assert format_score(None) == "–"
