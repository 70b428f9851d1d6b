"""The gate, with regressions that are made by hand."""

import numpy as np
import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.errors import ConfigError
from spin_core.evaluation import items, self_play
from spin_core.leaderboard.gate import EXACT, SELF_PLAY, best, check_metrics, decide, lead
from spin_core.store.records import Score
from tests.support.lineages.small_lineage import demo_config, report, suite_report


def made(folder, values, name="m", **scores):
    """One version's reports."""
    return [report(folder / name / "self-play", name, values, **scores)]


def gate(rule="stop", tolerance=2.0, metric="heldout_nll"):
    return demo_config(f"gate.rule={rule}", f"gate.tolerance={tolerance}", f"evaluate.main_metric={metric}")


@pytest.mark.parametrize(
    ("rule", "outcome", "next_opponent"), [("stop", "stop", 0), ("best", "keep-best", 0), ("always", "promote", 1)]
)
def test_a_planted_regression_is_caught_and_the_rule_decides(tmp_path, rule, outcome, next_opponent):
    better, worse = made(tmp_path, (2.0, 3.0, 4.0, 5.0), "a"), made(tmp_path, (2.1, 3.2, 4.1, 5.2), "b")
    decision = decide(gate(rule), candidate=(1, worse), best=(0, better))
    assert (decision.outcome, decision.next_opponent) == (outcome, next_opponent)
    if rule != "always":
        assert "heldout_nll 3.65 against 3.5 of θ_0 (difference +0.15 ± 0.029)" in decision.reason


def test_a_version_that_is_better_or_equal_becomes_the_opponent(tmp_path):
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


def test_the_gate_respects_the_direction_of_a_score(tmp_path):
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


def towards(value, target=0.65, stderr=0.01):
    """A score that is best where the human responses have it."""
    return Score(value=value, stderr=stderr, n=50, higher_is_better=None, target=target)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (0.50, 0.60, "promote"),  # it nears what people have
        (0.60, 0.50, "stop"),
        (0.70, 0.80, "stop"),  # more is worse beyond
        (0.80, 0.70, "promote"),
        (0.64, 0.66, "promote"),  # as near from the other side
        (0.64, 0.72, "stop"),  # .06 farther, with an error of .02
        (0.64, 0.68, "promote"),  # .02 farther
    ],
)
def test_a_score_that_can_be_too_high_is_judged_by_its_distance_to_the_human_one(tmp_path, before, after, outcome):
    reports = [
        made(tmp_path, (1, 2), name, distinct_2=towards(value))
        for name, value in zip("ab", (before, after), strict=True)
    ]
    decision = decide(gate(metric="distinct_2"), candidate=(1, reports[1]), best=(0, reports[0]))
    assert decision.outcome == outcome
    assert decision.delta == pytest.approx(after - before)
    nearest = min((before, after), key=lambda value: abs(value - 0.65))
    if before + after != pytest.approx(1.3):
        chosen, _ = best(gate(metric="distinct_2"), dict(enumerate(reports)), 1)
        assert (before, after)[chosen] == nearest


def test_the_reason_names_the_best_version(tmp_path):
    reports = [made(tmp_path, (1, 2), name, distinct_2=towards(value)) for name, value in (("a", 0.6), ("b", 0.3))]
    decision = decide(gate(metric="distinct_2"), candidate=(1, reports[1]), best=(0, reports[0]))
    assert "difference -0.3 ± 0.014; best is 0.65, as the human responses have it" in decision.reason


def test_the_lead_of_paired_items_has_an_interval_on_the_better_side(tmp_path):
    before = made(tmp_path, np.arange(8.0), "a")
    after = made(tmp_path, np.arange(8.0) - 0.5 + 0.1 * np.array([1, -1] * 4), "b")
    led = lead(gate(), after, before)
    assert (led.delta, led.gain) == (pytest.approx(-0.5), pytest.approx(0.5))
    assert 0.38 < led.low < 0.45
    assert lead(gate(), before, after).low == pytest.approx(-0.5 - (0.5 - led.low), abs=0.02)


def test_a_fall_of_unknown_error_shows_nothing(tmp_path):
    values = {"a": Score(value=0.5, stderr=None, n=1), "b": Score(value=0.2, stderr=None, n=1)}
    reports = [made(tmp_path, (1, 2), name, bleu=score) for name, score in values.items()]
    decision = decide(gate(metric="bleu"), candidate=(1, reports[1]), best=(0, reports[0]))
    assert (decision.outcome, decision.stderr) == ("promote", None)
    assert "(difference -0.3 of unknown error)" in decision.reason


def test_a_score_that_has_no_better_and_worse_gates_nothing(tmp_path):
    score = Score(value=0.5, stderr=0.1, n=4, higher_is_better=None)
    with pytest.raises(ConfigError, match=r"ipm is neither better nor worse where it is higher: set gate\.metric to"):
        best(gate(metric="ipm"), {0: made(tmp_path, (1, 2), ipm=score)}, 0)


def test_the_best_version_is_the_earliest_of_equals(tmp_path):
    values = [(3.0, 3.0), (2.0, 2.0), (2.0, 2.0), (2.5, 2.5)]
    reports = {t: made(tmp_path, value, str(t)) for t, value in enumerate(values)}
    assert best(gate(), reports, 3)[0] == 1
    assert best(gate(), reports, 0)[0] == 0


