"""Whether a lineage has converged: nightly runs ask this before and after they add an iteration.

There are two signs, which `nightly` in the configuration sets:

- None of the last n versions is better than the best version before them, by the gate's metric and beyond the 95 %
  interval of the paired difference. All are compared with the same version, so that small gains add up.
- The player prefers human answers to its opponent's no more often than chance. At the fixed point p_θ = p_data no
  player can tell them apart (theorem 5.2). The upper end of the interval counts, so that too few pairs are not a sign.
"""

from collections.abc import Sequence

import numpy as np

from spin_core.errors import ConfigError
from spin_core.leaderboard import board, gate
from spin_core.lineage.lineage import Lineage
from spin_core.store.records import EvalReport

_ONE_SIDED = 1.645
"""Standard errors above its mean that a normal variable exceeds with 5 % probability."""


def reason(lineage: Lineage) -> str | None:
    """Why another iteration would gain nothing; None if it might. Only finished iterations count."""
    head = len(lineage.records())
    return _no_gain(lineage, head) or _indistinguishable(lineage, head)


def check(lineage: Lineage) -> None:
    """Raise `ConfigError` if the lineage has converged."""
    if why := reason(lineage):
        raise ConfigError(
            f"lineage {lineage.name} has converged ({why}): to continue, use spin next {lineage.name} --anyway"
        )


def _no_gain(lineage: Lineage, head: int) -> str | None:
    """The reason, if none of the last `nightly.patience` versions up to θ_head gained anything."""
    patience = lineage.config.nightly.patience
    if not patience or head < patience:
        return None
    reports = {t: lineage.reports(t) for t in range(head + 1)}
    best, best_reports = gate.best(lineage.config, reports, head - patience)
    if any(is_better(lineage, reports[t], best_reports) for t in range(head - patience + 1, head + 1)):
        return None
    first, metric = head - patience + 1, gate.metric_of(lineage.config)
    which = f"θ_{head}" if patience == 1 else f"none of θ_{first} to θ_{head}"
    verb = "is not" if patience == 1 else "is"
    return f"{which} {verb} better than θ_{best} in {metric}, beyond chance"


def is_better(lineage: Lineage, reports: Sequence[EvalReport], before: Sequence[EvalReport]) -> bool:
    """Whether a version is better than one before by the gate's metric, beyond the 95 % interval of the difference."""
    low = gate.lead(lineage.config, reports, before).low
    return low is not None and low > 0


def _indistinguishable(lineage: Lineage, head: int) -> str | None:
    """The reason, if θ_head cannot tell human answers from those of the version it was trained against."""
    margin = lineage.config.nightly.indifference
    accuracy = board.scores(lineage.reports(head)).get("reward_accuracy") if head and margin else None
    if accuracy is None:
        return None
    # A few pairs that agree by chance have no spread: the error is at least that of a fair coin.
    stderr = max(accuracy.stderr or 0.0, 0.5 / float(np.sqrt(accuracy.n)))
    if accuracy.value + _ONE_SIDED * stderr >= 0.5 + margin:
        return None
    return (
        f"θ_{head} tells human answers from its opponent's in {board.format_score(accuracy)} of "
        f"{accuracy.n} held-out pairs: no better than chance"
    )
