"""A lineage's report: one page for a browser that holds all of it, and loads and runs nothing.

`report.html` beside `leaderboard.json` is written anew after every iteration.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from spin_core.errors import ConfigError
from spin_core.leaderboard.board import (
    CHOSEN,
    Board,
    Row,
    differs_from_base,
    format_difference,
    format_score,
    leaderboard,
    significant,
)
from spin_core.lineage import costs as spending
from spin_core.lineage.lineage import Lineage
from spin_core.reports import plots
from spin_core.reports.formatting import ARROWS, heading, report_path
from spin_core.reports.html_records import costs, origin
from spin_core.reports.markdown import answer_rows, leader, samples
from spin_core.reports.markup import PARTS, Html, folded, joined, styles, table, tag, wide
from spin_core.reports.plots import PAGE
from spin_core.reports.samples import Response, Sample
from spin_core.store import files
from spin_core.store.records import Comparison, GateDecision, IterationRecord

MOST_PLOTS = 12
"""Scores of a suite that are drawn; its tables have them all."""

LONGEST = 1500
"""Signs of a sample that are shown."""

CURVES = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "logps/real": "log p of human responses",
    "logps/generated": "log p of generated responses",
    "grad_norm": "gradient norm",
}
"""Training metrics that are drawn."""


def write(lineage: Lineage, path: Path | None = None, standing: Board | None = None) -> Path:
    """Write the report, beside the lineage's other files or elsewhere. `standing` spares counting the board again."""
    path = path or report_path(lineage)
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written, since {path.absolute().parent} is not there: make it first")
    files.write_text(path, page(lineage, standing or leaderboard(lineage)))
    return path


def page(lineage: Lineage, board: Board) -> str:
    """The report as text."""
    records = lineage.records()
    parts: dict[str, list[Html]] = {"Leaderboard": standings(lineage, board)}
    if records:
        parts |= {
            "Gate": [gate_table(records)],
            "Training": training(records),
            "Answers": answers(records),
        }
    if shown := samples(lineage, upto=len(records)):
        parts["Samples"] = sample_list(shown)
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
    """What was played, who leads, and what it took."""
    spent = spending.of(*records)
    facts = [
        ("recipe", lineage.config.recipe),
        ("iterations", str(len(records))),
        ("training prompts", f"{records[0].prompts.rows:,}" if records else "–"),
        ("tokens generated", f"{sum(record.generations.tokens for record in records):,}"),
        ("time", f"{clock(spent.seconds)}; {spent.device_hours:.3g} device hours"),
        ("gate", f"{lineage.config.gate.rule}; θ_{board.choice} plays next" if records else "–"),
    ]
    if records and records[-1].gate.outcome == "stop":
        facts[-1] = ("gate", "stopped the game")
    return joined([tag("p", f"{leader(board)}.", class_="lead"), definitions(facts)])


def clock(seconds: float) -> str:
    """`2 h 05 min`, `7 min 30 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def definitions(facts: Sequence[tuple[str, str]]) -> Html:
    """Names and values, side by side."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts")


def standings(lineage: Lineage, board: Board) -> list[Html]:
    """Tables and plots of scores, the headline first and then suite by suite."""
    shown = board.headline(lineage.config)
    note = (
        "value ± standard error. * differs from θ_0: the 95 % interval of the paired difference, by bootstrap over "
        f"the items, leaves out 0; green is better, red worse. {ARROWS}. {CHOSEN}: the gate's choice."
    )
    parts = [score_table(board, shown, headline=True), tag("p", note, class_="note")]
    for suite, tasks in board.suites.items():
        main = board.main_tasks(suite)
        parts.append(tag("h3", suite))
        if board.has_score(suite):
            parts.append(score_table(board, main, suite=suite))
        drawn = sorted((task for task in main if varies(board, task)), key=lambda task: task != board.main_metric)
        parts += across(board, drawn[:MOST_PLOTS])
        parts.append(grid(task_plot(board, task, suite) for task in drawn[:MOST_PLOTS]))
        parts.append(folded("All scores", score_table(board, tasks)))
        parts.append(folded("Paired differences", difference_table(board, tasks)))
    if board.references:
        parts.append(tag("p", f"The paper's rows are {board.references[0].model}.", class_="note"))
    return parts


