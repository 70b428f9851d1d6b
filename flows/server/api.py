"""A client of a Prefect server's API without Prefect, whose import takes seconds; and the server's password.

`spin up` asks for a password if other machines can reach it. The password is in a file of the state folder that only
its owner may read. All commands for the same folder read it there.
"""

import base64
import contextlib
import http.client
import ipaddress
import json
import os
import re
import secrets
import ssl
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from spin_core.errors import ConfigError, TryAgain

OF_SERVER, OF_CLIENTS = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
"""Prefect's variables for the password, as name:password."""

_NAME = "spin"
"""The user name of a password that was made here."""


class Server:
    """A Prefect server."""

    def __init__(self, url: str, password: str = "") -> None:
        self.url = url
        self.headers = {"Content-Type": "application/json", "Prefect-Csrf-Client": str(uuid.uuid4())}
        if password:
            self.headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"

    def ask(self, path: str, query: Any) -> Any:
        """The server's answer to a POST request.

        Args:
            path: Path of the API, as `/flow_runs/filter`.
            query: The JSON body.

        Raises:
            TryAgain: The server does not answer.
            ConfigError: It rejects the password.
        """
        try:
            try:
                return self._send(path, query)
            except urllib.error.HTTPError as error:
                if error.code != 403:
                    raise
            # CSRF protection: the server requires a token, which the client fetches and which expires.
            client = self.headers["Prefect-Csrf-Client"]
            self.headers["Prefect-Csrf-Token"] = self._send(f"/csrf-token?client={client}")["token"]
            return self._send(path, query)
        # A server that is killed may send half an answer.
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 401:
                raise ConfigError(
                    f"the server at {self.url} rejects the password: set {OF_CLIENTS} to its name:password"
                ) from error
            raise TryAgain(f"the server at {self.url} does not answer ({error}): try again in a minute") from error

    def _send(self, path: str, query: Any = None) -> Any:
        """Send one request: GET without a query, else POST."""
        data = None if query is None else json.dumps(query).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/api{path}", data, self.headers), timeout=30
        ) as answer:
            return json.load(answer)


def healthy(url: str) -> bool:
    """Whether a Prefect server answers at `url`. No password is needed for that."""
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def is_reachable(address: str) -> bool:
    """Whether something answers at a PREFECT_API_URL, even with an error or with a certificate that is not trusted."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a host name or address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def password_file(state: Path) -> Path:
    """The file with the password of the server that has this state folder."""
    return state / "password"


def read_password(state: Path) -> str:
    """The password from the file; if that is missing or not readable, the environment's; else empty."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return password_file(state).read_text("utf-8").strip()
    return os.environ.get(OF_CLIENTS, "") or os.environ.get(OF_SERVER, "")


def choose_password(state: Path, host: str) -> str:
    """The password of a server that is about to listen on `host`, which is written to the file for clients.

    It is the environment's, if that has one; empty on a loopback address; else the file's, or a new one.

    Raises:
        ConfigError: The environment's password does not have the form that Prefect needs.
    """
    given, file = os.environ.get(OF_SERVER, ""), password_file(state)
    if given and not re.fullmatch(r"[!-9;-~]+:[!-~]+", given):
        raise ConfigError(f"{OF_SERVER} is not of the form name:password, in plain letters, digits and signs")
    if not given and is_loopback(host):
        return ""
    chosen = given or (file.exists() and file.read_text("utf-8").strip()) or f"{_NAME}:{secrets.token_urlsafe(18)}"
    file.unlink(missing_ok=True)  # the old file may be readable by others
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        print(chosen, file=out)
    return chosen
