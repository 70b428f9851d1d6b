"""Commands for the local server: `spin up`, `status` and `down`."""

from pathlib import Path

import click

from flows.command_line.options import json_option, json_text, runs_option


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=4200, show_default=True, help="Port of the server and its UI."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Clients need the password in .prefect/password, in the runs folder.",
)
@click.option(
    "--reruns",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often a run that crashed is started again automatically.",
)
@click.option(
    "--at-once",
    type=click.IntRange(min=0),
    envvar="SPIN_AT_ONCE",
    default=1,
    show_default=True,
    help="How many runs compute at once on this machine, while others wait; 0 for any number.",
)
@runs_option
def up(port: int, host: str, reruns: int, at_once: int, runs: Path) -> None:
    """Start the UI: a server, the deployments and a worker, until Ctrl-C or `spin down`."""
    from flows.server import local

    local.prepare(runs, quiet=False, to_serve=True)
    from flows.server.serve import serve

    serve(runs, host, port, reruns, at_once)


@click.command()
@json_option
@runs_option
def status(as_json: bool, runs: Path) -> None:
    """Show what is up, what runs and how far it is, and the newest version of each lineage."""
    from flows.server import status as server_status

    now = server_status.status(runs)
    if as_json:
        click.echo(json_text(now.model_dump(mode="json")))
    else:
        from flows.command_line.printing.status import print_status

        print_status(now, runs)


@click.command()
@runs_option
def down(runs: Path) -> None:
    """Stop what `spin up` has started, and wait for it. Runs save their work and continue at the next `spin up`."""
    from flows.server import status

    status.down(runs)