def score_table(board: Board, tasks: Sequence[str], *, headline: bool = False, suite: str = "") -> Html:
    """All models with some scores: the headline with what the gate made of them, a suite with what others reported."""
    told = headline and any(row.gate for row in board.rows)
    header = ["model", *(heading(board, task, suite).replace("_", " ") for task in tasks), *(["gate"] if told else [])]
    rows = []
    for row in (*board.rows, *board.beside(tasks, reported=not headline)):
        name = tag("i", row.name) if row in board.references else board.name_of(row)
        rows.append([name, *(score_cell(row, task) for task in tasks), *([row.gate or "–"] if told else [])])
    return table(header, rows)


def score_cell(row: Row, task: str) -> Html:
    """A score, coloured if it differs from θ_0's, with its differences in a tooltip."""
    score = row.scores.get(task)
    if score is None:
        return tag("td", "–", class_="none")
    pairs = row.differences.get(task, ())
    value, space, error = format_score(score).partition(" ")
    shown: list[str] = [value, tag("small", space + error)] if error else [value]
    if not differs_from_base(row, task):
        return tag("td", *shown, title=told(pairs, score.n))
    base = next(one for one in pairs if one.against == 0)
    mine, its = score.merit(), score.model_copy(update={"value": score.value - base.delta}).merit()
    kind = {} if mine is None or its is None else {"class_": "better" if mine > its else "worse"}
    return tag("td", *shown, " *", title=told(pairs, score.n), **kind)


def told(pairs: Sequence[Comparison], items: int) -> str:
    """A score's differences in words."""
    return "; ".join([*(f"against θ_{one.against}: {format_difference(one)}" for one in pairs), f"{items:,} items"])


def difference_table(board: Board, tasks: Sequence[str]) -> Html:
    """Every paired difference of some scores."""
    rows = [
        [
            heading(board, task).replace("_", " "),
            row.name,
            f"θ_{one.against}",
            format_difference(one) + (" *" if significant(one) else ""),
        ]
        for task in tasks
        for row in (*board.rows, *board.controls)
        for one in row.differences.get(task, ())
    ]
    if not rows:
        return tag("p", "Nothing to compare: single items are not known, or there is one version.", class_="note")
    return table(["score", "model", "against", "difference [95 % interval]"], rows)


def varies(board: Board, task: str) -> bool:
    """Whether there is anything to see in a plot: one version, or versions that are not all the same."""
    values = [row.scores[task].value for row in board.rows if task in row.scores]
    return len(values) == 1 or len(set(values)) > 1


def task_plot(board: Board, task: str, suite: str) -> Html:
    """A score of a suite over the versions."""
    title = heading(board, task, suite).replace("_", " ")
    return figure(title, plots.svg(plots.scores(board, task, PAGE, names=False), task))


def across(board: Board, tasks: Sequence[str]) -> list[Html]:
    """Which line across these plots is which control's; nothing where there is none."""
    marks = [
        tag("span", Html(plots.line_of_control(number)), row.name)
        for number, row in enumerate(board.controls)
        if any(task in row.scores for task in tasks)
    ]
    return [tag("p", "Lines across:", *marks, class_="legend")] if marks else []


def figure(title: str, drawing: str) -> Html:
    """A plot with its title."""
    return tag("figure", tag("figcaption", title), Html(drawing))


def grid(figures: Iterable[Html]) -> Html:
    """Plots side by side, as many as there is room for."""
    return tag("div", *figures, class_="grid")


def gate_table(records: Sequence[IterationRecord]) -> Html:
    """Every decision and what it rests on."""
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
    return table(["version", "outcome", "difference", "plays next", wide("reason", "th")], rows)


