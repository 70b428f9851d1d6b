"""The gate: after its evaluation, does the player θ_{t+1} become the next opponent?

It looks at one score, `gate.metric`, or `evaluate.main_metric` where that is empty: a task's, or an average. The player
falls if it is worse than the best version before it by more than `gate.tolerance` standard errors of the paired
difference. `gate.rule` says what then happens.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from spin_core import suites
from spin_core.board import averages, difference, items, scores
from spin_core.config import RunConfig
from spin_core.errors import ConfigError
from spin_core.records import EvalReport, GateDecision, Score

SELF_PLAY = (
    *("heldout_nll", "real_tokens", "generated_tokens", "length_classifier", "text_classifier", "distinct_1"),
    *("distinct_2", "distinct_3", "repeated_trigrams", "looping_share", "cut_share", "empty_share"),
)
"""Scores of the suite `self-play` that every version has. Rewards are not among them: θ_0 has no opponent."""
EXACT = ("total_variation", "invalid_mass", "forward_kl")


def check_metrics(config: RunConfig) -> None:
    """Raise `ConfigError` if the gate's metric, or the main one, is none that every version will have."""
    evaluate = config.evaluate
    own = [*(SELF_PLAY if evaluate.self_play else ()), *(EXACT if evaluate.exact else ())]
    known = list(dict.fromkeys([*own, *evaluate.suites, *suites.score_names(evaluate)]))
    groups = tuple(f"{name}_" for name in suites.FEW_OF if name in known)
    for setting, metric in (("evaluate.main_metric", evaluate.main_metric), ("gate.metric", config.gate.metric)):
        # A second metric follows its task's name; the tasks of a group bear the group's.
        if metric and metric.split("/")[0] not in known and not metric.startswith(groups):
            cure = (
                f"choose one of {', '.join(known)}"
                if known
                else "set evaluate.self_play, or name evaluate.lm_eval.tasks or evaluate.suites"
            )
            raise ConfigError(f"{setting} {metric!r} is no score that every version will have: {cure}")


def metric_of(config: RunConfig) -> str:
    """The score that the gate looks at."""
    return config.gate.metric or config.evaluate.main_metric


def score_of(config: RunConfig, reports: Sequence[EvalReport]) -> Score:
    """The gate's score of one version. `ConfigError` if no suite gives it."""
    found = scores(reports)
    metric = metric_of(config)
    if metric not in found:
        setting = "gate.metric" if config.gate.metric else "evaluate.main_metric"
        raise ConfigError(f"{setting} is {metric!r}, which no suite gives: choose one of {', '.join(sorted(found))}")
    return found[metric]


def best(config: RunConfig, reports: Mapping[int, Sequence[EvalReport]], upto: int) -> tuple[int, Sequence[EvalReport]]:
    """The best of θ_0 … θ_upto by the gate's score, the earliest of equals."""

    def merit(t: int) -> float:
        score = score_of(config, reports[t])
        return score.value if score.higher_is_better else -score.value

    t = max(range(upto + 1), key=lambda t: (merit(t), -t))
    return t, reports[t]


def decide(
    config: RunConfig, *, candidate: tuple[int, Sequence[EvalReport]], best: tuple[int, Sequence[EvalReport]]
) -> GateDecision:
    """Whether the candidate plays next, or the best version so far, or nobody.

    Where single items are not known, the standard error is that of the difference of means.
    """
    gate, metric = config.gate, metric_of(config)
    t, reports = candidate
    best_t, best_reports = best
    score, other = score_of(config, reports), score_of(config, best_reports)
    pair = difference(metric, items(reports), items(best_reports), averages(reports))
    delta, stderr = pair[:2] if pair else (score.value - other.value, float(np.hypot(score.stderr, other.stderr)))
    gain = delta if score.higher_is_better else -delta
    said = (
        f"{metric} {score.value:.4g} against {other.value:.4g} of θ_{best_t} (difference {delta:+.3g} ± {stderr:.2g})"
    )
    measured = {"metric": metric, "delta": delta, "stderr": stderr}
    if gate.rule == "always":
        return GateDecision(outcome="promote", reason="the gate is always open", next_opponent=t, **measured)
    if gain >= -gate.tolerance * stderr:
        return GateDecision(outcome="promote", reason=f"θ_{t} plays next: {said}", next_opponent=t, **measured)
    if gate.rule == "best":
        reason = f"θ_{best_t} plays again: {said}"
        return GateDecision(outcome="keep-best", reason=reason, next_opponent=best_t, **measured)
    return GateDecision(outcome="stop", reason=f"stopped: {said}", next_opponent=best_t, **measured)
