"""A mail server on this machine that accepts mails from clients that log in as `spin`."""

import email
import email.policy
import queue
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session


class Mailbox:
    """The mails that were sent, in order."""

    def __init__(self) -> None:
        self.port = 0
        self.envelopes: queue.Queue[Envelope] = queue.Queue()

    async def handle_DATA(self, _server: Any, session: Session, envelope: Envelope) -> str:  # noqa: N802 (its name)
        assert session.authenticated
        self.envelopes.put(envelope)
        return "250 OK"

    def next(self) -> tuple[Envelope, EmailMessage]:
        """The next mail, with its envelope."""
        envelope = self.envelopes.get(timeout=60)
        assert isinstance(envelope.content, bytes)
        return envelope, email.message_from_bytes(envelope.content, policy=email.policy.default)


@contextmanager
def mailbox(password: str, certificate: ssl.SSLContext | None = None, *, at_once: bool = False) -> Iterator[Mailbox]:
    """A server on a free port. With a certificate it encrypts: from the start, or after STARTTLS."""
    box = Mailbox()

    def log_in(*given: Any) -> AuthResult:
        return AuthResult(success=given[-1] == LoginPassword(b"spin", password.encode()), handled=False)

    secure = {"ssl_context": certificate} if at_once else {"tls_context": certificate}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        box.port = probe.getsockname()[1]
    server = Controller(
        box, "127.0.0.1", box.port, authenticator=log_in, auth_require_tls=False, ready_timeout=60.0, **secure
    )
    server.start()
    try:
        yield box
    finally:
        server.stop()
