"""A Prefect block that sends e-mail through any SMTP server. Prefect's own block supports SendGrid only.

Prefect finds it by the entry point `prefect.collections`, in each process that sends: a server, or a team's services.
"""

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from typing import Literal

from prefect.blocks.abstract import NotificationBlock, NotificationError
from pydantic import Field, SecretStr

_TIMEOUT_SECONDS = 30.0
"""How long the mail server may take to answer."""


class Email(NotificationBlock):
    """Sends plain text by SMTP."""

    _block_type_name = "Spin Email"
    _block_type_slug = "spin-email"

    host: str = Field(description="The mail server.")
    port: int = Field(description="Its port.")
    security: Literal["starttls", "tls", "none"] = Field(description="How the connection is encrypted.")
    user: str = Field(default="", description="User name for login; no login if empty.")
    password: SecretStr = Field(default=SecretStr(""), description="The user's password.")
    sender: str = Field(description="The address that mails come from.")
    to: list[str] = Field(description="The addresses that mails go to.")

    async def notify(self, body: str, subject: str | None = None) -> None:
        """Send one mail. Failures are logged, or raised as `NotificationError` if the caller has asked for that."""
        try:
            await asyncio.to_thread(self._send, body, subject or "spin")
        except (smtplib.SMTPException, OSError) as error:
            if self._raise_on_failure:
                raise NotificationError(log=f"{self.host}:{self.port}: {error}") from error
            self.logger.warning("no mail was sent by %s:%d: %s", self.host, self.port, error)

    def _send(self, body: str, subject: str) -> None:
        """The same, blocking."""
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = self.sender, ", ".join(self.to), " ".join(subject.split())
        mail.set_content(body)
        context = ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(self.host, self.port, timeout=_TIMEOUT_SECONDS, context=context)
            if self.security == "tls"
            else smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT_SECONDS)
        ) as server:
            if self.security == "starttls":
                server.starttls(context=context)
            if self.user:
                server.login(self.user, self.password.get_secret_value())
            server.send_message(mail)
