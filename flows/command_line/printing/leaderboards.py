"""Leaderboards as the command line prints them: tables, differences and CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import accumulate, zip_longest
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.command_line.options import runs_argument, spin_command
from flows.command_line.printing.console import console
from spin_core.config.recipes import RECIPES
from spin_core.config.run import RunConfig
from spin_core.errors import count
from spin_core.leaderboard.board import (
    CHOSEN,
    Board,
    Row,
    decimals_of_column,
    differs_from_base,
    format_difference,
    format_score,
    significant,
)
from spin_core.reports import frontier
from spin_core.reports.formatting import ARROWS, heading

_TEMPERATURES = (0.3, 0.5, 0.7, 0.9, 1.1)
"""Temperatures that are suggested for a frontier."""

SCORE_WIDTH = 16
"""Columns of the terminal that a score takes: `0.1234±0.0012*`, and a space on each side."""

Leaderboards = Sequence[tuple[Board, RunConfig]]
"""The leaderboards of lineages, each with the configuration that says which scores are its headline."""


def print_leaderboards(leaderboards: Leaderboards, runs: Path, *, everything: bool = False) -> None:
    """Print one or several lineages in the same tables: as much of the headline as fits, then suite by suite.

    Args:
        leaderboards: What to print.
        runs: The folder that holds the lineages.
        everything: Print every score of every suite.
    """
    leaderboards = _scored(leaderboards, runs)
    boards = [board for board, _ in leaderboards]
    if not boards:
        return
    console.print(f"\n[bold]Leaderboard of {', '.join(board.lineage for board in boards)}[/]")
    _print_tables(boards, _headline(leaderboards, everything), reported=False)
    for suite in dict.fromkeys(suite for board in boards for suite in board.suites):
        scored = [board for board in boards if suite in board.suites]
        tasks = dict.fromkeys(
            task
            for board in scored
            for task in [
                *(board.main_tasks(suite) if board.has_score(suite) else []),
                *(board.suites[suite] if everything else []),
            ]
        )
        if tasks:
            console.print(f"[bold]{suite}[/]")
            _print_tables(scored, list(tasks), suite=suite)
    console.print(f"[dim]{'; '.join(_legend(boards, runs, everything))}[/]")
    for board in boards:
        for note in board.head_notes():
            console.print(f"[dim]{escape(f'{board.lineage}, {note}' if len(boards) > 1 else note)}[/]")


def _scored(leaderboards: Leaderboards, runs: Path) -> list[tuple[Board, RunConfig]]:
    """The leaderboards that have scores. Of each other lineage, say how to get some."""
    scored = [(board, config) for board, config in leaderboards if board.tasks()]
    for board, config in leaderboards:
        if (board, config) not in scored:
            command = f"{spin_command()} run {config.recipe} --lineage {board.lineage}{runs_argument(runs)}"
            if config.recipe not in RECIPES:  # a model that `spin evaluate` was given
                command = f"the same {spin_command()} evaluate again"
            console.print(
                f"{board.lineage} has no scores yet: start {command}, which scores θ_0 first",
                markup=False,
                soft_wrap=True,
            )
    return scored


def print_differences(leaderboards: Leaderboards, runs: Path, *, everything: bool = False) -> None:
    """Print each version's paired differences from the previous version and from θ_0, score by score."""
    leaderboards = _scored(leaderboards, runs)
    if not leaderboards:
        return
    for board, config in leaderboards:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("", "", "against"):
            table.add_column(name, no_wrap=True)
        table.add_column("difference [95 % interval]", justify="right")
        for task in board.tasks() if everything else board.headline(config):
            for row in (*board.rows, *board.controls):
                for difference in row.differences.get(task, ()):
                    text = escape(format_difference(difference)) + ("*" if significant(difference) else " ")
                    table.add_row(_title(board, task), board.name_of(row), f"θ_{difference.against}", text)
            table.add_section()
        console.print(f"\n[bold]Paired differences in {board.lineage}[/]")
        console.print(table)
    console.print("[dim]intervals by bootstrap over the items; * the interval excludes 0[/]")


