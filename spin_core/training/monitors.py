"""What a training run's numbers say about its health, and what to do about it.

Every monitor is a function of the rows of `metrics.jsonl`, so that a resumed run sees what an uninterrupted one sees.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median

from spin_core.config.train import MonitorsConfig, TrainConfig
from spin_core.errors import TrainingDiverged
from spin_core.store.records import Event
from spin_core.training.objective import Objective

LEAP = 3
"""Steps in a row whose gradient is far larger than before, until that is an event."""

LENGTHS = "length_correlation"

USUAL_BETA = 0.1

MEANS = {
    "warn": "",
    "stop": ": training ends here with the weights as they are, since train.monitors.{kind} is stop",
    "roll-back": ": training ends here with earlier weights, since train.monitors.{kind} is roll-back",
    "refuse": "; or set train.monitors.not_finite to roll-back",
}
"""What an action adds to what is said."""

OTHERS = (
    ", since the player starts as its opponent: the scores were made with other weights, other tokens or another "
    "precision; remove the iteration's scores folder and run again; rounding that is so large is let pass by "
    "train.first_loss_tolerance"
)
"""What it means that player and opponent do not begin alike."""


class Monitors:
    """Looks at one row after another. Each monitor acts once a run, when it first fires."""

    def __init__(self, config: MonitorsConfig, objective: Objective) -> None:
        self.config, self.beta = config, objective.beta
        self._starts_at_zero = objective.first_loss is not None
        self._start: list[float] = []
        self._fired: set[str] = set()
        self._rows: deque[Mapping[str, float]] = deque(maxlen=config.window + LEAP)

    def see(self, row: Mapping[str, float]) -> list[Event]:
        """The events that this row sets off."""
        self._rows.append(row)
        if len(self._start) < self.config.window and "rewards/real" in row:
            self._start.append(row["rewards/real"])
        fresh = []
        for kind, said in self._found(row):
            action = getattr(self.config, kind)
            if kind not in self._fired and action != "off":
                message = said + MEANS[action].format(kind=kind)
                fresh.append(Event(kind=kind, step=int(row["step"]), message=message, action=action))
            self._fired.add(kind)
        return fresh

    def _found(self, row: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Kind and meaning of everything that is out of order now."""
        config, window = self.config, list(self._rows)[-self.config.window :]
        for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
            if not math.isfinite(row[name]):
                yield (
                    "not_finite",
                    f"the {what} of step {row['step']:.0f} is not finite, at learning rate {row['learning_rate']:.3g}: "
                    "lower train.learning_rate, raise train.warmup or set train.max_grad_norm to 1; "
                    "if it is the first step, look for damaged weights",
                )
                return
        before, now = list(self._rows)[:-LEAP], list(self._rows)[-LEAP:]
        if len(before) == config.window:
            usual, least = median(r["grad_norm"] for r in before), min(r["grad_norm"] for r in now)
            if least > config.gradient_factor * usual:
                yield (
                    "gradient",
                    f"the gradient's norm was at least {least:.3g} in {LEAP} steps running, to step {row['step']:.0f}, "
                    f"and {usual:.3g} in the {config.window} steps before: the weights are leaving the region where "
                    "learning is smooth; use a smaller learning rate, or a longer train.warmup",
                )
        if "rewards/margins" not in row or len(window) < config.window:
            return
        last = f"over the last {config.window} steps, to step {row['step']:.0f}"
        if min(r["rewards/accuracies"] for r in window) >= config.saturated_accuracy:
            yield (
                "saturated",
                f"reward accuracy was at least {config.saturated_accuracy} {last}: the player tells real from "
                "generated without fail, and what it still learns may be no more than length or format; "
                "use fewer epochs or a smaller learning rate",
            )
        margin = mean(window, "rewards/margins")
        if margin > config.exploded_margin:
            yield (
                "exploded",
                f"the mean reward margin was {margin:.1f} {last}: the loss is flat there, and the player runs away "
                "from its opponent; use a smaller learning rate or a larger beta",
            )
        # Where the reference is not the opponent, rewards do not start at zero.
        start = 0.0 if self._starts_at_zero else fmean(self._start)
        nats = (mean(window, "rewards/real") - start) / self.beta
        if nats < -config.fallen_nats:
            yield (
                "fallen",
                f"log p of the real responses was {-nats:.1f} nats below its start {last}: the player wins by making "
                "the generated ones unlikely, not the real ones likely; use a smaller learning rate, a larger beta "
                "or train.nll_weight",
            )
        if all(LENGTHS in r for r in window):
            correlation = mean(window, LENGTHS)
            if abs(correlation) > config.length_correlation:
                longer = "longer" if correlation > 0 else "shorter"
                yield (
                    "length",
                    f"the correlation of a pair's reward margin with its difference in length was {correlation:.2f} "
                    f"{last}: the player learns that real responses are {longer}, more than what they say; look at "
                    "the length classifier's score, cap both sides alike with generate.max_new_tokens, or set "
                    "pairs.drop_cut",
                )


def mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """A metric's mean over rows."""
    return fmean(row[name] for row in rows)


def events_of(rows: Sequence[Mapping[str, float]], config: MonitorsConfig, objective: Objective) -> list[Event]:
    """All that monitors saw in a run."""
    monitors = Monitors(config, objective)
    return [event for row in rows for event in monitors.see(row)]


def ending(events: Sequence[Event]) -> Event | None:
    """The event of these that ends training early, `roll-back` before `stop`; None if none does."""
    for action in ("refuse", "roll-back", "stop"):
        for event in events:
            if event.action == action:
                return event
    return None


def check_first_loss(
    row: Mapping[str, float], apart: float | None, objective: Objective, config: TrainConfig, dtype: str
) -> None:
    """Before the first step the player is its opponent, so both give each response the same log p, but for rounding.

    `apart` is `Objective.apart`; None where the reference is not the opponent. The loss must be l(0) too. It sees a
    difference of log p times beta, so a beta above the usual one widens its tolerance, and nothing else's.
    """
    tolerance = config.first_loss_tolerance * (20 if dtype == "bfloat16" else 1)
    if apart is not None and not apart <= tolerance:
        raise TrainingDiverged(
            f"before the first step player and opponent are {apart:.2g} nats a token apart, and may be {tolerance:.2g}"
            f"{OTHERS}"
        )
    want, loss = objective.first_loss, objective.game_loss(row)
    tolerance *= max(1.0, objective.beta / USUAL_BETA)
    if want is not None and not abs(loss - want) <= tolerance:
        raise TrainingDiverged(f"the first loss is {loss:.6f}, and must be {want:.6f} within {tolerance:.2g}{OTHERS}")
