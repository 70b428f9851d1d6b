"""The pages of a comparison: its table, and the paper's figures 3 to 5 for this model.

The HTML page contains everything it shows and runs no script.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spin_core.comparison import frontier
from spin_core.comparison.compare import Line, Spread, Table, Versus
from spin_core.errors import count
from spin_core.reports import formatting, plots
from spin_core.reports import markdown as reports_markdown
from spin_core.reports.markup import PARTS, styles
from spin_core.reports.plots import PAGE, PAPER, Colours
from spin_core.store import files

_Point = tuple[float, Line]

_PRINT = replace(PAPER, iterations=("#2563eb", "#d1661f", "#12866a", "#a3359b", "#8a6d00", "#4a5568"))
"""Colours of pictures in Prefect's pages, one for each method."""

_HOW = (
    "Each value is the mean over {seeds} seeds ± its standard error over them; each seed is a run of its own from the "
    "same θ_0 on the same data. Differences are paired: a method minus SPIN's last version, seed by seed. A difference "
    "is marked * if neither the seeds (Student's t) nor the held-out items (bootstrap of their means over the seeds) "
    "explain it, each at the 95 % level."
)

_HOW_ALONE = (
    "One seed, so the difference to another run is unknown. Differences are a method minus SPIN's last "
    "version; a difference is marked * if the held-out items do not explain it (bootstrap, 95 %)."
)

_UNTESTED = (
    "Never marked: {task} of {methods}. Its single items are not known, so nothing tests whether other held-out items "
    "would show the difference."
)

_COSTS = (
    "Steps and tokens are those of training since θ_0; a prompt counts once for each response. Generated are the "
    "tokens that opponents generated; fine-tuning and DPO use none."
)

_CAPTIONS = {
    "figure 3": "SPIN's iterations and the other methods. Of several learning rates of fine-tuning the best is shown, "
    "chosen by this score.",
    "figure 4": "Training longer in iteration 0, on its one set of answers, compared with further iterations.",
    "figure 5": "Training size: iteration 0 on a share of the prompts, compared with fine-tuning θ_0 on that share.",
}

# The table.


def _heading(table: Table, task: str) -> str:
    """A task's name with its arrow."""
    spread = next(line.scores[task] for line in table.lines if task in line.scores)
    return task.replace("_", " ") + formatting.arrow(spread.higher_is_better, spread.target)


def shown(table: Table) -> list[str]:
    """The main score and the headline's other scores, as far as they exist."""
    tasks = {task for line in table.lines for task in line.scores}
    return [task for task in dict.fromkeys([table.main_metric, *table.headline]) if task in tasks]


def score(spread: Spread | None) -> str:
    """`0.1234 ± 0.0043`."""
    if spread is None:
        return "–"
    return f"{spread.mean:.4f}" if spread.stderr is None else f"{spread.mean:.4f} ± {spread.stderr:.4f}"


def difference(versus: Versus | None) -> str:
    """`+0.0121 ± 0.0030 *`."""
    if versus is None:
        return "–"
    return frontier.format_delta(versus.delta, versus.stderr, clear=versus.clear)


def _about(counts: Sequence[int]) -> str:
    """`1,234`: the mean of counts over the seeds."""
    return f"{round(sum(counts) / len(counts)):,}"


def header(table: Table, tasks: Sequence[str]) -> list[str]:
    """The table's first row."""
    return ["", *_titles(table, tasks), "steps", "tokens", "generated"]


def _titles(table: Table, tasks: Sequence[str]) -> list[str]:
    """Each score with its difference."""
    return [text for task in tasks for text in (_heading(table, task), "minus SPIN")]


def cells(line: Line, tasks: Sequence[str]) -> list[str]:
    """One method's row."""
    costs = (_about(counts) for counts in (line.steps, line.tokens, line.answered))
    return [line.name, *values(line, tasks), *costs]


def values(line: Line, tasks: Sequence[str]) -> list[str]:
    """Each score of a method with its difference."""
    return [text for task in tasks for text in (score(line.scores.get(task)), difference(line.versus.get(task)))]


