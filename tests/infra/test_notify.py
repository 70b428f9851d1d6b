"""Telling people by mail: a real mail server on this machine, with and without encryption."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prefect.blocks.abstract import NotificationError
from prefect.events.actions import SendNotification
from pydantic import SecretStr

from infra import notify
from infra.email_block import Email
from spin_core.errors import ConfigError
from tests.support.servers.mail_server import mailbox

PASSWORD = "a password"


def block(port: int, security: str = "none", password: str = PASSWORD) -> Email:
    people = {"sender": "spin@example.org", "to": ["me@example.org", "you@example.org"]}
    return Email(host="127.0.0.1", port=port, security=security, user="spin", password=SecretStr(password), **people)


def send(block: Email, body: str, subject: str) -> None:
    with block.raise_on_failure():
        asyncio.run(block.notify(body, subject))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A self-signed certificate for this machine, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    signed = builder.add_extension(here, critical=True).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_a_mail_arrives_however_the_server_encrypts(security, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    theirs = None
    if security != "none":
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(certificate)
    with mailbox(PASSWORD, theirs, at_once=security == "tls") as box:
        send(block(box.port, security), "θ_1 leads.\n", "spin: a name\nthat breaks")
        envelope, mail = box.next()
    assert envelope.rcpt_tos == ["me@example.org", "you@example.org"]
    assert mail["Subject"] == "spin: a name that breaks"
    assert mail.get_content() == "θ_1 leads.\r\n"


def test_an_unverified_server_gets_no_password(certificate):
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)
    with mailbox(PASSWORD, theirs) as box:
        with pytest.raises(NotificationError) as refused:
            send(block(box.port, "starttls"), "x", "x")
        assert "certificate verify failed" in refused.value.log
        assert box.envelopes.empty()


def test_a_server_that_does_not_encrypt_is_sent_no_password():
    with mailbox(PASSWORD) as box, pytest.raises(NotificationError) as refused:
        send(block(box.port, "starttls"), "x", "x")
    assert "STARTTLS" in refused.value.log


def test_errors_are_reported_without_the_password():
    with mailbox("another") as box, pytest.raises(NotificationError) as refused:
        send(block(box.port), "x", "x")
    assert "535" in refused.value.log
    assert PASSWORD not in refused.value.log


@pytest.mark.parametrize(
    ("server", "security", "port"),
    [
        ("smtps://me%40example.org@mail.example.org", "tls", 465),
        ("smtp://me%40example.org@mail.example.org", "starttls", 587),
        ("smtp://mail.example.org:2525", "starttls", 2525),
        ("smtp://localhost", "none", 25),
    ],
)
def test_passwords_cross_no_network_in_the_clear(server, security, port, monkeypatch):
    monkeypatch.setenv(notify.PASSWORD, PASSWORD)
    made = notify.email_block(("you@example.org",), server, "")
    assert (made.security, made.port) == (security, port)
    assert made.user in ("me@example.org", "")
    assert "@" in made.sender


@pytest.mark.parametrize(
    ("server", "to", "message"),
    [
        ("mail.example.org", "me@example.org", "write it as smtps://user@mail.example.org"),
        ("smtps://me:secret@mail.example.org", "me@example.org", "set SPIN_SMTP_PASSWORD to it"),
        ("smtps://me@mail.example.org", "me@example.org", "me has no password for mail.example.org"),
        ("smtp://localhost", "me", "'me' is not an e-mail address"),
        ("smtp://localhost", "a@b.org\nBcc: c@d.org", "is not an e-mail address"),
        ("smtp://localhost:port", "me@example.org", "write it as smtps://user@mail.example.org"),
    ],
)
def test_invalid_settings_of_mail_are_rejected_with_the_fix(server, to, message):
    with pytest.raises(ConfigError) as refused:
        notify.email_block((to,), server, "")
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


def test_automations_send_by_it():
    made = block(25)
    made._block_document_id = "3f2b9a3c-5d6f-4a52-9ad1-bd4a3f4f7d11"
    assert all(isinstance(action, SendNotification) for action in notify.actions(made))
