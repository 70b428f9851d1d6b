"""A comparison for people: its table, the paper's figures 3 to 5 for one's own model, and the page that holds them.

The page holds all it shows and runs no script.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from spin_core.comparison.compare import Line, Spread, Table, Versus
from spin_core.reports import formatting, plots
from spin_core.reports import markdown as reports_markdown
from spin_core.reports.markup import PARTS, styles
from spin_core.reports.plots import PAGE, PAPER, Colours
from spin_core.store import files

Point = tuple[float, Line]

PRINT = replace(PAPER, iterations=("#2563eb", "#d1661f", "#12866a", "#a3359b", "#8a6d00", "#4a5568"))
"""Colours of pictures in Prefect's pages: each method has one."""

HOW = (
    "Each value is the mean over {seeds} seeds ± its standard error over them: games of their own from one θ_0 on the "
    "same data. Differences are paired: a method less SPIN's last version, seed by seed. One is marked * where neither "
    "the seeds (Student's t) nor the held-out items (bootstrap of their means over the seeds) explain it, with 95 % "
    "probability each."
)

HOW_ALONE = (
    "Of one seed, so nothing here says how much another game would differ. Differences are a method less SPIN's last "
    "version; one is marked * where the held-out items do not explain it (bootstrap, 95 %)."
)

UNTESTED = (
    "Not marked, whatever the seeds say: {task} of {methods}. Its single items are not known, so nothing tests whether "
    "other held-out items would show the difference."
)

COSTS = (
    "Steps and tokens are those of training, from θ_0 on, a prompt counted for each of its responses; answered are "
    "the tokens that opponents generated. Fine-tuning and DPO answer nothing."
)

CAPTIONS = {
    "figure 3": "The game's iterations, beside what it has to beat. Of several learning rates of fine-tuning the best "
    "is shown, chosen by this very score.",
    "figure 4": "Training longer in iteration 0, on its one set of answers, beside playing on.",
    "figure 5": "Training size: iteration 0 on a share of the prompts, beside fine-tuning θ_0 further on the same.",
}

# The table.


def heading(table: Table, task: str) -> str:
    """A task's name, with what is better."""
    known = next(line.scores[task] for line in table.lines if task in line.scores)
    return task.replace("_", " ") + formatting.arrow(known.higher_is_better, known.target)


def shown(table: Table) -> list[str]:
    """The main score, and those of the headline that there are."""
    found = {task for line in table.lines for task in line.scores}
    return [task for task in dict.fromkeys([table.main_metric, *table.headline]) if task in found]


def score(spread: Spread | None) -> str:
    """`0.1234 ± 0.0043`."""
    if spread is None:
        return "–"
    return f"{spread.mean:.4f}" if spread.stderr is None else f"{spread.mean:.4f} ± {spread.stderr:.4f}"


def difference(versus: Versus | None) -> str:
    """`+0.0121 ± 0.0030 *`."""
    if versus is None:
        return "–"
    error = "" if versus.stderr is None else f" ± {versus.stderr:.4f}"
    return f"{versus.delta:+.4f}{error}" + (" *" if versus.clear else "")


def about(counts: Sequence[int]) -> str:
    """`1,234`: the mean of a count over the seeds."""
    return f"{round(sum(counts) / len(counts)):,}"


def header(table: Table, tasks: Sequence[str]) -> list[str]:
    """The table's first row."""
    return ["", *titles(table, tasks), "steps", "tokens", "answered"]


def titles(table: Table, tasks: Sequence[str]) -> list[str]:
    """Each score with its difference."""
    return [text for task in tasks for text in (heading(table, task), "less SPIN")]


def cells(line: Line, tasks: Sequence[str]) -> list[str]:
    """One method's row."""
    costs = (about(counts) for counts in (line.steps, line.tokens, line.answered))
    return [line.name, *values(line, tasks), *costs]


def values(line: Line, tasks: Sequence[str]) -> list[str]:
    """Each score of a method with its difference."""
    return [text for task in tasks for text in (score(line.scores.get(task)), difference(line.versus.get(task)))]


