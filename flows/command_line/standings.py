"""The leaderboards as the command line prints them: tables, differences and CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.command_line.terminal import console
from spin_core.config.run import RunConfig
from spin_core.leaderboard.board import (
    CHOSEN,
    Board,
    Row,
    differs_from_base,
    format_difference,
    format_score,
    significant,
)
from spin_core.reports.markdown import ARROWS, heading

SCORE_WIDTH = 16
"""Columns of the terminal that a score takes: `0.1234±0.0012*`, and a space on each side."""

Standings = Sequence[tuple[Board, RunConfig]]
"""Lineages' leaderboards, with what they were asked to show."""


def print_leaderboards(standings: Standings, *, everything: bool = False) -> None:
    """One or several lineages in the same tables: the headline that the terminal has room for, then suite by suite.

    With `everything`, every score of every suite. Under them stands what a reader of the last versions' scores should
    know.
    """
    boards = [board for board, _ in standings]
    console.print(f"\n[bold]Leaderboard of {', '.join(board.lineage for board in boards)}[/]")
    # Each lineage's main metric first, then each one's second score.
    in_turn = zip_longest(*(board.headline(config) for board, config in standings))
    shown = list(dict.fromkeys(task for tasks in in_turn for task in tasks if task))
    if not everything:
        shown = shown[: room(boards)]
    print_tables(boards, shown, reported=False)
    for suite in dict.fromkeys(suite for board in boards for suite in board.suites):
        having = [board for board in boards if suite in board.suites]
        tasks = dict.fromkeys(
            task
            for board in having
            for task in [
                *(board.main_tasks(suite) if board.has_score(suite) else []),
                *(board.suites[suite] if everything else []),
            ]
        )
        if tasks:
            console.print(f"[bold]{suite}[/]")
            print_tables(having, list(tasks), suite=suite)
    told = [f"{CHOSEN} the gate's choice"] if any(board.choice is not None for board in boards) else []
    outcomes = dict.fromkeys(fall for board in boards for row in board.rows if (fall := fall_of(row)))
    told += [f"{' and '.join(outcomes)}: the gate found that version worse"] if outcomes else []
    sources = dict.fromkeys(f"paper: {row.model}" for board in boards for row in board.references)
    legend = [
        "value ± standard error",
        "* differs from θ_0: the 95 % interval of the paired difference leaves out 0",
        ARROWS,
        *told,
        *sources,
        *([] if everything else [f"all scores: spin leaderboard {boards[0].lineage} --all"]),
    ]
    console.print(f"[dim]{'; '.join(legend)}[/]")
    for board in boards:
        for note in board.head_notes():
            console.print(f"[dim]{escape(f'{board.lineage}, {note}' if len(boards) > 1 else note)}[/]")


def room(boards: Sequence[Board]) -> int:
    """How many scores the terminal has room for beside the models' names."""
    rows = ((board, row) for board in boards for row in (*board.rows, *board.controls, *board.references))
    names = [len(f"{board.name_of(row)} {fall_of(row)}".rstrip()) for board, row in rows]
    return max(1, (console.width - max(names, default=0) - 2) // SCORE_WIDTH)


def print_tables(boards: Sequence[Board], tasks: Sequence[str], *, reported: bool = True, suite: str = "") -> None:
    """All lineages' models with some scores, as many to a table as the terminal has room for."""
    width = room(boards)
    for start in range(0, len(tasks), width):
        console.print(table_of(boards, tasks[start : start + width], reported=reported, suite=suite))


def table_of(boards: Sequence[Board], tasks: Sequence[str], *, reported: bool, suite: str) -> Table:
    """All lineages' models with some scores. What was reported elsewhere stands last, once, if at all."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for task in tasks:
        board = next((board for board in boards if task in board.tasks()), boards[0])
        table.add_column(title(board, task, suite), justify="right")
    for board in boards:
        if len(boards) > 1:
            table.add_section()
            table.add_row(f"[bold]{board.lineage}[/]")
        for row in board.rows:
            name = f"{board.name_of(row)} [dim]{fall_of(row)}[/]" if fall_of(row) else board.name_of(row)
            table.add_row(name, *(score_cell(row, task) for task in tasks))
        table.add_section()
        for row in board.beside(tasks, reported=False):
            table.add_row(f"[dim]{row.name}[/]", *(score_cell(row, task) for task in tasks))
    references = [row for board in boards for row in board.beside(tasks, reported=reported) if row in board.references]
    table.add_section()
    for row in {row.name: row for row in references}.values():
        table.add_row(f"[dim italic]{row.name}[/]", *(f"[dim]{score_cell(row, task)}[/]" for task in tasks))
    return table


def fall_of(row: Row) -> str:
    """`stop` or `keep-best` where the gate did not let a version play next; else nothing."""
    return row.gate if row.gate and row.gate != "promote" else ""


def score_cell(row: Row, task: str) -> str:
    """A score, starred if it differs from θ_0's."""
    star = "*" if differs_from_base(row, task) else " "
    return escape(format_score(row.scores.get(task)).replace(" ± ", "±") + star)


def title(board: Board, task: str, suite: str = "") -> str:
    """A score's heading. A suite's tasks may bear any name."""
    return escape(heading(board, task, suite).replace("_", " "))


def print_differences(standings: Standings, *, everything: bool = False) -> None:
    """Every version's paired differences, score by score: against the version before, and against θ_0."""
    for board, config in standings:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("", "", "against"):
            table.add_column(name, no_wrap=True)
        table.add_column("difference [95 % interval]", justify="right")
        for task in board.tasks() if everything else board.headline(config):
            for row in (*board.rows, *board.controls):
                for one in row.differences.get(task, ()):
                    told = escape(format_difference(one)) + ("*" if significant(one) else " ")
                    table.add_row(title(board, task), board.name_of(row), f"θ_{one.against}", told)
            table.add_section()
        console.print(f"\n[bold]Paired differences in {board.lineage}[/]")
        console.print(table)
    console.print("[dim]intervals by bootstrap over the items; * the interval leaves out 0[/]")


def csv_text(boards: Sequence[Board]) -> str:
    """One line for each score of each model; what was reported elsewhere is marked so."""
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
        writer.writerows(csv_rows(board))
    return text.getvalue()


def csv_rows(board: Board) -> Iterator[list[object]]:
    """The lines of one lineage."""
    suite_of = {task: suite for suite, tasks in board.suites.items() for task in tasks}
    for source, rows in (("measured", (*board.rows, *board.controls)), ("reported", board.references)):
        for row in rows:
            chosen = row.t is not None and row.t == board.choice
            for task, score in row.scores.items():
                by_version = {one.against: one for one in row.differences.get(task, ())}
                pair = by_version.get((row.t or 0) - 1), by_version.get(0)
                known = [(one.delta, one.stderr, one.low, one.high) if one else ("",) * 4 for one in pair]
                yield [
                    *(board.lineage, row.name, suite_of.get(task, ""), task),
                    *(score.value, score.stderr, *(score.interval or ("", ""))),
                    *(score.n, score.higher_is_better, score.target),
                    *(row.gate or "", chosen, source, *known[0], *known[1]),
                ]
