"""Monitors: conditions on a training's metrics that warn or end it.

Every monitor is a function of the rows of `metrics.jsonl`, so a resumed training sees the same as an uninterrupted one.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from spin_core.config.train import MonitorsConfig, TrainConfig
from spin_core.errors import TrainingDiverged
from spin_core.store.records import Event
from spin_core.training.objective import Objective

LEAP = 3
"""How many steps in a row must have a far larger gradient than before."""

_LENGTHS = "length_correlation"

_USUAL_BETA = 0.1
"""The beta for which `train.first_loss_tolerance` is meant."""

_ACTION_TEXTS = {
    "warn": "",
    "stop": ": training ends here with the weights as they are, since train.monitors.{kind} is stop",
    "roll-back": ": training ends here with earlier weights, since train.monitors.{kind} is roll-back",
    "refuse": "; or set train.monitors.not_finite to roll-back",
}
"""What an action adds to the message."""

_CAUSE = (
    ", since the player starts as its opponent: the scores were made with other weights, other tokens or another "
    "precision; remove the iteration's scores folder and run again; if it is rounding, raise "
    "train.first_loss_tolerance"
)
"""Why player and opponent may differ before the first step, and the fix."""


class Monitors:
    """The monitors of one training, which gets its rows in order. Each acts once, when its condition first holds."""

    def __init__(self, config: MonitorsConfig, objective: Objective) -> None:
        self.config, self.beta = config, objective.beta
        self._starts_at_zero = objective.first_loss is not None
        self._start: list[float] = []
        self._fired: set[str] = set()
        self._rows: deque[Mapping[str, float]] = deque(maxlen=config.window + LEAP)

    def check(self, row: Mapping[str, float]) -> list[Event]:
        """The new events at this row."""
        self._rows.append(row)
        if len(self._start) < self.config.window and "rewards/real" in row:
            self._start.append(row["rewards/real"])
        events = []
        for kind, text in self._messages(row).items():
            action = getattr(self.config, kind)
            if kind not in self._fired and action != "off":
                message = text + _ACTION_TEXTS[action].format(kind=kind)
                events.append(Event(kind=kind, step=int(row["step"]), message=message, action=action))
            self._fired.add(kind)
        return events

    def _messages(self, row: Mapping[str, float]) -> dict[str, str]:
        """The message of every condition that holds at this row, by its monitor."""
        if message := _not_finite(row):
            return {"not_finite": message}
        messages = {"gradient": self._gradient(row)}
        window = list(self._rows)[-self.config.window :]
        if "rewards/margins" in row and len(window) == self.config.window:
            last = f"over the last {self.config.window} steps, to step {row['step']:.0f}"
            messages |= {
                "saturated": self._saturated(window, last),
                "exploded": self._exploded(window, last),
                "fallen": self._fallen(window, last),
                "length": self._length(window, last),
            }
        return {kind: message for kind, message in messages.items() if message}

    # Each of these returns its message, or an empty text if its condition does not hold.

    def _gradient(self, row: Mapping[str, float]) -> str:
        config, before, now = self.config, list(self._rows)[:-LEAP], list(self._rows)[-LEAP:]
        if len(before) < config.window:
            return ""
        usual, least = median(r["grad_norm"] for r in before), min(r["grad_norm"] for r in now)
        if least <= config.gradient_factor * usual:
            return ""
        return (
            f"the gradient's norm was at least {least:.3g} in {LEAP} steps in a row, to step {row['step']:.0f}, and "
            f"{usual:.3g} in the {config.window} steps before: the weights are leaving the region where learning is "
            "smooth; use a smaller learning rate, or a longer train.warmup"
        )

    def _saturated(self, window: Sequence[Mapping[str, float]], last: str) -> str:
        if min(r["rewards/accuracies"] for r in window) < self.config.saturated_accuracy:
            return ""
        return (
            f"reward accuracy was at least {self.config.saturated_accuracy} {last}: the player always distinguishes "
            "real from generated, and may now learn only length or format; use fewer epochs or a smaller learning rate"
        )

    def _exploded(self, window: Sequence[Mapping[str, float]], last: str) -> str:
        margin = _mean(window, "rewards/margins")
        if margin <= self.config.exploded_margin:
            return ""
        return (
            f"the mean reward margin was {margin:.1f} {last}: the loss is flat there, and the player moves away "
            "from its opponent; use a smaller learning rate or a larger beta"
        )

    def _fallen(self, window: Sequence[Mapping[str, float]], last: str) -> str:
        # Where the reference is not the opponent, rewards do not start at zero.
        start = 0.0 if self._starts_at_zero else fmean(self._start)
        nats = (_mean(window, "rewards/real") - start) / self.beta
        if nats >= -self.config.fallen_nats:
            return ""
        return (
            f"log p of the real responses was {-nats:.1f} nats below its start {last}: the player wins by making the "
            "generated ones unlikely, not the real ones likely; use a smaller learning rate, a larger beta or "
            "train.nll_weight"
        )

    def _length(self, window: Sequence[Mapping[str, float]], last: str) -> str:
        if not all(_LENGTHS in r for r in window):
            return ""
        correlation = _mean(window, _LENGTHS)
        if abs(correlation) <= self.config.length_correlation:
            return ""
        longer = "longer" if correlation > 0 else "shorter"
        return (
            f"the correlation of a pair's reward margin with its difference in length was {correlation:.2f} {last}: "
            f"the player learns that real responses are {longer}, more than what they say; look at the length "
            "classifier's score, use the same limit on both sides: generate.max_new_tokens, or set pairs.drop_cut"
        )


def _not_finite(row: Mapping[str, float]) -> str:
    """Which of loss and gradient is not finite, and what may help; empty if both are."""
    for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
        if not math.isfinite(row[name]):
            return (
                f"the {what} of step {row['step']:.0f} is not finite, at learning rate {row['learning_rate']:.3g}: "
                "lower train.learning_rate, raise train.warmup or set train.max_grad_norm to 1; if it is the first "
                "step, look for damaged weights"
            )
    return ""


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """A metric's mean over rows."""
    return fmean(row[name] for row in rows)