def print_sources(leaderboards: Leaderboards, *, everything: bool = False) -> None:
    """Print each version's scores on the held-out prompts of each source."""
    for board, config in leaderboards:
        if not board.sources():
            console.print(
                f"{escape(board.lineage)} has no scores by source: its held-out prompts have one source, or were "
                "scored before such scores existed",
                soft_wrap=True,
            )
            continue
        console.print(f"\n[bold]Scores of {board.lineage} by source[/]")
        for source in board.sources():
            part = board.of_source(source)
            tasks = part.tasks() if everything else _headline([(part, config)], everything) or part.tasks()[:1]
            prompts = max(score.n for row in part.rows for score in row.scores.values())
            console.print(f"[bold]{escape(source)}[/], {count(prompts, 'prompt')}")
            _print_tables([part], tasks, reported=False)
    console.print(
        "[dim]value ± standard error; * differs from θ_0 on the source's prompts: the 95 % interval of the paired "
        f"difference excludes 0; {ARROWS}[/]"
    )


def print_frontiers(leaderboards: Leaderboards, runs: Path) -> None:
    """Print each lineage's versions against θ_0's curve over temperatures, and against the curves of controls."""
    for board, _ in leaderboards:
        swept = board.frontier
        if swept is None:
            console.print(
                f"{board.lineage} has no frontier: measure it with {spin_command()} evaluate {board.lineage} --set "
                f"'evaluate.frontier={list(_TEMPERATURES)}'{escape(runs_argument(runs))}",
                markup=False,
                soft_wrap=True,
            )
            continue
        console.print(f"\n[bold]Frontier of {board.lineage}[/]")
        console.print(_frontier_table(frontier.header(swept), [frontier.cells(row) for row in swept.rows]))
        if rows := frontier.control_rows(swept):
            console.print(f"[bold]{escape(frontier.control_title(swept))}[/]")
            console.print(_frontier_table(frontier.control_header(swept), rows))
        console.print(f"[dim]{escape(frontier.legend(swept))}[/]")
        if line := frontier.summary(board):
            console.print(f"\n{escape(line)}")


def _frontier_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of text cells, with as many columns as fit in the terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lines = [[cell.replace(" ± ", "±").replace(" *", "*") for cell in row] for row in rows]
    # Titles break between words, numbers never: a part of one would be another number.
    words = [title.split() if number else [title] for number, title in enumerate(header)]
    widths = [max(map(len, (*title, *cells))) for title, *cells in zip(words, *lines, strict=True)]
    columns = max(2, sum(end + 1 <= console.width for end in accumulate(width + 2 for width in widths)))
    for number, title in enumerate(header[:columns]):
        table.add_column(escape(title), justify="right" if number else "left", width=widths[number])
    for line in lines:
        table.add_row(*(escape(cell) for cell in line[:columns]))
    return table


def csv_text(boards: Sequence[Board]) -> str:
    """CSV with one line per score of each model; the column `source` marks what was reported elsewhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    differences = [f"{name}_{of}" for of in ("previous", "base") for name in ("delta", "stderr", "low", "high")]
    writer.writerow(
        [
            *("lineage", "model", "suite", "task", "value", "stderr", "low", "high", "n", "higher_is_better", "target"),
            *("gate", "plays_next", "source", *differences),
        ]
    )
    for board in boards:
        writer.writerows(_csv_rows(board))
    return text.getvalue()


def _headline(leaderboards: Leaderboards, everything: bool) -> list[str]:
    """The main scores: each lineage's first one, then each one's second; as many as fit unless `everything`."""
    in_turn = zip_longest(*(board.headline(config) for board, config in leaderboards))
    tasks = list(dict.fromkeys(task for tasks in in_turn for task in tasks if task))
    return tasks if everything else _first_fitting([board for board, _ in leaderboards], tasks)


def _legend(boards: Sequence[Board], runs: Path, everything: bool) -> list[str]:
    """What a reader must know to read the tables."""
    outcomes = dict.fromkeys(outcome for board in boards for row in board.rows if (outcome := _rejection(row)))
    sources = dict.fromkeys(f"paper: {row.model}" for board in boards for row in board.references)
    return [
        "value ± standard error",
        "* differs from θ_0: the 95 % interval of the paired difference excludes 0",
        ARROWS,
        *([f"{CHOSEN} the gate's choice"] if any(board.choice is not None for board in boards) else []),
        *([f"{' and '.join(outcomes)}: the gate found that version worse"] if outcomes else []),
        *sources,
        *(
            f"scores by source: spin leaderboard {board.lineage} --sources{escape(runs_argument(runs))}"
            for board in boards[:1]
            if board.sources()
        ),
        *(
            []
            if everything
            else [escape(f"all scores: {spin_command()} leaderboard {boards[0].lineage} --all{runs_argument(runs)}")]
        ),
    ]


def _first_fitting(boards: Sequence[Board], tasks: Sequence[str]) -> list[str]:
    """The first scores, as many as fit in the terminal next to the models' names; at least one."""
    rows = [(board, row) for board in boards for row in (*board.rows, *board.controls, *board.references)]
    names = [len(f"{board.name_of(row)} {_rejection(row)}".rstrip()) for board, row in rows]
    space = console.width - max(names, default=0) - 2
    widths = (
        max([SCORE_WIDTH, *(len(_score_cell(row, task, _decimals(boards, task))) + 2 for _, row in rows)])
        for task in tasks
    )
    return [
        task
        for number, (task, end) in enumerate(zip(tasks, accumulate(widths), strict=True))
        if end <= space or not number
    ]


