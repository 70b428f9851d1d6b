"""The plots of all pages: PNG for Prefect's pages, SVG with the page's own colours for the report.

Uses no global state of matplotlib, so that threads may draw.
"""

import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spin_core.evaluation.statistics import NORMAL
from spin_core.leaderboard.board import Board
from spin_core.leaderboard.frontier import Curve, Frontier, Gap
from spin_core.store.records import AnswerStatistics, IterationRecord

_DASHES = ((4, 2), (1, 1.6), (6, 2, 1, 2), (5, 1, 1, 1, 1, 1), (1, 4), (9, 3))
"""Dash patterns (stroke, gap, … in points) that distinguish lines."""

LINES: Sequence[Any] = tuple((0, dashes) for dashes in _DASHES)


@dataclass(frozen=True)
class Colours:
    """The colours of a plot."""

    ink: str
    soft: str
    line: str
    accent: str
    human: str
    iterations: tuple[str, ...]
    """One for each iteration; they repeat after the last."""


PAPER = Colours("#1f2937", "#6b7280", "#e5e7eb", "#2563eb", "#9ca3af", ("#2563eb",))

# Placeholders that `svg` replaces by the page's CSS variables; no plot uses these colours by chance.
PAGE = Colours("#010101", "#010102", "#010103", "#010104", "#010105", tuple(f"#0102{n:02x}" for n in range(10)))

VARIABLES = {
    **{getattr(PAGE, name): f"var(--{name})" for name in ("ink", "soft", "line", "accent", "human")},
    **{colour: f"var(--iteration-{n})" for n, colour in enumerate(PAGE.iterations)},
}


