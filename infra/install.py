"""Make a team's server ready to look after runs by itself: `python -m infra.install`.

Installs what sees dead runs, what starts them again and, where asked, what tells people; each by name, so that it may
be run again at any time. The server is the one that PREFECT_API_URL names. `spin up` looks after its runs itself: for
its server, `--no-recovery` installs the telling alone.
"""

import os
import sys

import click
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore

from infra import automations
from spin_core.errors import ConfigError, SpinError

BLOCK = "spin-notify"
"""The name of the webhook block that `--notify-webhook` makes."""

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"
FORGETFUL = (
    "warning    the server holds concurrency leases in memory: started anew, it crashes runs that hold one. Set "
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem there, or "
    "prefect_redis.lease_storage where several serve"
)

RUN_SAID = (
    "{{ event.resource['prefect.resource.name'] }} is {{ event.resource['prefect.state-name'] }}: "
    "{{ event.resource['prefect.state-message'] }}"
)
GATE_SAID = "{{ event.resource['prefect.resource.name'] }}: {{ event.payload['reason'] }}"
SUBJECT = "spin: {{ event.resource['prefect.resource.name'] }}"
RUN_JSON = """{
  "text": {{ ("spin: " ~ event.resource['prefect.resource.name'] ~ " is " ~ event.resource['prefect.state-name'] ~ ": "
    ~ event.resource['prefect.state-message']) | tojson }},
  "event": {{ event.event | tojson }},
  "run": {{ event.resource['prefect.resource.id'] | tojson }}
}"""
GATE_JSON = """{
  "text": {{ ("spin: " ~ event.resource['prefect.resource.name'] ~ ": " ~ event.payload['reason']) | tojson }},
  "event": {{ event.event | tojson }},
  "gate": {{ event.payload | tojson }}
}"""


@click.command(help=(__doc__ or "").split("\n\n", 1)[1])
@click.option(
    "--recovery/--no-recovery",
    default=True,
    help="Have the server look after runs. Not where spin up does: on SQLite, that many events lock the database.",
)
@click.option(
    "--deadline",
    default=automations.DEADLINE_SECONDS,
    show_default=True,
    type=click.FloatRange(min=automations.HEARTBEAT_SECONDS + 10),
    help="Seconds of silence after which a run counts as dead.",
)
@click.option("--notify-webhook", "url", default="", help="Post a line of JSON here when a run or the gate says so.")
@click.option(
    "--notify-block",
    "block",
    default="",
    metavar="TYPE/NAME",
    help="Tell people by a block that is there: a webhook, or any that notifies (sendgrid-email/NAME, …).",
)
def main(recovery: bool, deadline: float, url: str, block: str) -> None:
    """Install, and say what is there now."""
    try:
        if not os.environ.get("PREFECT_API_URL"):
            raise ConfigError("set PREFECT_API_URL to the server's address, as http://127.0.0.1:4200/api")
        with get_client(sync_client=True) as client:
            server = client.request("GET", "/admin/settings").json()["server"]
            wanted = automations.recovery(deadline) if recovery else []
            if url or block:
                wanted += notifications(url, block)
            automations.install(client, wanted)
    except SpinError as error:
        click.echo(f"error  {error}", err=True)
        sys.exit(error.exit_code)
    for one in wanted:
        click.echo(f"installed  {one.name}")
    if recovery and server["concurrency"]["lease_storage"] == IN_MEMORY:
        click.echo(FORGETFUL, err=True)


def notifications(url: str, block: str) -> list[AutomationCore]:
    """What tells people, by a webhook of our own or by a block that the user has made."""
    if url and block:
        raise ConfigError("--notify-webhook and --notify-block are two ways of the same: choose one")
    return automations.notifications(*actions(webhook(url) if url else load(block)))


def webhook(url: str) -> Block:
    """The webhook block, made or brought up to date."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--notify-webhook {url!r} is no address: it begins with http:// or https://")
    made = Webhook.model_validate({"url": url, "headers": {"Content-Type": "application/json"}})
    made.save(BLOCK, overwrite=True)
    return made


def load(name: str) -> Block:
    """A block of the server. `ConfigError` if there is none of that name."""
    try:
        found = Block.load(name)
    except ValueError as error:
        raise ConfigError(
            f"--notify-block {name!r} is not there: make it in the UI under Blocks, and name it as TYPE/NAME"
        ) from error
    assert isinstance(found, Block), "called from a sync function"
    return found


def actions(block: Block) -> tuple[ActionTypes, ActionTypes]:
    """What is done when a run ends, and when the gate has decided."""
    number = block._block_document_id
    assert number is not None, "the block is saved"
    if isinstance(block, Webhook):
        return (
            CallWebhook(block_document_id=number, payload=RUN_JSON),
            CallWebhook(block_document_id=number, payload=GATE_JSON),
        )
    if isinstance(block, NotificationBlock):
        return (
            SendNotification(block_document_id=number, subject=SUBJECT, body=RUN_SAID),
            SendNotification(block_document_id=number, subject=SUBJECT, body=GATE_SAID),
        )
    raise ConfigError(
        f"--notify-block names a {block.get_block_type_name()}, which tells nobody: name a webhook or a notifier"
    )


if __name__ == "__main__":
    main()
