"""The gate: after its evaluation, does the player θ_{t+1} become the next opponent?

It looks at one score, `gate.metric`, or `evaluate.main_metric` where that is empty: a task's, or an average. The player
falls if it is worse than the best version before it by more than `gate.tolerance` standard errors of the paired
difference. `gate.rule` says what then happens.
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
"""Scores of the suite `self-play` that every version has, and by which one can be better than another.

Rewards are not among them: θ_0 has no opponent. Nor is the length of the human responses.
"""

EXACT = ("total_variation", "invalid_mass", "forward_kl")


def check_metrics(config: RunConfig) -> None:
    """Raise `ConfigError` if the gate's metric, or the main one, is none that every version will have."""
    evaluate = config.evaluate
    own = [*(SELF_PLAY if evaluate.self_play else ()), *(EXACT if evaluate.exact else ())]
    known = list(dict.fromkeys([*own, *evaluate.suites, *suites.score_names(evaluate)]))
    groups = tuple(f"{name}_" for name in known if name.removesuffix("-quick") in suites.FEW_OF)
    for setting, metric in (("evaluate.main_metric", evaluate.main_metric), ("gate.metric", config.gate.metric)):
        # A second metric follows its task's name; the tasks of a group bear the group's.
        if metric and metric.split("/")[0] not in known and not metric.startswith(groups):
            cure = (
                f"choose one of {', '.join(known)}"
                if known
                else "set evaluate.self_play, or name evaluate.lm_eval.tasks or evaluate.suites"
            )
            raise ConfigError(f"{setting} {metric!r} is no score that every version will have, better or worse: {cure}")


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
    merits = {t: merit(config, score_of(config, reports[t])) for t in range(upto + 1)}
    t = max(merits, key=lambda t: (merits[t], -t))
    return t, reports[t]


def merit(config: RunConfig, score: Score) -> float:
    """How good a score is. `ConfigError` if it tells nothing of better and worse."""
    found = score.merit()
    if found is None:
        raise ConfigError(
            f"{metric_of(config)} is neither better nor worse where it is higher: set gate.metric to another score"
        )
    return found


class Lead(NamedTuple):
    """What one version has over another, by the gate's score."""

    delta: float
    """Of the values themselves."""
    gain: float
    """By how much it is better."""
    stderr: float | None
    """The gain's standard error; None where it is not known."""
    low: float | None
    """The lower end of the gain's 95 % interval; None where that is not known."""


def lead(config: RunConfig, reports: Sequence[EvalReport], before: Sequence[EvalReport]) -> Lead:
    """What a version has over one before it.

    Where single items are not known, the standard error is that of the difference of means.
    """
    score, other, metric = score_of(config, reports), score_of(config, before), metric_of(config)
    pair = difference(metric, items(reports), items(before), averages(reports))
    delta = pair.mean if pair else score.value - other.value
    errors = [one.stderr for one in (score, other) if one.stderr is not None]
    apart = math.hypot(*errors) if len(errors) == 2 else None
    stderr = pair.stderr if pair else apart
    ends = pair.interval() if pair else around(delta, apart)
    target = score.target
    if target is not None and min(score.value, other.value) < target < max(score.value, other.value):
        # On both sides of the best value it is their sum that counts, and what pairing cancels adds up in it.
        gain = abs(other.value - target) - abs(score.value - target)
        stderr = sum(errors) if len(errors) == 2 else None
        ends = around(gain, stderr)
        return Lead(delta, gain, stderr, ends and ends[0])
    merit(config, score)  # or there is nothing to be told
    rising = score.higher_is_better if target is None else max(score.value, other.value) <= target
    gain, low = (delta, ends and ends[0]) if rising else (-delta, ends and -ends[1])
    return Lead(delta, gain, stderr, low)


def around(value: float, stderr: float | None) -> tuple[float, float] | None:
    """The 95 % interval of a value whose error is that of a normal distribution; None where it is not known."""
    return None if stderr is None else (value - NORMAL * stderr, value + NORMAL * stderr)


def decide(
    config: RunConfig, *, candidate: tuple[int, Sequence[EvalReport]], best: tuple[int, Sequence[EvalReport]]
) -> GateDecision:
    """Whether the candidate plays next, or the best version so far, or nobody.

    A fall whose error is not known, as that of a single item, shows nothing.
    """
    gate, metric = config.gate, metric_of(config)
    t, reports = candidate
    best_t, best_reports = best
    score, other = score_of(config, reports), score_of(config, best_reports)
    delta, gain, stderr, _ = lead(config, reports, best_reports)
    error = "of unknown error" if stderr is None else f"± {stderr:.2g}"
    said = f"{metric} {score.value:.4g} against {other.value:.4g} of θ_{best_t} (difference {delta:+.3g} {error}"
    said += ")" if score.target is None else f"; best is {score.target:.4g}, as the human responses have it)"
    measured = {"metric": metric, "delta": delta, "stderr": stderr}
    if gate.rule == "always":
        return GateDecision(outcome="promote", reason="the gate is always open", next_opponent=t, **measured)
    if stderr is None or gain >= -gate.tolerance * stderr:
        return GateDecision(outcome="promote", reason=f"θ_{t} plays next: {said}", next_opponent=t, **measured)
    if gate.rule == "best":
        reason = f"θ_{best_t} plays again: {said}"
        return GateDecision(outcome="keep-best", reason=reason, next_opponent=best_t, **measured)
    return GateDecision(outcome="stop", reason=f"stopped: {said}", next_opponent=best_t, **measured)