def scores(board: Board, task: str, colours: Colours, *, names: bool = True) -> Any:
    """A score over the versions with its 95 % interval; controls are horizontal lines.

    With `names`, a legend is next to the plot.
    """
    figure, axes = panel(colours, (7, 3.2) if names else (3.6, 2.3))
    points = [(row.t, row.scores[task]) for row in board.rows if task in row.scores and row.t is not None]
    for number, row in enumerate(board.controls):
        if task in row.scores:
            colour, style = (colours.soft, colours.human)[number // len(LINES) % 2], LINES[number % len(LINES)]
            axes.axhline(row.scores[task].value, color=colour, linestyle=style, linewidth=1, label=row.name)
    axes.errorbar(
        [t for t, _ in points],
        [score.value for _, score in points],
        yerr=[NORMAL * (score.stderr or 0.0) for _, score in points],
        color=colours.accent,
        marker="o",
        markersize=6 if names else 4,
        capsize=4 if names else 3,
        label="SPIN, 95 % interval",
    )
    axes.set_xticks([t for t, _ in points], [f"θ_{t}" for t, _ in points])
    axes.margins(x=0.08, y=0.12)
    if names:
        axes.set_ylabel(task.replace("_", " "), color=colours.ink, parse_math=False)
        axes.legend(frameon=False, fontsize=8, labelcolor=colours.ink, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def frontier(frontier: Frontier, colours: Colours) -> Any:
    """Curves over temperatures of θ_0 and the controls, and the versions at the temperature of use.

    A version's bar is the interval of its vertical distance from θ_0's curve, so it crosses the curve unless the two
    differ significantly.
    """
    figure, axes = panel(colours, (7, 3.6))
    controls = [curve for curve in frontier.curves if curve.t is None]
    for number, curve in enumerate(controls):
        colour, style = (colours.soft, colours.human)[number // len(LINES) % 2], LINES[number % len(LINES)]
        axes.plot(*_axes_of(curve), color=colour, linestyle=style, linewidth=1, label=curve.name)
    base = next(curve for curve in frontier.curves if curve.t == 0)
    axes.plot(*_axes_of(base), color=colours.ink, marker=".", markersize=6, linewidth=1.2, label="θ_0 by temperature")
    for point in (base.points[0], base.points[-1]):
        axes.annotate(f"{point.temperature:g}", (point.diversity, point.quality), xytext=(5, 4), **_label(colours.ink))
    versions = [row for row in frontier.rows if row.t is not None]
    axes.errorbar(
        [row.diversity.value for row in versions],
        [row.quality.value for row in versions],
        yerr=[_width_of(row.quality_gap) for row in versions],
        color=colours.accent,
        marker="o",
        markersize=5,
        capsize=3,
        elinewidth=1,
        label=f"SPIN at temperature {frontier.temperature:g}, with the 95 %\ninterval of the distance from θ_0's curve",
    )
    for row in versions:
        at = (row.diversity.value, row.quality.value)
        # On both sides in turn, since versions come to be close to each other.
        side: dict[str, Any] = {"xytext": (-4, -11), "ha": "right"} if (row.t or 0) % 2 else {"xytext": (4, 6)}
        axes.annotate(row.name, at, **side, **_label(colours.accent))
    axes.set_xlabel(frontier.diversity.replace("_", " "), color=colours.ink, parse_math=False)
    axes.set_ylabel(frontier.quality.replace("_", " "), color=colours.ink, parse_math=False)
    axes.legend(frameon=False, fontsize=8, labelcolor=colours.ink, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _axes_of(curve: Curve) -> tuple[list[float], list[float]]:
    """A curve's values on both axes."""
    return [point.diversity for point in curve.points], [point.quality for point in curve.points]


def _width_of(gap: Gap | None) -> float:
    """How far a gap's interval goes to each side; 0 if it has none."""
    return 0.0 if gap is None or gap.high is None else gap.high - gap.delta


def _label(colour: str) -> dict[str, Any]:
    """How a point of a plot is labelled."""
    return {"textcoords": "offset points", "fontsize": 8, "color": colour, "parse_math": False}


def line_of_control(number: int) -> str:
    """An `<svg>` element with the line that the control of this number has in the page's plots."""
    colour, dashes = ("soft", "human")[number // len(LINES) % 2], " ".join(map(str, _DASHES[number % len(LINES)]))
    style = f"stroke: var(--{colour}); stroke-width: 1.4; stroke-dasharray: {dashes}"
    return f'<svg viewBox="0 0 30 8" aria-hidden="true"><path d="M0 4h30" style="{style}"/></svg>'


def training(record: IterationRecord, colours: Colours) -> Any:
    """Loss and reward accuracy over the steps of one iteration."""
    steps = metrics(record.train.path)
    figure, axes = panel(colours, (7, 3.2))
    axes.plot([step["step"] for step in steps], [step["loss"] for step in steps], color=colours.accent, label="loss")
    axes.set_xlabel("step", color=colours.ink)
    axes.set_ylabel("loss", color=colours.ink)
    if all("rewards/accuracies" in step for step in steps):
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        accuracies = [step["rewards/accuracies"] for step in steps]
        right.plot(
            [step["step"] for step in steps], accuracies, color=colours.human, linewidth=1, label="reward accuracy"
        )
        right.set_ylabel("reward accuracy", color=colours.ink)
        right.set_ylim(0, 1.02)
    figure.legend(frameon=False, fontsize=8, labelcolor=colours.ink, loc="outside upper right", ncols=2)
    return figure


def curves(runs: Mapping[int, Sequence[Mapping[str, Any]]], metric: str, colours: Colours) -> Any:
    """A training metric over the steps of every iteration."""
    figure, axes = panel(colours, (3.6, 2.3))
    for t, steps in runs.items():
        points = [(step["step"], step[metric]) for step in steps if step.get(metric) is not None]
        marker = "o" if len(points) == 1 else ""
        axes.plot(*zip(*points, strict=True), color=colour_of(t, colours), linewidth=1.2, marker=marker)
    axes.set_xlabel("step", color=colours.soft, fontsize=8)
    return figure


def lengths(statistics: Mapping[int, AnswerStatistics], colours: Colours, size: tuple[float, float] = (7, 2.2)) -> Any:
    """Histograms of response lengths in tokens: human responses, and the answers of every iteration, by t."""
    figure, axes = panel(colours, size)
    last = statistics[max(statistics)]
    sides = [(last.real, last.bin_tokens, "human", {"color": colours.human, "fill": True, "alpha": 0.45})]
    for t, answers in statistics.items():
        name = "generated" if len(statistics) == 1 else f"iteration {t}"
        sides.append((answers.generated, answers.bin_tokens, name, {"color": colour_of(t, colours), "linewidth": 1.4}))
    longest = 1
    for side, width, name, style in sides:
        edges = [width * number for number in range(len(side.histogram) + 1)]
        axes.stairs([100 * count / max(1, side.responses) for count in side.histogram], edges, label=name, **style)
        longest = max([longest, *(edge for edge, count in zip(edges[1:], side.histogram, strict=True) if count)])
    axes.set_xlim(0, longest)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens", color=colours.soft, fontsize=8)
    axes.set_ylabel("% of responses", color=colours.soft, fontsize=8)
    if len(statistics) == 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=colours.ink)
    return figure


def seconds(records: Sequence[IterationRecord], colours: Colours) -> Any:
    """Seconds of each phase, one stacked bar for each iteration."""
    figure, axes = panel(colours, (4.8, 0.5 + 0.24 * len(records)), grid="x")
    phases = list(dict.fromkeys(phase for record in records for phase in record.seconds))
    before = [0.0] * len(records)
    for number, phase in enumerate(phases):
        durations = [record.seconds.get(phase, 0.0) for record in records]
        colour = colours.iterations[number % len(colours.iterations)]
        axes.barh(range(len(records)), durations, left=before, color=colour, height=0.62, label=phase)
        before = [start + more for start, more in zip(before, durations, strict=True)]
    axes.set_yticks(range(len(records)), [f"iteration {record.t}" for record in records])
    axes.invert_yaxis()
    axes.set_xlabel("seconds", color=colours.soft, fontsize=8)
    return figure


def colour_of(t: int, colours: Colours) -> str:
    """An iteration's colour."""
    return colours.iterations[t % len(colours.iterations)]


def metrics(train: Path) -> list[dict[str, Any]]:
    """The training metrics, one dictionary for each step."""
    return [json.loads(line) for line in (train / "metrics.jsonl").read_text("utf-8").splitlines()]


def panel(colours: Colours, size: tuple[float, float], grid: Literal["x", "y"] = "y") -> tuple[Any, Any]:
    """A figure of this size in inches, with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colours.soft)
    axes.tick_params(color=colours.soft, labelcolor=colours.ink, labelsize=10 if colours is PAPER else 8)
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(axis="y", nbins=6)
    axes.grid(axis=grid, color=colours.line)
    axes.set_axisbelow(True)
    return figure, axes


def png(figure: Any) -> bytes:
    """The figure as PNG, on white."""
    buffer = io.BytesIO()
    figure.patch.set_visible(True)  # or a dark page would show through behind dark letters
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def svg(figure: Any, title: str) -> str:
    """The figure as an `<svg>` element in the page's colours and font, as wide as the page allows."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn)  # ids repeat between figures
    drawn = re.sub(r"font-family: [^;\"]*", "font-family: inherit", drawn)
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg role="img" aria-label="{html.escape(title)}" viewBox="{box[1]}">'
    drawn = opening + drawn[drawn.index(">") + 1 :]
    return re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], drawn).strip()
