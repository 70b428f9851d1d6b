"""Prefect's missing block: tells people by e-mail through any SMTP server (its own speaks to SendGrid alone).

Prefect finds it by the entry point `prefect.collections`, in whatever process sends: a server, or a team's services.
"""

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from typing import Literal

from prefect.blocks.abstract import NotificationBlock, NotificationError
from pydantic import Field, SecretStr

PATIENCE_SECONDS = 30.0
"""How long the mail server may take for one answer."""


class Email(NotificationBlock):
    """Sends plain texts by SMTP."""

    _block_type_name = "Spin Email"
    _block_type_slug = "spin-email"

    host: str = Field(description="The mail server.")
    port: int = Field(description="Its port.")
    security: Literal["starttls", "tls", "none"] = Field(description="Where encryption begins.")
    user: str = Field(default="", description="Who logs in; nobody if empty.")
    password: SecretStr = Field(default=SecretStr(""), description="Their password.")
    sender: str = Field(description="The address that mails come from.")
    to: list[str] = Field(description="The addresses that they go to.")

    async def notify(self, body: str, subject: str | None = None) -> None:
        """Send one mail. Raises `NotificationError` where whoever calls wants to know."""
        try:
            await asyncio.to_thread(self.send, body, subject or "spin")
        except (smtplib.SMTPException, OSError) as error:
            if self._raise_on_failure:
                raise NotificationError(log=f"{self.host}:{self.port}: {error}") from error
            self.logger.warning("no mail was sent by %s:%d: %s", self.host, self.port, error)

    def send(self, body: str, subject: str) -> None:
        """The same, in this thread."""
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = self.sender, ", ".join(self.to), " ".join(subject.split())
        mail.set_content(body)
        trusted = ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(self.host, self.port, timeout=PATIENCE_SECONDS, context=trusted)
            if self.security == "tls"
            else smtplib.SMTP(self.host, self.port, timeout=PATIENCE_SECONDS)
        ) as server:
            if self.security == "starttls":
                server.starttls(context=trusted)
            if self.user:
                server.login(self.user, self.password.get_secret_value())
            server.send_message(mail)
