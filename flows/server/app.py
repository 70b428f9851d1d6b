"""The server of `spin up`: Prefect's, behind a check of the host name, and the pages at `/lineages/`.

Started as `python -m flows.server.app HOST PORT`, with the runs folder in SPIN_RUNS. A team's server is started without
arguments, and listens where Prefect's settings say. Without SPIN_RUNS it has no pages.

A web page may have its own DNS name resolved to this machine. A browser then takes the server for that page's own, past
CORS and CSRF protection. Its requests still name the page's host, by which they are rejected here. Prefect has no such
check.
"""

import base64
import hashlib
import ipaddress
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.server.state import OF_SERVER, SIGN_IN

HOSTS = "SPIN_HOSTS"
"""The environment variable with further host names under which browsers and clients may reach the server; `*`: any."""

_SCRIPT = """
const target = new URLSearchParams(location.search).get("to") || "";
const enter = () => location.replace(target.startsWith("/lineages") ? target + "?asked" : "/v2/deployments");
const given = location.hash.slice(1);
if (given) localStorage.setItem("prefect-password", given);
const code = given || localStorage.getItem("prefect-password");
try {
  const [name, ...password] = atob(code).split(":");
  const request = new XMLHttpRequest();
  request.onloadend = enter;
  request.open("HEAD", "/lineages/", true, name, password.join(":"));
  request.send();
} catch { enter(); }
"""
"""Stores the password where the pages of both of Prefect's UIs look for it, gives it to the browser for the pages at
`/lineages/`, and leaves no trace in the history. These pages send a browser here that does not know the password, as
after its restart: it is in the store, unless nobody has signed in."""

_PAGE = f"<!doctype html><meta charset=utf-8><title>spin</title><script>{_SCRIPT}</script>".encode()

_PAGE_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; connect-src 'self'; script-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    + "'",
}

_POLICY_OF_UI = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src {}; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""Prefect's pages may load from and report to this server alone: they would ask their maker's analytics service for its
settings, whatever PREFECT_SERVER_ANALYTICS_ENABLED says."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class HostCheck:
    """An ASGI application that refuses requests under foreign host names, signs browsers in, and has further pages.

    Addresses in digits are no names, so that they need no list: no web page can have such an origin but this machine's.
    """

    def __init__(self, app: App, names: Iterable[str], pages: App | None = None) -> None:
        """
        Args:
            app: Prefect's application.
            names: The server's names.
            pages: The application for paths under `/lineages`.
        """
        self.app, self.names, self.pages = app, {name.lower() for name in names}, pages
        self.policy = _POLICY_OF_UI.format(_api_origins()).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not self._accepts(_header(scope, b"host")):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                reason = f"this server is not known by that name; set {HOSTS} to names that it has".encode()
                await _answer(send, 403, {"content-type": "text/plain"}, reason)
        elif scope["type"] == "http" and scope["path"] == SIGN_IN:
            await _answer(send, 200, _PAGE_HEADERS, _PAGE)
        elif scope["type"] == "http" and self.pages and re.match(r"/lineages(/|$)", scope["path"]):
            await self.pages(scope, receive, send)
        else:
            await self.app(scope, receive, self._with_policy(send))

    def _with_policy(self, send: Send) -> Send:
        """Add the policy to Prefect's pages."""

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            headers = list(message.get("headers", []))
            if any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers):
                message["headers"] = [*headers, (b"content-security-policy", self.policy)]
            await send(message)

        return send_with_policy

    def _accepts(self, host: str) -> bool:
        """Whether a Host header names this server."""
        matched = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host)
        if matched is None:
            return False
        name = matched[1].strip("[]").lower()
        return "*" in self.names or name in self.names or _is_address(name)


def _api_origins() -> str:
    """Where Prefect's pages may send requests: this server, and the API's own address where one is set."""
    api = urlsplit(os.environ.get("PREFECT_UI_API_URL", ""))
    if api.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:\[\]-]+", api.netloc):
        return "'self'"
    return f"'self' {api.scheme}://{api.netloc} {api.scheme.replace('http', 'ws')}://{api.netloc}"


def names_of(host: str) -> set[str]:
    """The names of a server that listens on `host`: its own, this machine's, and those in the environment."""
    chosen = [urlsplit(os.environ.get("PREFECT_UI_URL", "")).hostname, *re.split(r"[\s,]+", os.environ.get(HOSTS, ""))]
    return {"localhost", host, os.uname().nodename, *filter(None, chosen)}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _header(scope: Scope, name: bytes) -> str:
    """A header that a request has once; empty if it is absent, or is there more than once."""
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return str(values[0].decode("latin-1")) if len(values) == 1 else ""


async def _answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    """Send a whole response."""
    coded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": coded})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until SIGTERM, as `prefect server start` does."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    from flows.server.database import wait_for_lock
    from flows.server.pages import Pages

    wait_for_lock()
    server = get_current_settings().server
    host, port = sys.argv[1:] or (server.api.host, server.api.port)
    runs = os.environ.get("SPIN_RUNS", "")
    pages = Pages(Path(runs), os.environ[OF_SERVER]) if runs else None
    uvicorn.run(
        HostCheck(create_app(final=True), names_of(host), pages),
        host=host,
        port=int(port),
        timeout_keep_alive=server.api.keepalive_timeout,
        ws_ping_interval=server.api.websocket_ping_interval,
        ws_ping_timeout=server.api.websocket_ping_timeout,
        log_level=server.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
