"""When nightly runs end: gains on eight held-out items, computed by hand, and accuracies with their errors."""

import shutil

import numpy as np
import pytest

from spin_core.errors import ConfigError
from spin_core.leaderboard import convergence
from spin_core.store.records import Score
from tests.support.lineages.small_lineage import build_lineage, report, suite_report

BASE = np.array([2.0, 3.0, 4.0, 5.0] * 2)
NOISE = np.array([0.1, -0.1] * 4)


def improving_lineage(folder, *falls, patience=2, sets=()):
    """A lineage whose version t + 1 has a negative log-likelihood lower than that of θ_0 by `falls[t]`, with noise."""
    nlls = [BASE, *(BASE - fall + NOISE * (-1) ** t for t, fall in enumerate(falls))]
    return build_lineage(folder, nlls=nlls, sets=["gate.rule=always", f"nightly.patience={patience}", *sets])


def test_a_lineage_that_improves_continues(tmp_path):
    assert convergence.reason(improving_lineage(tmp_path, 0.5, 1.0, 1.5)) is None


def test_versions_that_gain_nothing_end_it_and_are_named(tmp_path):
    lineage = improving_lineage(tmp_path, 1.0, 1.0, 1.0)
    assert convergence.reason(lineage) == "none of θ_2 to θ_3 is better than θ_1 in heldout_nll, beyond chance"


def test_a_worse_score_is_not_a_gain(tmp_path):
    assert convergence.reason(improving_lineage(tmp_path, 1.0, 0.0, 0.5)) is not None


def test_a_single_version_can_be_selected(tmp_path):
    lineage = improving_lineage(tmp_path, 1.0, 1.0, patience=1)
    assert convergence.reason(lineage) == "θ_2 is not better than θ_1 in heldout_nll, beyond chance"


def test_fewer_versions_than_the_patience_never_count_as_converged(tmp_path):
    assert convergence.reason(improving_lineage(tmp_path, 0.0, 0.0, patience=3)) is None
    assert convergence.reason(improving_lineage(tmp_path / "all", 0.0, 0.0, 0.0, patience=3)) is not None


def test_patience_of_0_never_looks(tmp_path):
    assert convergence.reason(improving_lineage(tmp_path, 0.0, 0.0, patience=0)) is None


def test_small_gains_add_up(tmp_path):
    """Each version is within chance of the one before it; the last is not within chance of the first of them."""
    lineage = improving_lineage(tmp_path, 0.0, 0.12, 0.24)
    single = [convergence.is_better(lineage, lineage.reports(t + 1), lineage.reports(t)) for t in (1, 2)]
    assert single == [False, False]
    assert convergence.is_better(lineage, lineage.reports(3), lineage.reports(1))
    assert convergence.reason(lineage) is None


def test_the_gates_metric_counts_and_higher_may_be_better(tmp_path):
    reasons = {}
    for name, last in (("gain", 1.0), ("none", 0.0)):
        runs = tmp_path / name
        lineage = build_lineage(runs, nlls=(BASE, BASE), sets=["gate.rule=always"])
        lineage = type(lineage)(runs, lineage.name, lineage.config.model_copy(update=changed(lineage.config)))
        for t, value in enumerate((0.0, last)):
            suite_report(lineage.eval_folder(t) / "lm-eval", "m", {"arc_easy": [value] * 7 + [0.0]})
        reasons[name] = convergence.reason(lineage)
    assert reasons == {"gain": None, "none": "θ_1 is not better than θ_0 in arc_easy, beyond chance"}


def changed(config):
    """Settings with which the gate reads a benchmark, and one version decides."""
    return {
        "gate": config.gate.model_copy(update={"metric": "arc_easy"}),
        "nightly": config.nightly.model_copy(update={"patience": 1}),
    }


def with_accuracy(folder, value, n, **settings):
    """Why a lineage that gains has converged, if its last player is right in this share of n held-out pairs."""
    lineage = improving_lineage(folder, 0.5, 1.0, sets=[f"nightly.{name}={value}" for name, value in settings.items()])
    suite = lineage.eval_folder(2) / "self-play"
    digest = lineage.reports(2)[0].model
    shutil.rmtree(suite)
    score = Score(value=value, stderr=float(np.sqrt(value * (1 - value) / n)), n=n)
    report(suite, digest, BASE - 1.0, reward_accuracy=score)
    return convergence.reason(lineage)


def test_a_player_that_cannot_tell_human_answers_has_nothing_to_learn(tmp_path):
    reason = with_accuracy(tmp_path, 0.5, 1000)
    assert (
        reason
        == "θ_2 tells human answers from its opponent's in 0.500 ± 0.016 of 1000 held-out pairs: no better than chance"
    )


@pytest.mark.parametrize(
    ("value", "n", "settings"),
    [
        (0.6, 1000, {}),  # it can
        (0.5, 200, {}),  # it may: .5 + 1.645 · .035 is above .55
        (0.0, 2, {}),  # two pairs show nothing, even if they agree
        (0.5, 1000, {"indifference": 0.0}),  # not configured
    ],
)
def test_chance_has_to_be_shown(tmp_path, value, n, settings):
    assert with_accuracy(tmp_path, value, n, **settings) is None


def test_a_converged_lineage_is_rejected_with_the_option_to_continue(tmp_path):
    with pytest.raises(ConfigError, match=r"lineage tale has converged \(.*\): .*spin next tale --anyway"):
        convergence.check(improving_lineage(tmp_path, 1.0, 1.0, 1.0))


def test_a_lineage_without_an_iteration_has_not_converged(tmp_path):
    assert convergence.reason(build_lineage(tmp_path, nlls=(BASE,))) is None
