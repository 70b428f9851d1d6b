"""The API of a Prefect server, asked without Prefect, whose import takes seconds; and the password it may want.

`spin up` wants one as soon as it serves others than this machine. It stands in a file of the state folder that its
owner alone may read, where all commands for the same folder find it; nobody else is told.
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
"""Prefect's own variables for the password, as name:password."""

NAME = "spin"
"""Whose password one is that nobody chose."""


class Server:
    """A server that is asked."""

    def __init__(self, url: str, password: str = "") -> None:
        self.url = url
        self.headers = {"Content-Type": "application/json", "Prefect-Csrf-Client": str(uuid.uuid4())}
        if password:
            self.headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"

    def ask(self, path: str, query: Any) -> Any:
        """The answer to a query. `TryAgain` if the server gives none, `ConfigError` if it wants another password."""
        try:
            try:
                return self.send(path, query)
            except urllib.error.HTTPError as error:
                if error.code != 403:
                    raise
            # Against requests that other pages make a browser send: it wants a token that we have fetched, and lets
            # it grow old.
            client = self.headers["Prefect-Csrf-Client"]
            self.headers["Prefect-Csrf-Token"] = self.send(f"/csrf-token?client={client}")["token"]
            return self.send(path, query)
        # A server that dies breaks off in mid-answer.
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 401:
                raise ConfigError(
                    f"the server at {self.url} wants another password: set {OF_CLIENTS} to its name:password"
                ) from error
            raise TryAgain(f"the server at {self.url} does not answer ({error}): try again in a minute") from error

    def send(self, path: str, query: Any = None) -> Any:
        """One request."""
        data = None if query is None else json.dumps(query).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/api{path}", data, self.headers), timeout=30
        ) as answer:
            return json.load(answer)


def healthy(url: str) -> bool:
    """A Prefect server answers at `url`. It wants no password for that."""
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def reached(address: str) -> bool:
    """Something answers at a PREFECT_API_URL, be it that it knows neither us nor the way to prove its name."""
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
    """Whether this machine alone reaches what listens at an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def password_file(state: Path) -> Path:
    """Where the password of the server that keeps its state there stands."""
    return state / "password"


def read_password(state: Path) -> str:
    """The password in the file, or where that is missing or not ours to read the environment's; empty if none is."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return password_file(state).read_text("utf-8").strip()
    return os.environ.get(OF_CLIENTS, "") or os.environ.get(OF_SERVER, "")


def choose_password(state: Path, host: str) -> str:
    """The password of a server about to listen at `host`: the environment's; on loopback none; else the file's or new.

    It is left in the file, for clients. `ConfigError` if it is not of the form that Prefect takes.
    """
    given, file = os.environ.get(OF_SERVER, ""), password_file(state)
    if given and not re.fullmatch(r"[!-9;-~]+:[!-~]+", given):
        raise ConfigError(f"{OF_SERVER} is not of the form name:password, in plain letters, digits and signs")
    if not given and is_loopback(host):
        return ""
    chosen = given or (file.exists() and file.read_text("utf-8").strip()) or f"{NAME}:{secrets.token_urlsafe(18)}"
    file.unlink(missing_ok=True)  # it may be another's to read
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        print(chosen, file=out)
    return chosen
