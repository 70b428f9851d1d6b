"""Attacks on the server of `spin up`, by other users of the machine and by web pages. Each of them worked once."""

import asyncio
import base64
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from flows.server import app, deploy
from flows.server.app import HOSTS, HostCheck, names_of
from tests.support.servers.served import Up, free_port

TEMPORARY = """
import sys
from pathlib import Path
from flows.server import local
local.prepare(Path(sys.argv[1]), quiet=True)
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    client.hello()
    print(str(client.api_url).rstrip("/"), flush=True)
    sys.stdin.read()
"""
"""A run's process as far as its temporary server: it prints that server's address."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A `spin up` on loopback, with nothing chosen."""
    with Up(tmp_path_factory.mktemp("attacked") / "runs", free_port()) as started:
        yield started


@pytest.mark.slow
def test_another_user_of_the_machine_starts_no_run_and_reads_nothing(up):
    """They know the port, can ask for a CSRF token, and have no password."""
    deployment = up.deployment("spin")["id"]
    base = f"http://127.0.0.1:{up.port}/api"
    with httpx.Client(timeout=60) as client:
        assert client.get(f"{base}/csrf-token?client=them").status_code == 401
        for path in ("/admin/settings", "/block_documents/00000000-0000-0000-0000-000000000000?include_secrets=true"):
            assert client.get(f"{base}{path}").status_code == 401
        leaked = str(up.request("GET", "/csrf-token?client=them")["token"])
        headers = {"Prefect-Csrf-Client": "them", "Prefect-Csrf-Token": leaked}
        body = {"parameters": {}, "job_variables": {"command": f"touch {up.runs}/owned"}}
        for auth in (None, ("spin", "guessed")):
            refused = client.post(
                f"{base}/deployments/{deployment}/create_flow_run", json=body, headers=headers, auth=auth
            )
            assert refused.status_code == 401
    assert up.count_runs() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch {}/owned"},
        {"env": {"PYTHONSTARTUP": "x", "LD_PRELOAD": "x"}},
        {"env.LD_PRELOAD": "x"},
        {"working_dir": "/tmp"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_the_password_does_not_allow_to_change_a_runs_command_environment_or_folder(up, variables):
    """By a run of their own, and by the deployment: that is stored, and then no run starts."""
    filled = {name: value.format(up.runs) if isinstance(value, str) else value for name, value in variables.items()}
    deployment = up.deployment("spin")
    assert deployment["job_variables"] == {}
    path = f"/deployments/{deployment['id']}"
    before = up.count_runs()
    up.request("POST", f"{path}/create_flow_run", {"job_variables": filled}, status=422)
    up.request("PATCH", path, {"job_variables": filled})
    up.request("POST", f"{path}/create_flow_run", {}, status=422)
    up.request("PATCH", path, {"job_variables": {}})
    assert up.count_runs() == before
    assert not (up.runs / "owned").exists()


def test_a_worker_makes_nothing_of_job_variables_that_reach_it():
    """The server does not check those of scheduled runs, and of runs without a deployment."""
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessJobConfiguration

    variables = {"command": "touch owned", "env": {"LD_PRELOAD": "x"}, "env.PYTHONPATH": "x", "working_dir": "/tmp"}
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # no server is asked
        made = asyncio.run(ProcessJobConfiguration.from_template_and_values(deploy.JOB_TEMPLATE, variables))
    assert (made.command, made.env, made.working_dir) == (None, {}, None)


@pytest.mark.slow
def test_a_pool_of_an_earlier_version_offers_no_commands_after_the_next_start(up):
    from prefect.workers.process import ProcessWorker

    earlier = ProcessWorker.get_default_base_job_template()
    up.request("PATCH", "/work_pools/spin", {"base_job_template": earlier})
    deployment = up.deployment("spin")
    up.request("PATCH", f"/deployments/{deployment['id']}", {"job_variables": {"command": "true"}})
    assert up.end() == 0
    up.start()
    assert up.request("GET", "/work_pools/spin")["base_job_template"]["variables"]["properties"] == {}
    assert up.deployment("spin")["job_variables"] == {}
    run = up.request("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"recipe": "demo"}})
    up.request("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


@pytest.mark.slow
def test_a_web_page_whose_name_is_resolved_to_this_machine_gets_no_answer(up):
    """Its requests come from the browser of a person who has the password, and name the page's host."""
    url = f"http://127.0.0.1:{up.port}"
    for host in ("evil.example", f"evil.example:{up.port}", f"127.0.0.1.evil.example:{up.port}", "localhost.evil"):
        for path in ("/api/health", "/v2/deployments", "/api/admin/settings", "/sign-in", "/ui-settings"):
            refused = httpx.get(f"{url}{path}", headers={"Host": host}, auth=up.auth, timeout=60)
            assert (refused.status_code, HOSTS in refused.text) == (403, True)
    for host in (f"127.0.0.1:{up.port}", f"localhost:{up.port}", f"[::1]:{up.port}", os.uname().nodename):
        assert httpx.get(f"{url}/api/health", headers={"Host": host}, timeout=60).status_code == 200
    with pytest.raises(InvalidStatus, match="403"):
        connect(
            f"ws://evil.example:{up.port}/api/events/out", sock=socket.create_connection(("127.0.0.1", up.port))
        ).close()


@pytest.mark.slow
def test_the_temporary_server_of_a_single_run_asks_for_the_password_too(tmp_path):
    environment = Up.all_environment()
    with subprocess.Popen(
        [sys.executable, "-c", TEMPORARY, str(tmp_path / "runs")],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        assert httpx.get(f"{url}/admin/settings", timeout=60).status_code == 401
        password = (tmp_path / "runs" / ".prefect" / "password").read_text().strip()
        auth = tuple(password.split(":", 1))
        assert httpx.get(f"{url}/admin/settings", auth=auth, timeout=60).status_code == 200


@pytest.mark.slow
def test_the_printed_address_signs_a_browser_in_and_status_repeats_it(up):
    name, password = up.auth
    token = base64.b64encode(f"{name}:{password}".encode()).decode()
    address = f"http://127.0.0.1:{up.port}/sign-in#{token}"
    assert any(address in line for line in up.output)
    assert f"sign in    {address}\n" in up.spin("status").stdout
    page = httpx.get(address, timeout=60)
    assert "prefect-password" in page.text
    assert password not in page.text


@pytest.mark.slow
def test_a_password_is_not_printed_into_a_file_that_others_read(up, tmp_path):
    words = [sys.executable, "-m", "flows.command_line", "status", "--runs", str(up.runs)]
    for mode, expected in ((0o644, False), (0o600, True)):
        with (tmp_path / "out").open("w") as out:
            (tmp_path / "out").chmod(mode)
            subprocess.run(words, stdout=out, env=up.all_environment(), check=True)
        text = (tmp_path / "out").read_text()
        assert ("/sign-in#" in text) == expected
        assert expected or f"with the whole line in {up.runs}/.prefect/password" in text


async def ask(check: HostCheck, *hosts: bytes, kind: str = "http", path: str = "/") -> list[Any]:
    """What is sent for one request with these Host headers."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    await check({"type": kind, "path": path, "headers": [(b"host", host) for host in hosts]}, receive, send)
    return sent


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> HostCheck:
    monkeypatch.setenv(HOSTS, "spin.example.org, other.example.org")
    monkeypatch.setenv("PREFECT_UI_URL", "https://ui.example.org/spin")

    async def serve(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "served"})

    return HostCheck(serve, names_of("gpu-machine"))


@pytest.mark.parametrize(
    "host",
    [
        *(b"evil.example", b"evil.example:4200", b"127.0.0.1.evil.example", b"localhost.evil.example", b"", b"[::1"),
        *(b"127.0.0.1@evil.example", b"spin.example.org.evil.example", b"evil.example#127.0.0.1", b"127.0.0.1 evil"),
    ],
)
def test_a_foreign_host_name_is_rejected(check, host):
    assert asyncio.run(ask(check, host))[0]["status"] == 403
    assert asyncio.run(ask(check, host, kind="websocket")) == [{"type": "websocket.close", "code": 1008}]


def test_a_request_without_a_host_or_with_two_is_rejected(check):
    for hosts in ((), (b"localhost", b"evil.example")):
        assert asyncio.run(ask(check, *hosts))[0]["status"] == 403


@pytest.mark.parametrize(
    "host",
    [
        *(b"localhost", b"LOCALHOST:4200", b"127.0.0.1:4200", b"[::1]:4200", b"192.168.1.7:4200", b"gpu-machine:4200"),
        *(b"spin.example.org", b"other.example.org:443", b"ui.example.org"),
    ],
)
def test_the_servers_own_names_and_addresses_are_accepted(check, host):
    for kind in ("http", "websocket"):
        assert asyncio.run(ask(check, host, kind=kind)) == [{"type": "served"}]


def test_the_page_that_signs_in_runs_its_own_script_alone(check):
    start, body = asyncio.run(ask(check, b"localhost", path=app.SIGN_IN))
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; frame-ancestors 'none'; connect-src 'self'; script-src 'sha256-")
    assert headers["referrer-policy"] == "no-referrer"
    assert body["body"].count(b"<script>") == 1
