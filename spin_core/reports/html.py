"""A lineage's report: one HTML page that holds everything it shows, loads nothing and runs no script.

`report.html`, next to `leaderboard.json`, is written again after every iteration.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from spin_core.errors import ConfigError, count
from spin_core.leaderboard.board import (
    CHOSEN,
    Board,
    Row,
    decimals_of_column,
    differs_from_base,
    format_difference,
    format_score,
    leaderboard,
    significant,
)
from spin_core.leaderboard.frontier import Gap
from spin_core.lineage import costs as spending
from spin_core.lineage.lineage import Lineage
from spin_core.reports import frontier as tables
from spin_core.reports import plots
from spin_core.reports.formatting import ARROWS, heading, report_path
from spin_core.reports.html_records import costs, origin
from spin_core.reports.markdown import answer_rows, leader, samples
from spin_core.reports.markup import PARTS, Html, folded, joined, styles, table, tag, wide
from spin_core.reports.plots import PAGE
from spin_core.reports.samples import Response, Sample
from spin_core.store import files
from spin_core.store.records import Comparison, GateDecision, IterationRecord

_MOST_PLOTS = 12
"""Plots of a suite's scores at most; its tables have all scores."""

_LONGEST = 1500
"""Characters of a sample that are shown."""

_CURVES = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "logps/real": "log p of human responses",
    "logps/generated": "log p of generated responses",
    "grad_norm": "gradient norm",
}
"""Training metrics that are plotted, with their titles."""


def write(lineage: Lineage, path: Path | None = None, board: Board | None = None) -> Path:
    """Write the report and return its path.

    Args:
        lineage: What the report is about.
        path: The file; the lineage's own `report.html` if left out.
        board: The leaderboard, if the caller has it already.

    Raises:
        ConfigError: The folder of `path` does not exist.
    """
    path = path or report_path(lineage)
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"{path} cannot be written, since the folder {path.absolute().parent} does not exist: create it first"
        )
    files.write_text(path, page(lineage, board or leaderboard(lineage)))
    return path


def page(lineage: Lineage, board: Board) -> str:
    """The report as text."""
    records = lineage.records()
    parts: dict[str, list[Html]] = {"Leaderboard": _standings(lineage, board)}
    if board.frontier is not None:
        parts["Frontier"] = frontier(board)
    if records:
        parts |= {
            "Gate": [_gate_table(records)],
            "Training": training(records),
            "Answers": answers(records),
        }
    if shown := samples(lineage, upto=len(records)):
        parts["Samples"] = _sample_list(shown)
    if records:
        parts |= {"Cost": costs(records), "Records": origin(lineage, board, records)}
    frame, style = (PARTS / "report.html").read_text("utf-8"), styles("report")
    return Template(frame).substitute(
        title=joined([f"{lineage.name}: self-play report"]),
        style=style,
        about=about(lineage, board, records),
        contents=joined(tag("a", name, href=f"#{name.lower()}") for name in parts),
        parts=joined(tag("section", tag("h2", name), *content, id=name.lower()) for name, content in parts.items()),
    )


def about(lineage: Lineage, board: Board, records: Sequence[IterationRecord]) -> Html:
    """The recipe, the leading version, and the costs."""
    spent = spending.total(*records)
    facts = [
        ("recipe", lineage.config.recipe),
        ("iterations", str(len(records))),
        ("training prompts", f"{records[0].prompts.rows:,}" if records else "–"),
        ("tokens generated", f"{sum(record.generations.tokens for record in records):,}"),
        ("time", f"{_clock(spent.seconds)}; {spent.device_hours:.3g} device hours"),
        ("gate", f"rule: {lineage.config.gate.rule}; θ_{board.choice} is the next opponent" if records else "–"),
    ]
    if records and records[-1].gate.outcome == "stop":
        facts[-1] = ("gate", "ended the run")
    return joined([tag("p", f"{leader(board)}.", class_="lead"), _definitions(facts)])


