"""The frontier in words and tables, which all pages and the command line share."""

from spin_core.leaderboard.board import Board, decimals, format_score, places, signed
from spin_core.leaderboard.frontier import Frontier, FrontierRow, Gap


def header(frontier: Frontier) -> list[str]:
    """The titles of the columns."""
    x, y = _name(frontier.diversity), _name(frontier.quality)
    return [
        f"at temperature {frontier.temperature:g}",
        f"{x} {'↑' if frontier.more_is_diverse else '↓'}",
        f"{y} ↓",
        f"{y} from θ_0 at equal {x}",
        f"{x} from θ_0 at equal {y}",
    ]


def cells(row: FrontierRow) -> list[str]:
    """A row of the table."""
    return [
        row.name,
        format_score(row.diversity),
        format_score(row.quality),
        format_gap(row.quality_gap),
        format_gap(row.diversity_gap),
    ]


def control_header(frontier: Frontier) -> list[str]:
    """The titles of the columns of the comparison with controls."""
    return ["", *(curve.name for curve in frontier.curves if curve.t is None)]


def control_rows(frontier: Frontier) -> list[list[str]]:
    """Each version's difference from the curve of each control; empty without controls."""
    controls = control_header(frontier)[1:]
    rows = [row for row in frontier.rows if row.control_gaps]
    return [[row.name, *(format_gap(row.control_gaps.get(control)) for control in controls)] for row in rows]


def control_title(frontier: Frontier) -> str:
    """The title of that table."""
    return f"{_name(frontier.quality)} from the curve of each control at equal {_name(frontier.diversity)}"


def axes(frontier: Frontier) -> str:
    """The title of the plot."""
    return f"{_name(frontier.quality)} and {_name(frontier.diversity)} over temperatures {_range(frontier)}"


def tooltip(gap: Gap) -> str:
    """The interval of a difference, and the temperature of the curve."""
    digits = decimals(gap.stderr)
    interval = (
        "" if gap.low is None or gap.high is None else f"[{signed(gap.low, digits)}, {signed(gap.high, digits)}], "
    )
    return f"{interval}at temperature {gap.temperature:.2f} of the curve"


def format_gap(gap: Gap | None) -> str:
    """`-0.0051 ± 0.0014 *`: a difference from a curve with its error; `*` if it is significant."""
    if gap is None:
        return "–"
    digits = decimals(gap.stderr)
    star, shown = (" *", max(digits, places(gap.delta))) if gap.verdict else ("", digits)
    return f"{gap.bound}{signed(gap.delta, shown)} ± {gap.stderr:.{digits}f}{star}"


def legend(frontier: Frontier) -> str:
    """How to read the table."""
    count = sum(row.quality_gap is not None for row in frontier.rows)
    better = f", but positive in {_name(frontier.diversity)}" if frontier.more_is_diverse else ""
    shown = (gap for row in frontier.rows for gap in (row.quality_gap, row.diversity_gap, *row.control_gaps.values()))
    bounded = any(gap is not None and gap.bound for gap in shown)
    return "; ".join(
        [
            f"from θ_0: the difference from θ_0's curve over temperatures {_range(frontier)}, where that has the same "
            f"value on the other axis; negative is better{better}",
            f"* the 95 % interval excludes 0, by bootstrap over {frontier.items:,} items and their curve",
            *([f"the intervals hold for all {count} models together"] if count > 1 else []),
            *(["≤ ≥ at most, at least: no temperature of the sweep has that value"] if bounded else []),
        ]
    )


def summary(board: Board) -> str:
    """The result for the version that the gate chose, or for the last one, in one line; empty if there is none."""
    frontier = board.frontier
    versions = [row for row in frontier.rows if row.quality_gap] if frontier else []
    versions = [row for row in versions if row.t is not None]
    if frontier is None or not versions:
        return ""
    row = next((row for row in versions if row.t == board.choice), versions[-1])
    gap, y, x = row.quality_gap, _name(frontier.quality), _name(frontier.diversity)
    assert gap is not None, "chosen for it"
    where = {"better": "is below", "worse": "is above", "": "is not significantly off"}[gap.verdict]
    digits = decimals(gap.stderr)
    interval = "" if gap.low is None or gap.high is None else f" [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]"
    delta = f"{gap.bound}{gap.delta:+.{digits}f}"
    text = f"{row.name} at temperature {frontier.temperature:g} {where} θ_0's curve over temperatures"
    text += f": {y} {delta}{interval} at equal {x}"
    if row.control_gaps:
        below = sum(gap.verdict == "better" for gap in row.control_gaps.values())
        text += f"; below the curves of {below} of {len(row.control_gaps)} controls"
    return text


def _range(frontier: Frontier) -> str:
    """`0.3 to 1.1`."""
    (base,) = (curve for curve in frontier.curves if curve.t == 0)
    return f"{base.points[0].temperature:g} to {base.points[-1].temperature:g}"


def _name(task: str) -> str:
    return task.replace("_", " ")
