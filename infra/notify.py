"""How people are told: the blocks that carry it, and what automations say by them."""

import os
import re
import socket
from urllib.parse import unquote, urlsplit

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.webhook import Webhook
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from pydantic import SecretStr

from flows.server.api import is_loopback
from infra.email_block import Email
from spin_core.errors import ConfigError

BLOCK = "spin-notify"
"""The name of the block that we make."""

PASSWORD = "SPIN_SMTP_PASSWORD"
"""The environment variable that holds the mail server's password."""

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


def webhook(url: str) -> Block:
    """The webhook block, made or brought up to date."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--notify-webhook {url!r} is no address: it begins with http:// or https://")
    made = Webhook.model_validate({"url": url, "headers": {"Content-Type": "application/json"}})
    made.save(BLOCK, overwrite=True)
    return made


def email(to: tuple[str, ...], server: str, sender: str) -> Block:
    """The mail block, made or brought up to date."""
    made = email_of(to, server, sender)
    made.save(BLOCK, overwrite=True)
    return made


def email_of(to: tuple[str, ...], server: str, sender: str) -> Email:
    """A mail block. `ConfigError` if an address is none, or if a password would be seen."""
    try:
        parts = urlsplit(server)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("smtp", "smtps"):
        raise ConfigError("--smtp names no mail server: write it as smtps://user@mail.example.org")
    if parts.password:
        raise ConfigError(f"--smtp brings a password, which others may see: take it out, and set {PASSWORD} to it")
    user, password = unquote(parts.username or ""), os.environ.get(PASSWORD, "")
    if user and not password:
        raise ConfigError(f"{user} has no password for {host}: set {PASSWORD} to it")
    sender = sender or (user if "@" in user else f"spin@{socket.getfqdn()}")
    for address in (*to, sender):
        if not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", address):
            raise ConfigError(f"{address!r} is no e-mail address: write it as name@example.org")
    plain = parts.scheme == "smtp" and is_loopback(host)
    return Email(
        host=host,
        port=port or (465 if parts.scheme == "smtps" else 25 if plain else 587),
        security="tls" if parts.scheme == "smtps" else "none" if plain else "starttls",
        user=user,
        password=SecretStr(password),
        sender=sender,
        to=list(to),
    )


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
