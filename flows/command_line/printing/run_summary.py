"""What `spin run` and `spin next` print last."""

from pathlib import Path

from rich.markup import escape

from flows.command_line.options import runs_argument, spin_command
from flows.command_line.printing.console import console
from spin_core.leaderboard.board import Board
from spin_core.lineage.find import find_lineage
from spin_core.reports import frontier
from spin_core.reports.formatting import report_path


def print_summary(runs: Path, name: str, board: Board | None = None) -> None:
    """Print how a run ended: the gate, the frontier, the paths of the artifacts, and the commands that show them."""
    from prefect.settings import PREFECT_UI_URL

    from flows.labels import artifact_url

    lineage = find_lineage(runs, name)
    records = lineage.records()
    if records and records[-1].gate.outcome == "stop":
        console.print(f"\n[yellow]gate[/]       {records[-1].gate.reason}")
    if board is not None and (line := frontier.summary(board)):
        console.print(f"\nfrontier   {escape(line)}", soft_wrap=True)
    console.print(f"\nartifacts  {runs / name}")
    command, where = escape(spin_command()), escape(runs_argument(runs))
    between = "\n" if where else "        "
    console.print(
        f"samples    {command} samples {name}{where}{between}records    {command} show {name}{where}", soft_wrap=True
    )
    console.print(f"report     {report_path(lineage)}")
    # Without a server, the address is the one that `spin up` serves later.
    up = "" if PREFECT_UI_URL.value() else f"{command} up{where}, sign in at the address that it prints, then open "
    console.print(f"in the UI  {up}{artifact_url('leaderboard', name)}", soft_wrap=True)
