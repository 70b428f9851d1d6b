"""What `spin check` prints."""

from collections import Counter

from rich.markup import escape
from rich.table import Table

from flows.command_line.printing.console import console
from spin_core.errors import count
from spin_core.preflight.findings import Findings

_SIGNS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "wrong": "[red]wrong[/]"}


def print_findings(findings: Findings) -> None:
    """Print one line per finding, and whether the run can start."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path is broken, and not cut
    for finding in findings.findings:
        table.add_row(_SIGNS[finding.level], f"[bold]{finding.subject}[/]", escape(finding.text))
    console.print(table)
    levels = Counter(finding.level for finding in findings.findings)
    wrong, warnings = levels["wrong"], f", with {count(levels['warn'], 'warning')}" if levels["warn"] else ""
    if wrong:
        console.print(f"\n[red]not ready[/]: {count(wrong, 'thing')} {'is' if wrong == 1 else 'are'} wrong{warnings}")
    else:
        console.print(f"\n[green]ready[/]: no problems found{warnings}")