def notes(table: Table) -> list[str]:
    """How to read the table, what could not be tested, and what is not in it."""
    seeds = len(table.lineages)
    main = table.main_metric
    missing = [line.name for line in table.lines if main in line.versus and line.versus[main].low is None]
    untested = [UNTESTED.format(task=main.replace("_", " "), methods=", ".join(missing))] if missing else []
    lacking = [f"{method} is left out: it {why}" for method, why in table.left_out.items()]
    return [
        HOW.format(seeds=seeds) if seeds > 1 else HOW_ALONE,
        *untested,
        f"{formatting.ARROWS}.",
        COSTS,
        *lacking,
    ]


# Figures.


def figures(table: Table) -> dict[str, Callable[[Colours], Any]]:
    """The figures for which there are lines, by the paper's number."""
    found: dict[str, Callable[[Colours], Any]] = {"figure 3": lambda colours: iterations(table, colours)}
    if table.of("longer"):
        found["figure 4"] = lambda colours: longer(table, colours)
    if table.of("sizes"):
        found["figure 5"] = lambda colours: sizes(table, colours)
    return found


def iterations(table: Table, colours: Colours) -> Any:
    """The main score over the iterations, and the other methods as lines across."""
    figure, axes = frame(table, colours)
    versions = table.of("spin")
    draw(axes, table, [(line.x, line) for line in versions], "SPIN", colours.accent)
    methods = ("sft-steps", "sft-tokens", "dpo", "spin-dpo", "temperature")
    others = [line for method in methods if (line := best(table, table.of(method))) is not None]
    for number, line in enumerate(others):
        spread, colour = line.scores[table.main_metric], colours.iterations[(number + 1) % len(colours.iterations)]
        style = plots.LINES[number % len(plots.LINES)]
        axes.axhline(spread.mean, color=colour, linestyle=style, linewidth=1.2, label=line.name)
        error = spread.stderr or 0.0
        axes.axhspan(spread.mean - error, spread.mean + error, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks([line.x for line in versions], [line.name for line in versions])
    return with_legend(axes, figure, colours)


def longer(table: Table, colours: Colours) -> Any:
    """The main score over passes through the data: in iteration 0 alone, and iteration by iteration."""
    figure, axes = frame(table, colours)
    versions = table.of("spin")
    epochs = (0, *table.epochs)
    draw(axes, table, [(epochs[round(line.x)], line) for line in versions], "iterations", colours.accent)
    start = [(epochs[round(line.x)], line) for line in versions[:2]]
    more = [*start, *((line.x, line) for line in table.of("longer"))]
    draw(axes, table, more, "iteration 0, longer", colours.iterations[1 % len(colours.iterations)], "--")
    axes.set_xlabel("epochs", color=colours.soft)
    return with_legend(axes, figure, colours)


def sizes(table: Table, colours: Colours) -> Any:
    """The main score over the share of the prompts that were trained on."""
    figure, axes = frame(table, colours)
    base, first = table.of("spin")[:2]
    lines = table.of("sizes")
    spin = [(line.x, line) for line in lines if not line.name.startswith("SFT")]
    draw(axes, table, [(0.0, base), *spin, (1.0, first)], "SPIN, iteration 0", colours.accent)
    sft = [line for line in lines if line.name.startswith("SFT")]
    whole = best(table, [line for line in sft if line.x == 1])
    if whole is not None:
        rate = whole.name.rpartition(", ")[2]
        kept = [(line.x, line) for line in sft if line.name.endswith(f", {rate}")]
        colour = colours.iterations[1 % len(colours.iterations)]
        draw(axes, table, [(0.0, base), *kept], f"SFT continued, {rate}", colour, "--")
    ticks = [0.0, *dict.fromkeys(line.x for line in lines)]
    axes.set_xticks(ticks, [f"{round(tick * table.prompts):,}" for tick in ticks])
    axes.set_xlabel("training prompts (about)", color=colours.soft)
    return with_legend(axes, figure, colours)


def best(table: Table, lines: Sequence[Line]) -> Line | None:
    """The line with the best main score; None if there is none. The first where none is better."""
    known = [line for line in lines if table.main_metric in line.scores]
    return max(known, key=lambda line: line.scores[table.main_metric].merit() or 0.0, default=None)


def frame(table: Table, colours: Colours) -> tuple[Any, Any]:
    """Axes for the main score."""
    figure, axes = plots.panel(colours, (7, 3.2))
    axes.set_ylabel(heading(table, table.main_metric), color=colours.ink, parse_math=False)
    axes.margins(x=0.06, y=0.1)
    return figure, axes


def draw(axes: Any, table: Table, points: Sequence[Point], name: str, colour: str, style: str = "-") -> None:
    """Means with standard errors, joined; a faint dot for each seed."""
    known = sorted(((x, line) for x, line in points if table.main_metric in line.scores), key=lambda point: point[0])
    spreads = [line.scores[table.main_metric] for _, line in known]
    for x, line in known:
        values = line.values[table.main_metric]
        axes.plot([x] * len(values), values, linestyle="", marker="o", markersize=3, color=colour, alpha=0.35)
    axes.errorbar(
        [x for x, _ in known],
        [spread.mean for spread in spreads],
        yerr=[spread.stderr or 0.0 for spread in spreads],
        color=colour,
        linestyle=style,
        marker="o",
        markersize=5,
        capsize=3,
        label=name,
    )


def with_legend(axes: Any, figure: Any, colours: Colours) -> Any:
    """The figure with its legend beside it."""
    axes.legend(frameon=False, fontsize=8, labelcolor=colours.ink, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# Pages.


def markdown(table: Table) -> str:
    """The artifact in Prefect."""
    tasks = shown(table)
    rows = [cells(line, tasks[:2]) for line in table.lines]
    pictures = [
        part
        for name, drawn in figures(table).items()
        for part in (f"## As the paper's {name}", CAPTIONS[name], reports_markdown.image(plots.png(drawn(PRINT)), name))
    ]
    return "\n\n".join(
        [
            f"# SPIN compared: {table.name}",
            reports_markdown.markdown_table(header(table, tasks[:2]), rows),
            *notes(table),
            *pictures,
            f"Lineages: {', '.join(table.lineages)}",
        ]
    )


def write(path: Path, table: Table, made_by: str) -> None:
    """Write the page."""
    page = Template((PARTS / "compare.html").read_text("utf-8")).substitute(
        title=html.escape(f"SPIN compared: {table.name}"),
        style=styles("compare"),
        body="\n".join(parts(table, made_by)),
    )
    with files.storage_errors(path.parent):
        path.write_text(page, "utf-8")


def parts(table: Table, made_by: str) -> list[str]:
    """What stands in the page's body."""
    tasks = shown(table)
    lead = f"recipe {table.recipe}, {len(table.epochs)} iterations, {table.prompts:,} training prompts; {made_by}"
    found = [f'<p class="lead">{html.escape(lead)}</p>', html_table(table, tasks)]
    found += [f"<p>{html.escape(note)}</p>" for note in notes(table)]
    for name, drawn in figures(table).items():
        caption = f"<figcaption>{html.escape(CAPTIONS[name])}</figcaption>"
        found += [f"<h2>As the paper's {name}</h2>", f"<figure>{plots.svg(drawn(PAGE), name)}{caption}</figure>"]
    others = [task for task in dict.fromkeys(task for line in table.lines for task in line.scores) if task not in tasks]
    if others:
        rows = [(line, [line.name, *values(line, others)]) for line in table.lines]
        found += ["<h2>Further scores</h2>", as_html(["", *titles(table, others)], rows)]
    lines = ", ".join(table.lineages)
    return [*found, f"<p>Lineages: {html.escape(lines)}. The values of single seeds are in compare.json.</p>"]


def html_table(table: Table, tasks: Sequence[str]) -> str:
    """The table with costs."""
    return as_html(header(table, tasks), [(line, cells(line, tasks)) for line in table.lines])


def as_html(head: Sequence[str], rows: Sequence[tuple[Line, Sequence[str]]]) -> str:
    """A table, with a line above each method's first row."""
    said = ["<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>"]
    before = rows[0][0].method
    for line, texts in rows:
        mark = ' class="first"' if line.method != before else ""
        said.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>")
        before = line.method
    return f'<div class="wide"><table>{"".join(said)}</table></div>'
