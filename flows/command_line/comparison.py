"""What the command line prints of a comparison."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as Grid

from flows.command_line.standings import SCORE_WIDTH
from flows.command_line.terminal import console
from spin_core.comparison import page
from spin_core.comparison.compare import Table

NAMES, COSTS = 58, 26
"""Columns of the terminal for names, the main score and the difference; and for what each method cost."""


def print_comparison(table: Table, runs: Path) -> None:
    """The table, with as many columns as the terminal has room for; how to read it; where it lies."""
    room = console.width - NAMES - COSTS
    tasks = page.shown(table)[: 1 + max(0, room // (2 * SCORE_WIDTH))]
    columns = 1 + 2 * len(tasks) + (3 if room >= 0 else 0)
    grid = Grid(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, text in enumerate(page.header(table, tasks)[:columns]):
        grid.add_column(escape(text), justify="right" if number else "left", no_wrap=number == 0)
    before = ""
    for line in table.lines:
        if before not in ("", line.method):
            grid.add_section()
        grid.add_row(*(text.replace(" ± ", "±") for text in page.cells(line, tasks)[:columns]))
        before = line.method
    console.print(f"\n[bold]SPIN compared: {table.name}[/]")
    console.print(grid)
    for note in page.notes(table):
        console.print(f"[dim]{escape(note)}[/]")
    folder = runs / table.name
    console.print(f"\npage       {folder / 'report.html'}    values {folder / 'compare.json'}")
    console.print(f"lineages   {' '.join(table.lineages)}")