def change(gate: GateDecision) -> str:
    """`+0.12 ± 0.03`: the difference that the gate saw."""
    if gate.delta is None:
        return "–"
    return f"{gate.delta:+.3g}" + ("" if gate.stderr is None else f" ± {gate.stderr:.2g}")


def training(records: Sequence[IterationRecord]) -> list[Html]:
    """Curves of all iterations, how each ended, and what the monitors saw."""
    runs = {record.t: plots.metrics(record.train.path) for record in records}
    known = {
        name: title for name, title in CURVES.items() if any(name in step for steps in runs.values() for step in steps)
    }
    drawn = [figure(title, plots.svg(plots.curves(runs, name, PAGE), name)) for name, title in known.items()]
    last = {name: title for name, title in CURVES.items() if any(name in one.train.metrics for one in records)}
    rows = [
        [
            f"iteration {record.t}",
            f"{record.train.steps:,}",
            f"{record.train.first_loss:.5f}",
            *(f"{record.train.metrics[name]:.4g}" if name in record.train.metrics else "–" for name in last),
        ]
        for record in records
    ]
    seen = [(record.t, event) for record in records for event in record.train.events]
    events = [tag("li", f"Iteration {t}, step {one.step}: {one.action}. {one.message}") for t, one in seen]
    return [
        legend({record.t: f"iteration {record.t}" for record in records}),
        grid(drawn),
        table(["", "steps", "first loss", *(f"last {title}" for title in last.values())], rows),
        tag("p", "The first loss is log 2 = 0.69315 where player and opponent are the same weights.", class_="note"),
        tag("ul", *events) if events else tag("p", "The monitors saw nothing unusual.", class_="note"),
    ]


def legend(names: Mapping[int, str], *before: Html) -> Html:
    """Which colour is which iteration's."""
    marks = [
        tag("span", tag("i", style=f"background: {plots.VARIABLES[plots.colour_of(t, PAGE)]}"), name)
        for t, name in names.items()
    ]
    return tag("p", *before, *marks, class_="legend")


def answers(records: Sequence[IterationRecord]) -> list[Html]:
    """How long the answers are, and what is wrong with them, beside the human ones."""
    found = {record.t: record.generations.statistics for record in records}
    known = {t: one for t, one in found.items() if one is not None}
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
    if not known:
        return [counts]
    # The human responses are those of the last iteration: all have the same prompts.
    by_what = zip(*(answer_rows(one) for one in known.values()), strict=True)
    rows = [[same[-1][0], same[-1][1], *(row[2] for row in same)] for same in by_what]
    plot = plots.svg(plots.lengths(known, PAGE, (4.8, 2.0)), "lengths")
    human = tag("span", tag("i", style="background: var(--human)"), "human")
    return [
        legend({t: f"answers of iteration {t}" for t in known}, human),
        tag("div", figure("lengths of responses", plot), class_="wide"),
        table(["", "human", *(f"iteration {t}" for t in known)], rows),
        counts,
    ]


def sample_list(found: Sequence[Sample]) -> list[Html]:
    """Held-out prompts with all sides beside one another."""
    cards = []
    for sample in found:
        asked = [
            joined([tag("span", turn.role, class_="role"), tag("div", clipped(turn.content), class_="text")])
            for turn in sample.turns
        ]
        sides = [side(sample.real, "side human"), *(side(answer, "side") for answer in sample.answers)]
        cards.append(tag("article", tag("div", *asked, class_="ask"), tag("div", *sides, class_="sides")))
    return [tag("p", "The first held-out prompts, and what people and each version answer.", class_="note"), *cards]


def side(response: Response, kind: str) -> Html:
    """One response."""
    marks = [tag("span", mark, class_="chip") for mark in response.marks]
    head = tag("div", tag("b", response.name), f" {response.tokens:,} tokens ", *marks, class_="head")
    text = tag("div", clipped(response.text), class_="text") if response.text.strip() else tag("i", "nothing")
    return tag("div", head, text, class_=kind)


def clipped(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