def _clock(seconds: float) -> str:
    """`2 h 05 min`, `7 min 30 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def _definitions(facts: Sequence[tuple[str, str]]) -> Html:
    """Names and values, side by side."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts")


def _standings(lineage: Lineage, board: Board) -> list[Html]:
    """Tables and plots of scores, the headline first and then suite by suite."""
    shown = board.headline(lineage.config)
    note = (
        "value ± standard error. * differs from θ_0: the 95 % interval of the paired difference, by bootstrap over "
        f"the items, excludes 0; green is better, red worse. All differences: "
        f"spin leaderboard --differences. {ARROWS}. {CHOSEN}: the gate's choice."
    )
    parts = [_score_table(board, shown, headline=True), tag("p", note, class_="note")]
    for suite, tasks in board.suites.items():
        main = board.main_tasks(suite)
        parts.append(tag("h3", suite))
        if board.has_score(suite):
            parts.append(_score_table(board, main, suite=suite))
        drawn = sorted((task for task in main if _varies(board, task)), key=lambda task: task != board.main_metric)
        parts += _control_legend(board, drawn[:_MOST_PLOTS])
        parts.append(_grid(_task_plot(board, task, suite) for task in drawn[:_MOST_PLOTS]))
        parts.append(folded("All scores", _score_table(board, tasks)))
        parts.append(folded("Paired differences", _difference_table(board, tasks)))
        if suite == "self-play" and (sources := {source: board.of_source(source) for source in board.sources()}):
            scored = [(tag("h4", source), _score_table(part, part.tasks())) for source, part in sources.items()]
            parts.append(folded("Scores by source", *(element for pair in scored for element in pair)))
    if board.references:
        parts.append(tag("p", f"The paper's rows are {board.references[0].model}.", class_="note"))
    return parts


def _score_table(board: Board, tasks: Sequence[str], *, headline: bool = False, suite: str = "") -> Html:
    """A table of all models: the headline with the gate's decisions, a suite with the scores that others reported."""
    with_gate = headline and any(row.gate for row in board.rows)
    header = [
        "model",
        *(heading(board, task, suite).replace("_", " ") for task in tasks),
        *(["gate"] if with_gate else []),
    ]
    rows, shown = [], [*board.rows, *board.other_rows(tasks, reported=not headline)]
    for row in shown:
        name = tag("i", row.name) if row in board.references else board.name_of(row)
        scores = (score_cell(row, task, decimals_of_column(shown, task)) for task in tasks)
        rows.append([name, *scores, *([row.gate or "–"] if with_gate else [])])
    return table(header, rows)


def score_cell(row: Row, task: str, least: int = 0) -> Html:
    """A score, coloured if it differs from θ_0's, with its differences in a tooltip."""
    score = row.scores.get(task)
    if score is None:
        return tag("td", "–", class_="none")
    pairs = row.differences.get(task, ())
    value, space, error = format_score(score, least).partition(" ")
    shown: list[str] = [value, tag("small", space + error)] if error else [value]
    if not differs_from_base(row, task):
        return tag("td", *shown, title=_tooltip(pairs, score.n))
    base = next(change for change in pairs if change.against == 0)
    own, other = score.merit(), score.model_copy(update={"value": score.value - base.delta}).merit()
    kind = {} if own is None or other is None else {"class_": "better" if own > other else "worse"}
    return tag("td", *shown, " *", title=_tooltip(pairs, score.n), **kind)


def _tooltip(pairs: Sequence[Comparison], items: int) -> str:
    """A score's differences and its number of items."""
    differences = [f"against θ_{difference.against}: {format_difference(difference)}" for difference in pairs]
    return "; ".join([*differences, f"{items:,} items"])


def _difference_table(board: Board, tasks: Sequence[str]) -> Html:
    """Every paired difference of these scores."""
    rows = [
        [
            heading(board, task).replace("_", " "),
            row.name,
            f"θ_{difference.against}",
            format_difference(difference) + (" *" if significant(difference) else ""),
        ]
        for task in tasks
        for row in (*board.rows, *board.controls)
        for difference in row.differences.get(task, ())
    ]
    if not rows:
        return tag("p", "Nothing to compare: single items are not known, or there is only one version.", class_="note")
    return table(["score", "model", "against", "difference [95 % interval]"], rows)


