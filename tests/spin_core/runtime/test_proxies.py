"""Connections within this machine never go through a proxy of the environment."""

import os
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from flows.server import api
from spin_core.errors import ConfigError
from spin_core.runtime import proxies

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

NOBODY = "http://127.0.0.1:9"
"""A proxy that does not answer."""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment without proxies, which is put back afterwards."""
    for name in VARIABLES:
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)
    return monkeypatch


@pytest.fixture
def url():
    """The address of a server on this machine that answers every request."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("spelling", [str.upper, str.lower])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_loopback_is_reached_past_a_proxy_by_this_process_and_its_children(environment, url, variable, spelling):
    environment.setenv(spelling(variable), NOBODY)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    proxies.bypass_for_loopback()
    assert httpx.get(url).text == "here"
    assert urllib.request.urlopen(url).read() == b"here"
    assert api.healthy(url)
    child = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())"
    assert subprocess.run([sys.executable, "-c", child, url], capture_output=True, check=True).stdout == b"b'here'\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "localhost,127.0.0.1,::1"),
        ("example.org, 127.0.0.1", "example.org,127.0.0.1,localhost,::1"),
        ("*", "*"),
    ],
)
def test_a_users_own_exceptions_stay(environment, before, after):
    environment.setenv("HTTPS_PROXY", NOBODY)
    if before:
        environment.setenv("NO_PROXY", before)
    for _ in range(2):
        proxies.bypass_for_loopback()
        assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == (after, after)


def test_without_a_proxy_the_environment_stays_as_it_is():
    proxies.bypass_for_loopback()
    proxies.check()
    assert not {"NO_PROXY", "no_proxy"} & os.environ.keys()


def test_other_addresses_still_go_through_the_proxy(environment):
    environment.setenv("HTTP_PROXY", NOBODY)
    proxies.bypass_for_loopback()
    assert not urllib.request.proxy_bypass("example.org")
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://example.org")


@pytest.mark.parametrize(
    ("proxy", "sentence"),
    [
        ("ftp://proxy:21", "has a proxy that cannot be used .*: correct or unset ALL_PROXY"),
        ("http://proxy:port", "has a proxy that cannot be used .*: correct or unset ALL_PROXY"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_line(environment, proxy, sentence):
    environment.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=sentence):
        proxies.check()


def test_a_socks_proxy_without_its_package_is_one_line(environment):
    environment.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    environment.setitem(sys.modules, "socksio", None)
    with pytest.raises(ConfigError, match="SOCKS proxy, for which the package socksio is missing: run pip install"):
        proxies.check()
