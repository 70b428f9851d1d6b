"""The table of a comparison, as `spin compare` prints it."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from flows.command_line.printing.console import console
from flows.command_line.printing.leaderboards import SCORE_WIDTH
from spin_core.comparison import frontier, page
from spin_core.comparison.compare import Table
from spin_core.comparison.frontier import SeedFrontier

_NAMES_WIDTH = 58
"""Columns of the terminal for names, the main score and the difference."""
_COSTS_WIDTH = 26
"""Columns of the terminal for what each method cost."""


def print_comparison(table: Table, runs: Path) -> None:
    """Print the table with as many columns as fit in the terminal, how to read it, and the path of its page."""
    space = console.width - _NAMES_WIDTH - _COSTS_WIDTH
    # A score takes two columns: the value and its difference. Costs are the first to go.
    tasks = page.shown(table)[: 1 + max(0, space // (2 * SCORE_WIDTH))]
    columns = 1 + 2 * len(tasks) + (3 if space >= 0 else 0)
    grid = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, text in enumerate(page.header(table, tasks)[:columns]):
        grid.add_column(escape(text), justify="right" if number else "left", no_wrap=number == 0)
    previous = ""
    for line in table.lines:
        if previous not in ("", line.method):
            grid.add_section()
        grid.add_row(*(text.replace(" ± ", "±") for text in page.cells(line, tasks)[:columns]))
        previous = line.method
    console.print(f"\n[bold]SPIN compared: {table.name}[/]")
    console.print(grid)
    for note in page.notes(table):
        console.print(f"[dim]{escape(note)}[/]")
    if table.frontier is not None:
        _print_frontier(table.frontier)
    folder = runs / table.name
    console.print(f"\npage       {folder / 'report.html'}    values {folder / 'compare.json'}")
    console.print(f"lineages   {' '.join(table.lineages)}")


def _print_frontier(swept: SeedFrontier) -> None:
    """Print how far each method is from θ_0's curve over temperatures."""
    grid = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, text in enumerate(swept.header()):
        grid.add_column(escape(text), justify="right" if number else "left")
    for line in swept.lines:
        grid.add_row(*(escape(text.replace(" ± ", "±").replace(" *", "*")) for text in frontier.cells(line)))
    console.print("\n[bold]Frontier over temperatures[/]")
    console.print(grid)
    console.print(f"[dim]{escape(frontier.FRONTIER_NOTE)}[/]")