def _varies(board: Board, task: str) -> bool:
    """Whether a plot shows anything: one version, or versions with different values."""
    values = [row.scores[task].value for row in board.rows if task in row.scores]
    return len(values) == 1 or len(set(values)) > 1


def _task_plot(board: Board, task: str, suite: str) -> Html:
    """A score of a suite over the versions."""
    title = heading(board, task, suite).replace("_", " ")
    return figure(title, plots.svg(plots.scores(board, task, PAGE, names=False), task))


def _control_legend(board: Board, tasks: Sequence[str]) -> list[Html]:
    """A legend for the controls' lines in these plots; empty without controls."""
    marks = [
        tag("span", Html(plots.line_of_control(number)), row.name)
        for number, row in enumerate(board.controls)
        if any(task in row.scores for task in tasks)
    ]
    return [tag("p", "Controls:", *marks, class_="legend")] if marks else []


def frontier(board: Board) -> list[Html]:
    """The versions against θ_0's curve over temperatures: the result in a line, the plot and the tables."""
    swept = board.frontier
    assert swept is not None, "the caller has looked"
    rows = [
        [*tables.cells(row)[:-2], *(gap_cell(gap) for gap in (row.quality_gap, row.diversity_gap))]
        for row in swept.rows
    ]
    by_control = [
        [row.name, *(gap_cell(row.control_gaps.get(name)) for name in tables.control_header(swept)[1:])]
        for row in swept.rows
        if row.control_gaps
    ]
    parts = [
        tag("p", f"{line}.", class_="note") if (line := tables.summary(board)) else Html(""),
        tag("div", figure(tables.axes(swept), plots.svg(plots.frontier(swept, PAGE), "frontier")), class_="wide"),
        table(tables.header(swept), rows),
        tag("p", f"{tables.legend(swept)}.", class_="note"),
    ]
    if by_control:
        title = tables.control_title(swept)
        parts.append(folded(title, table(tables.control_header(swept), by_control)))
    return parts


def gap_cell(gap: Gap | None) -> Html:
    """A difference from a curve, coloured if it is significant, with its interval in a tooltip."""
    if gap is None:
        return tag("td", "–", class_="none")
    kind = {"class_": gap.verdict} if gap.verdict else {}
    return tag("td", tables.format_gap(gap), title=tables.tooltip(gap), **kind)


def figure(title: str, drawing: str) -> Html:
    """A plot with its title."""
    return tag("figure", tag("figcaption", title), Html(drawing))


def _grid(figures: Iterable[Html]) -> Html:
    """Plots side by side, as many as fit."""
    return tag("div", *figures, class_="grid")


def _gate_table(records: Sequence[IterationRecord]) -> Html:
    """Every decision of the gate and its reason."""
    rows = [
        [
            f"θ_{record.t + 1}",
            tag("td", record.gate.outcome, class_={"promote": "better"}.get(record.gate.outcome, "worse")),
            change(record.gate),
            f"θ_{record.gate.next_opponent}",
            wide(record.gate.reason),
        ]
        for record in records
    ]
    return table(["version", "outcome", "difference", "next opponent", wide("reason", "th")], rows)


def change(gate: GateDecision) -> str:
    """`+0.12 ± 0.03`: the difference that the gate judged."""
    if gate.delta is None:
        return "–"
    return f"{gate.delta:+.3g}" + ("" if gate.stderr is None else f" ± {gate.stderr:.2g}")


