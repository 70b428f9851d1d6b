"""Words and numbers that several reports and the command line share.

Imports neither numpy nor pyarrow, since `spin show` and `spin recipes` need neither.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from spin_core.lineage.lineage import Lineage
from spin_core.store.records import ResponseStatistics

if TYPE_CHECKING:
    from spin_core.leaderboard.board import Board

ARROWS = (
    "↑ higher is better; ↓ lower is better; → nearer to this value, the human responses', is better; no arrow: no "
    "direction is better"
)


def report_path(lineage: Lineage) -> Path:
    """The path of a lineage's report for a browser."""
    return lineage.root / "report.html"


def heading(board: "Board", task: str, suite: str = "") -> str:
    """A task's name with its arrow; in a suite's table without the suite's name: `turn-1` for `mt-bench/turn-1`."""
    scores = [row.scores[task] for row in (*board.rows, *board.controls) if task in row.scores]
    return task.removeprefix(f"{suite}/") + (arrow(scores[-1].higher_is_better, scores[-1].target) if scores else "")


def arrow(higher_is_better: bool | None, target: float | None) -> str:
    """The arrow after a score's name: ` ↑`, ` ↓`, ` →0.65` for a target, or nothing if no direction is better."""
    if target is not None:
        return f" →{target:.3g}"
    return "" if higher_is_better is None else " ↑" if higher_is_better else " ↓"


def share(count: int, whole: int) -> str:
    """`12 (2.4 %)`."""
    return f"{count:,} ({100 * count / max(1, whole):.1f} %)" if count else "0"


def middle(side: ResponseStatistics) -> str:
    """`14 (3 to 40)`: the median number of tokens, and the range without the outer twentieths."""
    if not side.quantiles:
        return "–"
    _, low, _, median, _, high, _ = side.quantiles
    return f"{median:,} ({low:,} to {high:,})"
