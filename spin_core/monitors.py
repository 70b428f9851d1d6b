"""What a training run's numbers say about its health, and what to do about it.

Every monitor is a function of the rows of `metrics.jsonl`, so that a resumed run sees what an uninterrupted one sees.
"""

import math
from collections import deque
from collections.abc import Mapping

from spin_core.config import TrainConfig
from spin_core.errors import TrainingDiverged

WINDOW = 20
"""Steps over which a monitor looks, so that one odd batch does not set it off."""
SATURATED_ACCURACY = 0.99
EXPLODED_MARGIN = 20.0
"""A logistic loss of 2e-9: nothing is left to learn, and still the weights move."""
FALLEN_NATS = 1.0
"""How far the real responses' mean log-probability may fall below where it started."""
USUAL_BETA = 0.1


class Monitors:
    """Looks at one row after another. Each monitor speaks once a run, when it first fires."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.events: list[str] = []
        self._fired: set[str] = set()
        self._window: deque[Mapping[str, float]] = deque(maxlen=WINDOW)

    def see(self, row: Mapping[str, float]) -> list[str]:
        """The events that this row sets off, each one line that says what it means and what helps."""
        self._window.append(row)
        if "rewards/margins" not in row or len(self._window) < WINDOW:
            return []
        last = f"over the last {WINDOW} steps, to step {row['step']}"
        found = {}
        if min(r["rewards/accuracies"] for r in self._window) >= SATURATED_ACCURACY:
            found["saturated"] = (
                f"reward accuracy was at least {SATURATED_ACCURACY} {last}: the player tells real from generated "
                "without fail, and what it still learns may be no more than length or format; "
                "use fewer epochs or a smaller learning rate"
            )
        margin = self._mean("rewards/margins")
        if margin > EXPLODED_MARGIN:
            found["exploded"] = (
                f"the mean reward margin was {margin:.1f} {last}: the loss is flat there, and the player runs away "
                "from its opponent; use a smaller learning rate or a larger beta"
            )
        nats = self._mean("rewards/real") / self.beta
        if nats < -FALLEN_NATS:
            found["fallen"] = (
                f"log p of the real responses was {-nats:.1f} nats below its start {last}: the player wins by making "
                "the generated ones unlikely, not the real ones likely; use a smaller learning rate or a larger beta"
            )
        fresh = [event for name, event in found.items() if name not in self._fired]
        self._fired |= found.keys()
        self.events += fresh
        return fresh

    def _mean(self, name: str) -> float:
        return sum(row[name] for row in self._window) / len(self._window)


def check_finite(row: Mapping[str, float]) -> None:
    """Stop before a step is taken that would spoil the weights."""
    for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
        if not math.isfinite(row[name]):
            raise TrainingDiverged(
                f"the {what} of step {row['step']} is not finite, at learning rate {row['learning_rate']:.3g}: "
                "lower train.learning_rate, raise train.warmup or set train.max_grad_norm to 1; "
                "if it is the first step, look for damaged weights"
            )


def check_first_loss(loss: float, want: float, config: TrainConfig, beta: float, dtype: str) -> None:
    """Before the first step the player is its opponent, so the loss must be l(0) up to rounding.

    Log-probabilities of long responses differ by rounding when they ran beside other rows. The loss sees that
    difference times beta, so a beta above the usual one widens the tolerance.
    """
    tolerance = config.first_loss_tolerance * max(1.0, beta / USUAL_BETA) * (20 if dtype == "bfloat16" else 1)
    if not abs(loss - want) <= tolerance:
        raise TrainingDiverged(
            f"the first loss is {loss:.6f}, and must be {want:.6f} within {tolerance:.2g}, since the player starts as "
            "its opponent: the scores were made with other weights, other tokens or another precision; remove the "
            "iteration's scores folder and run again"
        )
