"""Make a server ready to look after runs and to tell people: `python -m infra.install`.

Installs what sees dead runs, what starts them again and, where asked, what tells people; each by name, so that it may
be run again at any time. The server is the one that PREFECT_API_URL names, with PREFECT_API_AUTH_STRING; else that of
`spin up` for the runs folder, which looks after its runs itself: there, the telling alone is installed.
"""

import os
import sys
from pathlib import Path

import click

from flows.server import api, local
from flows.server.local import HEARTBEAT_SECONDS
from spin_core.errors import ConfigError, SpinError

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"
FORGETFUL = (
    "warning    the server holds concurrency leases in memory: started anew, it crashes runs that hold one. Set "
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem there, or "
    "prefect_redis.lease_storage where several serve"
)


@click.command(help=(__doc__ or "").split("\n\n", 1)[1])
@click.option(
    "--recovery/--no-recovery",
    default=None,
    help="Have the server look after runs. Not where spin up does: on SQLite, that many events lock the database.",
)
@click.option(
    "--deadline",
    default=3.0 * HEARTBEAT_SECONDS,
    show_default=True,
    type=click.FloatRange(min=HEARTBEAT_SECONDS + 10),
    envvar="SPIN_DEADLINE",
    help="Seconds of silence after which a run counts as dead.",
)
@click.option(
    "--notify-webhook",
    "url",
    default="",
    envvar="SPIN_NOTIFY_WEBHOOK",
    help="Post a line of JSON here when a run or the gate says so.",
)
@click.option("--notify-email", "to", multiple=True, metavar="ADDRESS", help="Send a mail; may be repeated.")
@click.option(
    "--smtp",
    default="smtp://localhost",
    show_default=True,
    envvar="SPIN_SMTP",
    help="The mail server: smtps://user@host:465, or smtp://user@host:587, which encrypts too unless it is on this "
    "machine. The password is read from SPIN_SMTP_PASSWORD.",
)
@click.option("--email-from", "sender", default="", help="Whom mails come from; the user of --smtp if left out.")
@click.option(
    "--notify-block",
    "block",
    default="",
    metavar="TYPE/NAME",
    help="Tell people by a block that is there: a webhook, or any that notifies (sendgrid-email/NAME, …).",
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
    """Install, and say what is there now."""
    try:
        if bool(url) + bool(to) + bool(block) > 1:
            raise ConfigError("--notify-webhook, --notify-email and --notify-block are ways of the same: choose one")
        ours = choose_server(runs.absolute())
        names, forgetful = install(not ours if recovery is None else recovery, deadline, url, to, smtp, sender, block)
    except SpinError as error:
        click.echo(f"error  {error}", err=True)
        sys.exit(error.exit_code)
    for name in names:
        click.echo(f"installed  {name}")
    if forgetful:
        click.echo(FORGETFUL, err=True)


def choose_server(runs: Path) -> bool:
    """Set Prefect's environment for the server; whether it is that of `spin up`. `ConfigError` if there is none."""
    local.prepare(runs, quiet=False)
    named = os.environ.get("PREFECT_API_URL", "").rstrip("/").removesuffix("/api")
    if not named:
        raise ConfigError(
            f"no spin up serves {runs}: start it, or set PREFECT_API_URL to the server's address, as "
            "http://127.0.0.1:4200/api"
        )
    if not api.healthy(named):
        raise ConfigError(f"no Prefect server answers at {named}: see that it runs, and mend PREFECT_API_URL")
    return named == local.serving(runs)


def install(
    recovery: bool, deadline: float, url: str, to: tuple[str, ...], smtp: str, sender: str, block: str
) -> tuple[list[str], bool]:
    """The names of what is installed, and whether the server forgets leases when it ends."""
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
            f"the server wants another password: set {api.OF_CLIENTS} to its name:password, as it was started with"
        ) from error
    return [one.name for one in wanted], recovery and server["concurrency"]["lease_storage"] == IN_MEMORY


if __name__ == "__main__":
    main()