def events_of(rows: Sequence[Mapping[str, float]], config: MonitorsConfig, objective: Objective) -> list[Event]:
    """The events of a whole training, from its rows of metrics."""
    monitors = Monitors(config, objective)
    return [event for row in rows for event in monitors.check(row)]


def ending(events: Sequence[Event]) -> Event | None:
    """The event that ends the training, by the strongest action: `refuse`, `roll-back`, `stop`; None if none does."""
    for action in ("refuse", "roll-back", "stop"):
        for event in events:
            if event.action == action:
                return event
    return None


def check_first_loss(
    row: Mapping[str, float], distance: float | None, objective: Objective, config: TrainConfig, dtype: str
) -> None:
    """Check that player and opponent are equal before the first step, up to rounding.

    Both conditions are checked: the distance is 0, and the loss is l(0). In the loss a difference of log p counts times
    beta, so a beta above the usual one widens the tolerance of the loss, but not that of the distance.

    Args:
        row: The metrics of the first step.
        distance: `Objective.distance`; None where the reference is not the opponent.
        objective: The loss.
        config: Has the tolerance, for float32; bfloat16 gets 20 times as much.
        dtype: The precision of the weights.

    Raises:
        TrainingDiverged: One of the two is off by more than the tolerance, or is NaN.
    """
    tolerance = config.first_loss_tolerance * (20 if dtype == "bfloat16" else 1)
    if distance is not None and not distance <= tolerance:
        raise TrainingDiverged(
            f"before the first step player and opponent are {distance:.2g} nats a token apart, and may be "
            f"{tolerance:.2g}{_CAUSE}"
        )
    expected, loss = objective.first_loss, objective.loss_without_nll(row)
    tolerance *= max(1.0, objective.beta / _USUAL_BETA)
    if expected is not None and not abs(loss - expected) <= tolerance:
        raise TrainingDiverged(
            f"the first loss is {loss:.6f}, and must be {expected:.6f} within {tolerance:.2g}{_CAUSE}"
        )