def notes(table: Table) -> list[str]:
    """How to read the table, what could not be tested, and what was left out."""
    seeds = len(table.lineages)
    main = table.main_metric
    missing = [line.name for line in table.lines if main in line.versus and line.versus[main].low is None]
    untested = [_UNTESTED.format(task=main.replace("_", " "), methods=", ".join(missing))] if missing else []
    omitted = [f"{method} is left out: it {why}" for method, why in table.left_out.items()]
    return [
        _HOW.format(seeds=seeds) if seeds > 1 else _HOW_ALONE,
        *untested,
        f"{formatting.ARROWS}.",
        _COSTS,
        *omitted,
    ]


# Figures.


def figures(table: Table) -> dict[str, Callable[[Colours], Any]]:
    """The figures for which there is data, by the paper's number."""
    drawings: dict[str, Callable[[Colours], Any]] = {"figure 3": lambda colours: iterations(table, colours)}
    if table.of("longer"):
        drawings["figure 4"] = lambda colours: longer(table, colours)
    if table.of("sizes"):
        drawings["figure 5"] = lambda colours: sizes(table, colours)
    return drawings


def iterations(table: Table, colours: Colours) -> Any:
    """The main score over the iterations; other methods are horizontal lines."""
    figure, axes = _frame(table, colours)
    versions = table.of("spin")
    _draw(axes, table, [(line.x, line) for line in versions], "SPIN", colours.accent)
    methods = ("sft-steps", "sft-tokens", "dpo", "spin-dpo", "temperature")
    others = [line for method in methods if (line := _best(table, table.of(method))) is not None]
    for number, line in enumerate(others):
        spread, colour = line.scores[table.main_metric], colours.iterations[(number + 1) % len(colours.iterations)]
        style = plots.LINES[number % len(plots.LINES)]
        axes.axhline(spread.mean, color=colour, linestyle=style, linewidth=1.2, label=line.name)
        error = spread.stderr or 0.0
        axes.axhspan(spread.mean - error, spread.mean + error, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks([line.x for line in versions], [line.name for line in versions])
    return _with_legend(axes, figure, colours)


def longer(table: Table, colours: Colours) -> Any:
    """The main score over epochs: of iteration 0 alone, and iteration by iteration."""
    figure, axes = _frame(table, colours)
    versions = table.of("spin")
    epochs = (0, *table.epochs)
    _draw(axes, table, [(epochs[round(line.x)], line) for line in versions], "iterations", colours.accent)
    start = [(epochs[round(line.x)], line) for line in versions[:2]]
    more = [*start, *((line.x, line) for line in table.of("longer"))]
    _draw(axes, table, more, "iteration 0, longer", colours.iterations[1 % len(colours.iterations)], "--")
    axes.set_xlabel("epochs", color=colours.soft)
    return _with_legend(axes, figure, colours)


def sizes(table: Table, colours: Colours) -> Any:
    """The main score over the share of the prompts that was trained on."""
    figure, axes = _frame(table, colours)
    base, first = table.of("spin")[:2]
    lines = table.of("sizes")
    spin = [(line.x, line) for line in lines if not line.name.startswith("SFT")]
    _draw(axes, table, [(0.0, base), *spin, (1.0, first)], "SPIN, iteration 0", colours.accent)
    sft = [line for line in lines if line.name.startswith("SFT")]
    whole = _best(table, [line for line in sft if line.x == 1])
    if whole is not None:
        rate = whole.name.rpartition(", ")[2]
        kept = [(line.x, line) for line in sft if line.name.endswith(f", {rate}")]
        colour = colours.iterations[1 % len(colours.iterations)]
        _draw(axes, table, [(0.0, base), *kept], f"SFT continued, {rate}", colour, "--")
    ticks = [0.0, *dict.fromkeys(line.x for line in lines)]
    axes.set_xticks(ticks, [f"{round(tick * table.prompts):,}" for tick in ticks])
    axes.set_xlabel("training prompts (about)", color=colours.soft)
    return _with_legend(axes, figure, colours)


def _best(table: Table, lines: Sequence[Line]) -> Line | None:
    """The line with the best main score, the first of equal ones; None without lines."""
    scored = [line for line in lines if table.main_metric in line.scores]
    return max(scored, key=lambda line: line.scores[table.main_metric].merit() or 0.0, default=None)


def _frame(table: Table, colours: Colours) -> tuple[Any, Any]:
    """Axes for the main score."""
    figure, axes = plots.panel(colours, (7, 3.2))
    axes.set_ylabel(_heading(table, table.main_metric), color=colours.ink, parse_math=False)
    axes.margins(x=0.06, y=0.1)
    return figure, axes


def _draw(axes: Any, table: Table, points: Sequence[_Point], name: str, colour: str, style: str = "-") -> None:
    """Draw means with standard errors as one line, and a faint dot for each seed."""
    scored = sorted(((x, line) for x, line in points if table.main_metric in line.scores), key=lambda point: point[0])
    spreads = [line.scores[table.main_metric] for _, line in scored]
    for x, line in scored:
        values = line.values[table.main_metric]
        axes.plot([x] * len(values), values, linestyle="", marker="o", markersize=3, color=colour, alpha=0.35)
    axes.errorbar(
        [x for x, _ in scored],
        [spread.mean for spread in spreads],
        yerr=[spread.stderr or 0.0 for spread in spreads],
        color=colour,
        linestyle=style,
        marker="o",
        markersize=5,
        capsize=3,
        label=name,
    )


def _with_legend(axes: Any, figure: Any, colours: Colours) -> Any:
    """The figure with a legend at its right."""
    axes.legend(frameon=False, fontsize=8, labelcolor=colours.ink, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# Pages.


def markdown(table: Table) -> str:
    """The comparison as a markdown artifact for Prefect."""
    tasks = shown(table)
    rows = [cells(line, tasks[:2]) for line in table.lines]
    pictures = [
        part
        for name, drawn in figures(table).items()
        for part in (
            f"## As the paper's {name}",
            _CAPTIONS[name],
            reports_markdown.image(plots.png(drawn(_PRINT)), name),
        )
    ]
    swept = []
    if table.frontier is not None:
        lines = [frontier.cells(line) for line in table.frontier.lines]
        swept = [
            "## Frontier over temperatures",
            reports_markdown.markdown_table(table.frontier.header(), lines),
            frontier.FRONTIER_NOTE.replace("*", "`*`"),
        ]
    return "\n\n".join(
        [
            f"# SPIN compared: {table.name}",
            reports_markdown.markdown_table(header(table, tasks[:2]), rows),
            *notes(table),
            *swept,
            *pictures,
            f"Lineages: {', '.join(table.lineages)}",
        ]
    )


def write(path: Path, table: Table, made_by: str) -> None:
    """Write the HTML page. `made_by` names the software that made it."""
    page = render(table, made_by)
    with files.storage_errors(path.parent):
        path.write_text(page, "utf-8")


def render(table: Table, made_by: str) -> str:
    """The HTML page. The template escapes every text."""
    tasks = shown(table)
    others = [task for task in dict.fromkeys(task for line in table.lines for task in line.scores) if task not in tasks]
    parts = f"{count(len(table.epochs), 'iteration')}, {count(table.prompts, 'training prompt')}"
    return _TEMPLATES.get_template("compare.html").render(
        name=table.name,
        style=Markup(styles("compare")),
        lead=f"recipe {table.recipe}, {parts}; {made_by}",
        scores=(header(table, tasks), _ruled(table, [cells(line, tasks) for line in table.lines])),
        notes=notes(table),
        frontier=table.frontier and (table.frontier.header(), _plain(map(frontier.cells, table.frontier.lines))),
        frontier_note=frontier.FRONTIER_NOTE,
        figures=[
            {"name": name, "svg": Markup(plots.svg(drawn(PAGE), name)), "caption": _CAPTIONS[name]}
            for name, drawn in figures(table).items()
        ],
        further=others
        and (
            ["", *_titles(table, others)],
            _ruled(table, [[line.name, *values(line, others)] for line in table.lines]),
        ),
        lineages=", ".join(table.lineages),
    )


def _ruled(table: Table, rows: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Rows of the page, with a rule above each method's first row."""
    before = [line.method for line in (table.lines[0], *table.lines)]
    return [
        {"cells": row, "is_first": line.method != method}
        for row, line, method in zip(rows, table.lines, before, strict=False)
    ]


def _plain(rows: Iterable[Sequence[str]]) -> list[dict[str, Any]]:
    """Rows of the page without rules."""
    return [{"cells": row, "is_first": False} for row in rows]


_TEMPLATES = Environment(
    loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
