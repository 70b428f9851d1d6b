"""Notifications: the Prefect blocks that send them, and their texts."""

import os
import re
import socket
from urllib.parse import unquote, urlsplit

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.webhook import Webhook
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from pydantic import SecretStr

from infra.email_block import Email
from spin_core.config.trust import is_loopback
from spin_core.errors import ConfigError

_BLOCK = "spin-notify"
"""The name of the block that is created here."""

PASSWORD = "SPIN_SMTP_PASSWORD"
"""The environment variable that holds the mail server's password."""

_RUN_TEXT = (
    "{{ event.resource['prefect.resource.name'] }} is {{ event.resource['prefect.state-name'] }}: "
    "{{ event.resource['prefect.state-message'] }}"
)
_GATE_TEXT = "{{ event.resource['prefect.resource.name'] }}: {{ event.payload['reason'] }}"
_SUBJECT = "spin: {{ event.resource['prefect.resource.name'] }}"
_RUN_JSON = """{
  "text": {{ ("spin: " ~ event.resource['prefect.resource.name'] ~ " is " ~ event.resource['prefect.state-name'] ~ ": "
    ~ event.resource['prefect.state-message']) | tojson }},
  "event": {{ event.event | tojson }},
  "run": {{ event.resource['prefect.resource.id'] | tojson }}
}"""
_GATE_JSON = """{
  "text": {{ ("spin: " ~ event.resource['prefect.resource.name'] ~ ": " ~ event.payload['reason']) | tojson }},
  "event": {{ event.event | tojson }},
  "gate": {{ event.payload | tojson }}
}"""


def webhook(url: str) -> Block:
    """The webhook block, created or updated."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--notify-webhook {url!r} is not a URL: it must begin with http:// or https://")
    block = Webhook.model_validate({"url": url, "headers": {"Content-Type": "application/json"}})
    block.save(_BLOCK, overwrite=True)
    return block


def email(to: tuple[str, ...], server: str, sender: str) -> Block:
    """The e-mail block, created or updated."""
    block = email_block(to, server, sender)
    block.save(_BLOCK, overwrite=True)
    return block


def email_block(to: tuple[str, ...], server: str, sender: str) -> Email:
    """An e-mail block that is not saved.

    Args:
        to: The addresses that mails go to.
        server: The mail server's URL, as smtps://user@host:465.
        sender: The address that mails come from; by default the user, or one made from this machine's name.

    Raises:
        ConfigError: An address is not valid, the password is missing, or it is in the URL, where others may see it.
    """
    try:
        parts = urlsplit(server)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("smtp", "smtps"):
        raise ConfigError("--smtp does not name a mail server: write it as smtps://user@mail.example.org")
    if parts.password:
        raise ConfigError(f"--smtp contains a password, which others may see: remove it, and set {PASSWORD} to it")
    user, password = unquote(parts.username or ""), os.environ.get(PASSWORD, "")
    if user and not password:
        raise ConfigError(f"{user} has no password for {host}: set {PASSWORD} to it")
    sender = sender or (user if "@" in user else f"spin@{socket.getfqdn()}")
    for address in (*to, sender):
        if not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", address):
            raise ConfigError(f"{address!r} is not an e-mail address: write it as name@example.org")
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
    """A block of the server; `ConfigError` if it has none of that name."""
    try:
        block = Block.load(name)
    except ValueError as error:
        raise ConfigError(
            f"--notify-block {name!r} does not exist: create it in the UI under Blocks, and name it as TYPE/NAME"
        ) from error
    assert isinstance(block, Block), "called from a sync function"
    return block


def actions(block: Block) -> tuple[ActionTypes, ActionTypes]:
    """The action at the end of a run, and the action at a decision of the gate."""
    document = block._block_document_id
    assert document is not None, "the block is saved"
    if isinstance(block, Webhook):
        return (
            CallWebhook(block_document_id=document, payload=_RUN_JSON),
            CallWebhook(block_document_id=document, payload=_GATE_JSON),
        )
    if isinstance(block, NotificationBlock):
        return (
            SendNotification(block_document_id=document, subject=_SUBJECT, body=_RUN_TEXT),
            SendNotification(block_document_id=document, subject=_SUBJECT, body=_GATE_TEXT),
        )
    raise ConfigError(
        f"--notify-block names a {block.get_block_type_name()}, which sends nothing: name a webhook or a "
        "notification block"
    )