def test_a_main_metric_that_no_suite_gives_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="'elo', which no suite gives: choose one of heldout_nll"):
        best(gate(metric="elo"), {0: made(tmp_path, (1, 2))}, 0)


PARTS = {"suite": ("main", "second", "third")}


def scored(folder, name, **tasks):
    """One version's report of a suite with an average."""
    return [suite_report(folder / name / "suite", name, tasks, PARTS)]


def test_an_average_that_falls_is_caught_while_the_main_task_rises(tmp_path):
    right, wrong = np.ones(50), np.zeros(50)
    half = np.tile([0.0, 1.0], 25)
    before = scored(tmp_path, "a", main=wrong, second=right, third=right)
    after = scored(tmp_path, "b", main=half, second=half, third=half)
    config = gate(metric="main")
    assert decide(config, candidate=(1, after), best=(0, before)).outcome == "promote"
    config = demo_config("evaluate.main_metric=main", "gate.metric=suite")
    decision = decide(config, candidate=(1, after), best=(0, before))
    assert decision.outcome == "stop"
    assert (decision.metric, decision.delta) == ("suite", pytest.approx((0.5 - 0.5 - 0.5) / 3))
    assert decision.stderr == pytest.approx(np.sqrt(3) * half.std(ddof=1) / np.sqrt(50) / 3)


def test_an_average_that_falls_within_the_tolerance_is_noise(tmp_path):
    rng = np.random.default_rng(0)
    before = {task: rng.random(80).round() for task in PARTS["suite"]}
    after = {task: np.where(rng.random(80) < 0.2, 1 - values, values) for task, values in before.items()}
    after["main"] = before["main"] * (rng.random(80) < 0.95)
    reports = scored(tmp_path, "a", **before), scored(tmp_path, "b", **after)

    def decided(tolerance):
        config = demo_config("gate.metric=suite", f"gate.tolerance={tolerance}")
        return decide(config, candidate=(1, reports[1]), best=(0, reports[0]))

    errors = -decided(0).delta / decided(0).stderr
    assert errors > 0, "it falls"
    assert decided(errors * 0.99).outcome == "stop"
    assert decided(errors * 1.01).outcome == "promote"


def test_the_best_version_is_best_by_the_gates_own_metric(tmp_path):
    values = {"second": np.zeros(4), "third": np.zeros(4)}
    reports = {
        0: scored(tmp_path, "a", main=np.ones(4), **values),
        1: scored(tmp_path, "b", main=np.zeros(4), **values | {"second": np.ones(4), "third": np.ones(4)}),
    }
    assert best(gate(metric="main"), reports, 1)[0] == 0
    assert best(demo_config("evaluate.main_metric=main", "gate.metric=suite"), reports, 1)[0] == 1


def test_a_gate_that_always_promotes_records_the_difference(tmp_path):
    before, after = made(tmp_path, (2, 3, 4, 5), "a"), made(tmp_path, (2.1, 3.2, 4.1, 5.2), "b")
    decision = decide(gate("always"), candidate=(1, after), best=(0, before))
    assert decision.outcome == "promote"
    assert (decision.metric, decision.delta) == ("heldout_nll", pytest.approx(0.15))


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (
            ["evaluate.main_metric=elo"],
            "evaluate.main_metric 'elo' is not a score that every version has, better or worse: choose",
        ),
        (
            ["gate.metric=elo"],
            "gate.metric 'elo' is not a score that every version has, better or worse: choose one of heldout_nll,",
        ),
        (["gate.metric=real_tokens"], "gate.metric 'real_tokens' is not a score that every version has, better or"),
        (["gate.metric=reward_accuracy"], "gate.metric 'reward_accuracy' is not a score that every version has"),
        (["gate.metric=big-bench", "evaluate.suites=[instruct]"], "gate.metric 'big-bench' is not a score that every"),
    ],
)
def test_a_metric_that_is_not_measured_is_rejected_before_any_compute(sets, says):
    with pytest.raises(ConfigError) as raised:
        check_metrics(demo_config(*sets))
    assert says in str(raised.value)


def test_metrics_of_suites_and_of_single_tasks_are_known_beforehand():
    check_metrics(demo_config("gate.metric=big-bench", "evaluate.suites=[big-bench]"))
    check_metrics(demo_config("gate.metric=gsm8k-quick", "evaluate.suites=[open-llm-leaderboard-quick]"))
    check_metrics(demo_config("gate.metric=mmlu_anatomy", "evaluate.suites=[open-llm-leaderboard]"))
    check_metrics(demo_config("gate.metric=gsm8k/flexible", "evaluate.lm_eval.tasks=[gsm8k]"))


def test_a_run_whose_gate_would_have_no_score_is_rejected_before_its_lineage_starts(tmp_path):
    done = CliRunner().invoke(main, ["run", "demo", "--set", "gate.metric=elo", "--runs", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.startswith(
        "error  gate.metric 'elo' is not a score that every version has, better or worse: choose one of "
    )
    assert list(tmp_path.iterdir()) == []


def test_the_scores_of_a_gate_are_scores_that_versions_have():
    assert {name for name in (*SELF_PLAY, *EXACT) if name not in self_play.__doc__} == set()
    assert set(EXACT) < items.LOWER_IS_BETTER
