"""What `spin status` prints."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.command_line.options import runs_argument, spin_command
from spin_core.reports.links import LINEAGES

if TYPE_CHECKING:
    from flows.server.schedules import Schedule
    from flows.server.status import Failure, Head, Run, Status


def print_status(status: "Status", runs: Path) -> None:
    """Print the server, its runs and the lineages of a folder."""
    if status.url:
        click.echo(f"up         {status.url} for {timedelta(seconds=int(status.seconds))}")
        click.echo(f"sign in    {_sign_in(status)}")
        click.echo(f"pages      {status.url}{LINEAGES}")
        _print_runs(status)
        if status.failures:
            click.echo(f"failed     {_column([_failure_line(each) for each in status.failures])}")
        click.echo(f"nightly    {_column([_schedule_line(each) for each in status.schedules]) or 'none'}")
    elif status.elsewhere:
        click.echo(f"up         on {status.elsewhere}: run spin status there to see more")
    elif status.starting:
        click.echo("starting   spin up has been started and is not ready yet: try again in a minute")
    elif status.unanswered:
        click.echo("no answer  spin up runs, but its server is busy, restarts, or ends: try again in a minute")
    else:
        click.echo(f"nothing is up for {runs}: {spin_command()} up{runs_argument(runs)} starts it")
    if status.runs and not status.url:
        _print_runs(status)
    lines = [_head_line(head) for head in status.lineages] + [unreadable_line(name, runs) for name in status.unreadable]
    click.echo(f"lineages   {_column(lines) or f'none yet in {runs}'}")
    if status.open_to_others:
        click.echo(
            f"{click.style('warning', fg='yellow')}  other users may read {', '.join(status.open_to_others)}, where "
            f"passwords are: run chmod -R go= {shlex.quote(status.open_to_others[0])}, or spin up again",
            err=True,
        )


def _print_runs(status: "Status") -> None:
    """Print what computes or waits."""
    click.echo(f"runs       {_column([_run_line(run) for run in status.runs]) or 'none'}")


def _sign_in(status: "Status") -> str:
    """The address that signs a browser in; or where the password is, if others may read what is printed."""
    from flows.server.state import is_output_private, read_password, sign_in_url

    file = Path(status.password_file)
    signed_in = sign_in_url(status.url, read_password(file.parent)) if is_output_private() else ""
    return signed_in or f"with the whole line in {file}"


def unreadable_line(name: str, runs: Path) -> str:
    """`old  cannot be read …`."""
    return f"{name}  cannot be read: {spin_command()} show {name}{runs_argument(runs)} shows why"


def _column(lines: Sequence[str]) -> str:
    """Lines one below the other, indented as far as the first, which follows a heading."""
    return "\n           ".join(lines)


def _run_line(run: "Run") -> str:
    """`nightly-mine  Running: train t=2 43 %` or `mine  Running in a terminal (process 12) since 02:00: …`."""
    phases = ", ".join(
        phase.name + (f" {phase.percent:.0f} %" if phase.percent is not None else "") for phase in run.phases
    )
    again = f" (start {run.started})" if run.started > 1 else ""
    if run.process:
        since = f" since {run.since.astimezone():%Y-%m-%d %H:%M}" if run.since else ""
        again = f" in a terminal (process {run.process}){since}"
    return f"{run.name}  {run.state}{again}" + (f": {text}" if (text := run.waits or phases) else "")


def _failure_line(failure: "Failure") -> str:
    """`nightly-mine  at 2026-12-01 02:03: lineage mine …`."""
    return f"{failure.name}  at {failure.ended.astimezone():%Y-%m-%d %H:%M}: {failure.sentence}"


def _schedule_line(schedule: "Schedule") -> str:
    """`mine  at 02:00 Europe/Berlin, next 2026-12-02 02:00`."""
    from flows.server.schedules import next_due, state_line

    due = next_due(schedule, datetime.now(UTC))
    return f"{schedule.lineage or 'no lineage'}  {state_line(schedule)}" + (f", next {due}" if due else "")


def _head_line(head: "Head") -> str:
    """`mine  θ_3, and iteration 3 has begun`."""
    if head.head is None:
        return f"{head.lineage}  no version yet"
    begun = f", and iteration {head.head} has begun" if head.begun else ""
    return f"{head.lineage}  θ_{head.head}{begun}" + (f"; ended: {head.ended}" if head.ended else "")
