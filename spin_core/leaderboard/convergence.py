"""Has the game converged? What the nights ask before they play, and after.

Two signs, as `nightly` in the configuration sets them:

- none of the last n versions is better than the best before them, by the gate's metric, beyond the 95 % interval of
  the paired difference. The versions are held against one and the same, so that small gains add up;
- the player prefers human answers to its opponent's no more often than by tossing a coin: at the fixed point
  p_θ = p_data nobody can (theorem 5.2). That it cannot has to be shown: the upper end of the interval counts.
"""

from collections.abc import Sequence

import numpy as np

from spin_core.errors import ConfigError
from spin_core.leaderboard import board, gate
from spin_core.lineage.lineage import Lineage
from spin_core.store.records import EvalReport

ONE_SIDED = 1.645
"""Standard errors to one side beyond which a value lies with 5 % probability."""


def reason(game: Lineage) -> str | None:
    """Why nothing is to be gained by another iteration; None while there may be.

    Only finished iterations count.
    """
    head = len(game.records())
    return no_gain(game, head) or indistinguishable(game, head)


def check(game: Lineage) -> None:
    """Raise `ConfigError` if the game has converged."""
    if why := reason(game):
        raise ConfigError(
            f"lineage {game.name} has converged ({why}): to play on all the same, use spin next {game.name} --anyway"
        )


def no_gain(game: Lineage, head: int) -> str | None:
    """Whether none of the last `nightly.patience` versions up to θ_head gained anything."""
    patience = game.config.nightly.patience
    if not patience or head < patience:
        return None
    reports = {t: game.reports(t) for t in range(head + 1)}
    best, best_reports = gate.best(game.config, reports, head - patience)
    if any(gained(game, reports[t], best_reports) for t in range(head - patience + 1, head + 1)):
        return None
    first, metric = head - patience + 1, gate.metric_of(game.config)
    which = f"θ_{head}" if patience == 1 else f"none of θ_{first} to θ_{head}"
    verb = "is not" if patience == 1 else "is"
    return f"{which} {verb} better than θ_{best} in {metric}, beyond chance"


def gained(game: Lineage, reports: Sequence[EvalReport], before: Sequence[EvalReport]) -> bool:
    """Whether a version is better than another by the gate's metric, and 0 is outside the difference's interval."""
    low = gate.lead(game.config, reports, before).low
    return low is not None and low > 0


def indistinguishable(game: Lineage, head: int) -> str | None:
    """Whether θ_head can be shown not to tell human answers from those of the version it was trained against."""
    margin = game.config.nightly.indifference
    accuracy = board.scores(game.reports(head)).get("reward_accuracy") if head and margin else None
    if accuracy is None:
        return None
    # A few pairs that agree by luck show nothing.
    stderr = max(accuracy.stderr or 0.0, 0.5 / float(np.sqrt(accuracy.n)))
    if accuracy.value + ONE_SIDED * stderr >= 0.5 + margin:
        return None
    return (
        f"θ_{head} tells human answers from its opponent's in {board.format_score(accuracy)} of "
        f"{accuracy.n} held-out pairs: no better than chance"
    )
