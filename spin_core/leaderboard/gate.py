"""The gate: whether the player θ_{t+1} becomes the next opponent, after its evaluation.

The gate reads one score, `gate.metric`, or `evaluate.main_metric` if that is empty: a task's score or an average. The
player fails if it is worse than the best version before it by more than `gate.tolerance` standard errors of the paired
difference. `gate.rule` says what happens then.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.evaluation import suites
from spin_core.evaluation.statistics import NORMAL
from spin_core.leaderboard.board import averages, difference, items, scores
from spin_core.store.records import EvalReport, GateDecision, Score

SELF_PLAY = (
    *("heldout_nll", "generated_tokens", "length_classifier", "text_classifier", "distinct_1", "distinct_2"),
    *("distinct_3", "repeated_trigrams", "looping_share", "cut_share", "empty_share"),
)
"""Scores of the suite `self-play` that every version has, and by which one version can be better than another.

Rewards are not among them, because θ_0 has no opponent. Neither is the length of the human responses.
"""

EXACT = ("total_variation", "invalid_mass", "forward_kl")
"""The scores of `evaluate.exact`."""


def check_metrics(config: RunConfig) -> None:
    """Raise `ConfigError` if the gate's metric, or the main one, is not a score that every version will have."""
    evaluate = config.evaluate
    own = [*(SELF_PLAY if evaluate.self_play else ()), *(EXACT if evaluate.exact else ())]
    names = list(dict.fromkeys([*own, *evaluate.suites, *suites.score_names(evaluate)]))
    groups = tuple(f"{name}_" for name in names if name.removesuffix("-quick") in suites.FEW_OF)
    for setting, metric in (("evaluate.main_metric", evaluate.main_metric), ("gate.metric", config.gate.metric)):
        # Another metric of a task is called task/metric. The tasks of a group begin with the group's name.
        if metric and metric.split("/")[0] not in names and not metric.startswith(groups):
            fix = (
                f"choose one of {', '.join(names)}"
                if names
                else "set evaluate.self_play, or name evaluate.lm_eval.tasks or evaluate.suites"
            )
            raise ConfigError(f"{setting} {metric!r} is not a score that every version has, better or worse: {fix}")


def metric_of(config: RunConfig) -> str:
    """The name of the score that the gate reads."""
    return config.gate.metric or config.evaluate.main_metric


def score_of(config: RunConfig, reports: Sequence[EvalReport]) -> Score:
    """The gate's score of one version. Raises `ConfigError` if no suite gives it."""
    by_name = scores(reports)
    metric = metric_of(config)
    if metric not in by_name:
        setting = "gate.metric" if config.gate.metric else "evaluate.main_metric"
        raise ConfigError(f"{setting} is {metric!r}, which no suite gives: choose one of {', '.join(sorted(by_name))}")
    return by_name[metric]


def best(config: RunConfig, reports: Mapping[int, Sequence[EvalReport]], upto: int) -> tuple[int, Sequence[EvalReport]]:
    """The best of θ_0 … θ_upto by the gate's score, with its reports. Of equal versions it is the earliest."""
    merits = {t: _merit(config, score_of(config, reports[t])) for t in range(upto + 1)}
    t = max(merits, key=lambda t: (merits[t], -t))
    return t, reports[t]


def _merit(config: RunConfig, score: Score) -> float:
    """How good a score is: higher is better. Raises `ConfigError` if the score has no better and worse."""
    merit = score.merit()
    if merit is None:
        raise ConfigError(
            f"{metric_of(config)} is neither better nor worse where it is higher: set gate.metric to another score"
        )
    return merit


class Lead(NamedTuple):
    """The difference between two versions by the gate's score."""

    delta: float
    """The difference of the values."""
    gain: float
    """How much better the first version is."""
    stderr: float | None
    """The gain's standard error; None if it is not known."""
    low: float | None
    """The lower end of the gain's 95 % interval; None if it is not known."""


def lead(config: RunConfig, reports: Sequence[EvalReport], before: Sequence[EvalReport]) -> Lead:
    """How much better a version is than one before it.

    The standard error is that of the paired difference, or of the difference of means if single items are not known.
    """
    score, other, metric = score_of(config, reports), score_of(config, before), metric_of(config)
    pair = difference(metric, items(reports), items(before), averages(reports))
    delta = pair.mean if pair else score.value - other.value
    errors = [version.stderr for version in (score, other) if version.stderr is not None]
    unpaired = math.hypot(*errors) if len(errors) == 2 else None
    stderr = pair.stderr if pair else unpaired
    ends = pair.interval() if pair else _interval(delta, unpaired)
    target = score.target
    if target is not None and min(score.value, other.value) < target < max(score.value, other.value):
        # The values are on opposite sides of the target, so their distances to it are compared. The gain depends on the
        # sum of both values, in which the common errors that pairing cancels add up: both errors count in full.
        gain = abs(other.value - target) - abs(score.value - target)
        stderr = sum(errors) if len(errors) == 2 else None
        ends = _interval(gain, stderr)
        return Lead(delta, gain, stderr, ends and ends[0])
    _merit(config, score)  # raises an error for a score without better and worse
    rising = score.higher_is_better if target is None else max(score.value, other.value) <= target
    gain, low = (delta, ends and ends[0]) if rising else (-delta, ends and -ends[1])
    return Lead(delta, gain, stderr, low)


def _interval(value: float, stderr: float | None) -> tuple[float, float] | None:
    """The 95 % interval of a normally distributed value; None if its standard error is not known."""
    return None if stderr is None else (value - NORMAL * stderr, value + NORMAL * stderr)


def decide(
    config: RunConfig, *, candidate: tuple[int, Sequence[EvalReport]], best: tuple[int, Sequence[EvalReport]]
) -> GateDecision:
    """Decide which version is the next opponent: the candidate, the best version so far, or none (stop).

    A candidate whose error is not known, as with a single item, passes.

    Args:
        config: The run's settings.
        candidate: The number and the reports of the new version.
        best: Those of the best version before it.
    """
    gate, metric = config.gate, metric_of(config)
    t, reports = candidate
    best_t, best_reports = best
    score, other = score_of(config, reports), score_of(config, best_reports)
    delta, gain, stderr, _ = lead(config, reports, best_reports)
    error = "of unknown error" if stderr is None else f"± {stderr:.2g}"
    comparison = f"{metric} {score.value:.4g} against {other.value:.4g} of θ_{best_t} (difference {delta:+.3g} {error}"
    comparison += ")" if score.target is None else f"; best is {score.target:.4g}, as the human responses have it)"
    measured = {"metric": metric, "delta": delta, "stderr": stderr}
    if gate.rule == "always":
        return GateDecision(outcome="promote", reason="the gate is always open", next_opponent=t, **measured)
    if stderr is None or gain >= -gate.tolerance * stderr:
        return GateDecision(
            outcome="promote", reason=f"θ_{t} is the next opponent: {comparison}", next_opponent=t, **measured
        )
    if gate.rule == "best":
        reason = f"θ_{best_t} is the opponent again: {comparison}"
        return GateDecision(outcome="keep-best", reason=reason, next_opponent=best_t, **measured)
    return GateDecision(outcome="stop", reason=f"stopped: {comparison}", next_opponent=best_t, **measured)