def _print_tables(boards: Sequence[Board], tasks: Sequence[str], *, reported: bool = True, suite: str = "") -> None:
    """Print all lineages' models with some scores, in as many tables as the width needs."""
    while tasks:
        shown = _first_fitting(boards, tasks)
        console.print(_table(boards, shown, reported=reported, suite=suite))
        tasks = tasks[len(shown) :]


def _table(boards: Sequence[Board], tasks: Sequence[str], *, reported: bool, suite: str) -> Table:
    """All lineages' models with some scores. With `reported`, what was reported elsewhere follows, once."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    digits = {task: _decimals(boards, task) for task in tasks}
    for task in tasks:
        board = next((board for board in boards if task in board.tasks()), boards[0])
        table.add_column(_title(board, task, suite), justify="right")
    for board in boards:
        if len(boards) > 1:
            table.add_section()
            table.add_row(f"[bold]{board.lineage}[/]")
        for row in board.rows:
            outcome = _rejection(row)
            name = f"{board.name_of(row)} [dim]{outcome}[/]" if outcome else board.name_of(row)
            table.add_row(name, *(_score_cell(row, task, digits[task]) for task in tasks))
        table.add_section()
        for row in board.other_rows(tasks, reported=False):
            table.add_row(f"[dim]{row.name}[/]", *(_score_cell(row, task, digits[task]) for task in tasks))
    references = [
        row for board in boards for row in board.other_rows(tasks, reported=reported) if row in board.references
    ]
    table.add_section()
    for row in {row.name: row for row in references}.values():
        table.add_row(
            f"[dim italic]{row.name}[/]", *(f"[dim]{_score_cell(row, task, digits[task])}[/]" for task in tasks)
        )
    return table


def _rejection(row: Row) -> str:
    """`stop` or `keep-best` if the gate found the version worse; else empty."""
    return row.gate if row.gate and row.gate != "promote" else ""


def _decimals(boards: Sequence[Board], task: str) -> int:
    """The fewest decimals of a column, in which each marked score looks different from θ_0's."""
    return decimals_of_column((row for board in boards for row in (*board.rows, *board.controls)), task)


def _score_cell(row: Row, task: str, least: int) -> str:
    """A score with at least so many decimals, and with a star if it differs from θ_0's."""
    star = "*" if differs_from_base(row, task) else " "
    return escape(format_score(row.scores.get(task), least).replace(" ± ", "±") + star)


def _title(board: Board, task: str, suite: str = "") -> str:
    """A score's heading, escaped, since the tasks of a suite may have any name."""
    return escape(heading(board, task, suite).replace("_", " "))


def _csv_rows(board: Board) -> Iterator[list[object]]:
    """The lines of one lineage."""
    suite_of = {task: suite for suite, tasks in board.suites.items() for task in tasks}
    for source, rows in (("measured", (*board.rows, *board.controls)), ("reported", board.references)):
        for row in rows:
            plays_next = row.t is not None and row.t == board.choice
            for task, score in row.scores.items():
                differences = {difference.against: difference for difference in row.differences.get(task, ())}
                cells: list[object] = []
                for version in ((row.t or 0) - 1, 0):
                    change = differences.get(version)
                    cells += [change.delta, change.stderr, change.low, change.high] if change else [""] * 4
                yield [
                    *(board.lineage, row.name, suite_of.get(task, ""), task),
                    *(score.value, score.stderr, *(score.interval or ("", ""))),
                    *(score.n, score.higher_is_better, score.target),
                    *(row.gate or "", plays_next, source, *cells),
                ]