def training(records: Sequence[IterationRecord]) -> list[Html]:
    """Curves of all iterations, their last values, and the events of the monitors."""
    runs = {record.t: plots.metrics(record.train.path) for record in records}
    plotted = {
        name: title for name, title in _CURVES.items() if any(name in step for steps in runs.values() for step in steps)
    }
    figures = [figure(title, plots.svg(plots.curves(runs, name, PAGE), name)) for name, title in plotted.items()]
    last = {name: title for name, title in _CURVES.items() if any(name in record.train.metrics for record in records)}
    rows = [
        [
            f"iteration {record.t}",
            f"{record.train.steps:,}",
            f"{record.train.first_loss:.5f}",
            *(f"{record.train.metrics[name]:.4g}" if name in record.train.metrics else "–" for name in last),
        ]
        for record in records
    ]
    events = [(record.t, event) for record in records for event in record.train.events]
    lines = [tag("li", f"Iteration {t}, step {event.step}: {event.action}. {event.message}") for t, event in events]
    return [
        legend({record.t: f"iteration {record.t}" for record in records}),
        _grid(figures),
        table(["", "steps", "first loss", *(f"last {title}" for title in last.values())], rows),
        tag("p", "The first loss is log 2 = 0.69315 where player and opponent are the same weights.", class_="note"),
        tag("ul", *lines) if lines else tag("p", "The monitors reported nothing unusual.", class_="note"),
    ]


def legend(names: Mapping[int, str], *before: Html) -> Html:
    """A legend of the iterations' colours; `before` comes first."""
    marks = [
        tag("span", tag("i", style=f"background: {plots.VARIABLES[plots.colour_of(t, PAGE)]}"), name)
        for t, name in names.items()
    ]
    return tag("p", *before, *marks, class_="legend")


def answers(records: Sequence[IterationRecord]) -> list[Html]:
    """Counts, lengths and faults of the answers, next to the human responses."""
    by_iteration = {record.t: record.generations.statistics for record in records}
    existing = {t: statistics for t, statistics in by_iteration.items() if statistics is not None}
    kept = [
        [
            f"iteration {record.t}",
            f"{record.generations.rows:,}",
            f"{record.generations.tokens:,}",
            f"{record.pairs.rows:,} of {record.pairs.rows_in:,}",
            ", ".join(f"{count:,} {reason}" for reason, count in record.pairs.drops.items() if count) or "none",
        ]
        for record in records
    ]
    counts = table(["", "answers", "tokens", "pairs kept", "dropped"], kept)
    if not existing:
        return [counts]
    # The human responses are those of the last iteration: all have the same prompts.
    by_what = zip(*(answer_rows(statistics) for statistics in existing.values()), strict=True)
    rows = [[same[-1][0], same[-1][1], *(row[2] for row in same)] for same in by_what]
    plot = plots.svg(plots.lengths(existing, PAGE, (4.8, 2.0)), "lengths")
    human = tag("span", tag("i", style="background: var(--human)"), "human")
    return [
        legend({t: f"answers of iteration {t}" for t in existing}, human),
        tag("div", figure("lengths of responses", plot), class_="wide"),
        table(["", "human", *(f"iteration {t}" for t in existing)], rows),
        counts,
    ]


def _sample_list(samples: Sequence[Sample]) -> list[Html]:
    """Held-out prompts with all answers side by side."""
    cards = []
    for sample in samples:
        turns = [
            joined([tag("span", turn.role, class_="role"), tag("div", _clipped(turn.content), class_="text")])
            for turn in sample.turns
        ]
        sides = [_side(sample.real, "side human"), *(_side(answer, "side") for answer in sample.answers)]
        cards.append(tag("article", tag("div", *turns, class_="ask"), tag("div", *sides, class_="sides")))
    return [
        tag("p", "The first held-out prompts with the human response and each version's answer.", class_="note"),
        *cards,
    ]


def _side(response: Response, kind: str) -> Html:
    """One response."""
    marks = [tag("span", mark, class_="chip") for mark in response.marks]
    head = tag("div", tag("b", response.name), f" {count(response.tokens, 'token')} ", *marks, class_="head")
    text = tag("div", _clipped(response.text), class_="text") if response.text.strip() else tag("i", "nothing")
    return tag("div", head, text, class_=kind)


def _clipped(text: str) -> str:
    """A text, cut after its first characters if it is long."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
