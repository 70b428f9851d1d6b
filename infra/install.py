"""Install automations on a Prefect server: `python -m infra.install`.

Installs automations that detect dead runs, start them again and, on request, notify people. Each has a name, so that
this command may be run again at any time. The server is the one that PREFECT_API_URL names, with
PREFECT_API_AUTH_STRING; else that of `spin up` for the runs folder. `spin up` looks after its runs itself, so there
only notifications are installed.
"""

import os
import sys
from pathlib import Path

import click

from flows.server import api, local
from flows.server.local import HEARTBEAT_SECONDS
from flows.server.state import OF_CLIENTS
from spin_core.errors import ConfigError, SpinError

_IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"
_LEASES_IN_MEMORY = (
    "warning    the server keeps concurrency leases in memory: after a restart, runs that hold one crash. Set "
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem there, or "
    "prefect_redis.lease_storage if there are several servers"
)


@click.command(help=(__doc__ or "").split("\n\n", 1)[1])
@click.option(
    "--recovery/--no-recovery",
    default=None,
    help="Have the server look after runs. Default: unless spin up does; on SQLite, its many events lock the database.",
)
@click.option(
    "--deadline",
    default=3.0 * HEARTBEAT_SECONDS,
    show_default=True,
    type=click.FloatRange(min=HEARTBEAT_SECONDS + 10),
    envvar="SPIN_DEADLINE",
    help="A run without a heartbeat for this many seconds counts as dead.",
)
@click.option(
    "--notify-webhook",
    "url",
    default="",
    envvar="SPIN_NOTIFY_WEBHOOK",
    help="URL that gets a POST request with JSON when a run ends or the gate decides.",
)
@click.option("--notify-email", "to", multiple=True, metavar="ADDRESS", help="Send an e-mail; may be repeated.")
@click.option(
    "--smtp",
    default="smtp://localhost",
    show_default=True,
    envvar="SPIN_SMTP",
    help="The mail server: smtps://user@host:465, or smtp://user@host:587, which is encrypted unless it is on this "
    "machine. The password is read from SPIN_SMTP_PASSWORD.",
)
@click.option("--email-from", "sender", default="", help="Address that mails come from; default: the user of --smtp.")
@click.option(
    "--notify-block",
    "block",
    default="",
    metavar="TYPE/NAME",
    help="Notify by an existing block: a webhook, or any notification block (sendgrid-email/NAME, …).",
)
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs",
    envvar="SPIN_RUNS",
    help="The folder that a spin up serves.",
)
def main(
    recovery: bool | None,
    deadline: float,
    url: str,
    to: tuple[str, ...],
    smtp: str,
    sender: str,
    block: str,
    runs: Path,
) -> None:
    """Install automations, and print their names."""
    try:
        if bool(url) + bool(to) + bool(block) > 1:
            raise ConfigError("--notify-webhook, --notify-email and --notify-block exclude each other: choose one")
        is_spin_up = choose_server(runs.absolute())
        names, forgets = install(
            not is_spin_up if recovery is None else recovery, deadline, url, to, smtp, sender, block
        )
    except SpinError as error:
        click.echo(f"error  {error}", err=True)
        sys.exit(error.exit_code)
    for name in names:
        click.echo(f"installed  {name}")
    if forgets:
        click.echo(_LEASES_IN_MEMORY, err=True)


def choose_server(runs: Path) -> bool:
    """Set Prefect's environment for the server; returns whether that is the server of `spin up`.

    Raises:
        ConfigError: There is no server.
    """
    if local.serving(runs) or "PREFECT_API_URL" in os.environ:
        local.prepare(runs, quiet=False)
    named = os.environ.get("PREFECT_API_URL", "").rstrip("/").removesuffix("/api")
    if not named:
        raise ConfigError(
            f"no spin up serves {runs}: start it, or set PREFECT_API_URL to the server's address, as "
            "http://127.0.0.1:4200/api"
        )
    if not api.healthy(named):
        raise ConfigError(f"no Prefect server answers at {named}: start it, or correct PREFECT_API_URL")
    return named == local.serving(runs)


def install(
    recovery: bool, deadline: float, url: str, to: tuple[str, ...], smtp: str, sender: str, block: str
) -> tuple[list[str], bool]:
    """The names of the installed automations, and whether the server loses its leases when it ends."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    from infra import automations, notify

    try:
        with get_client(sync_client=True) as client:
            server = client.request("GET", "/admin/settings").json()["server"]
            wanted = automations.recovery(deadline) if recovery else []
            if url or to or block:
                by = notify.webhook(url) if url else notify.email(to, smtp, sender) if to else notify.load(block)
                wanted += automations.notifications(*notify.actions(by))
            automations.install(client, wanted)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 401:
            raise
        raise ConfigError(
            f"the server rejects the password: set {OF_CLIENTS} to the name:password that it was started with"
        ) from error
    return [automation.name for automation in wanted], recovery and server["concurrency"]["lease_storage"] == _IN_MEMORY


if __name__ == "__main__":
    main()
