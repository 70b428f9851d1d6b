"""`spin up` for one folder, as far as it needs no Prefect: whose environment is whose, and who may end whom."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from flows.server import api, local, serve, status
from spin_core.errors import ConfigError, TryAgain
from spin_core.runtime.process import pid_scope
from tests.support.lineages.small_lineage import build_lineage

NOWHERE = "http://127.0.0.1:9"

UP = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("up", flush=True)
    sys.stdin.read()
"""
"""Locks the address file as `spin up` does, until its input ends."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment for the test, without Prefect's variables."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "PREFECT" not in name})
    return monkeypatch


@contextmanager
def up(runs: Path, *lines: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder's address file, in which these lines follow its process id."""
    path = local.address_file(runs)
    path.parent.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", UP, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first, *rest = lines
        path.write_text("\n".join([f"{process.pid} {first}", *rest, ""]))
        yield process
        process.kill()


@contextmanager
def server(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that is healthy, and answers all else so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def do_POST(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()


def break_off(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"[{")


def say_half(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"[{")


def test_the_folders_own_database_is_served_even_if_the_shell_sets_another_server(environment, tmp_path):
    environment.setitem(os.environ, "PREFECT_API_URL", f"{NOWHERE}/api")
    local.prepare(tmp_path, quiet=False, to_serve=True)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".prefect")


@pytest.mark.parametrize("name", local.OWN)
def test_a_users_own_prefect_settings_are_kept(environment, tmp_path, name):
    environment.setitem(os.environ, name, "theirs")
    local.prepare(tmp_path, quiet=False, to_serve=True)
    assert os.environ[name] == "theirs"
    assert os.environ.get("PREFECT_HOME", "theirs") == "theirs"


def test_a_users_own_home_gets_a_temporary_server_unless_it_names_another(environment, tmp_path):
    home = tmp_path / "theirs"
    home.mkdir()
    environment.setitem(os.environ, "PREFECT_HOME", str(home))
    assert local.prepare(tmp_path, quiet=True)
    assert local.prefect_home(tmp_path) == home
    (home / "profiles.toml").write_text('active = "team"\n[profiles.team]\nPREFECT_API_URL = "https://team/api"\n')
    assert not local.prepare(tmp_path, quiet=True)
    (home / "profiles.toml").write_text('active = "local"\n[profiles.local]\n')
    assert local.prepare(tmp_path, quiet=True)
    environment.setitem(os.environ, "PREFECT_PROFILE", "local")
    assert not local.prepare(tmp_path, quiet=True)


def test_a_run_without_its_server_is_rejected_with_the_fix(environment, tmp_path):
    environment.setitem(os.environ, "PREFECT_API_URL", f"{NOWHERE}/api")
    with pytest.raises(TryAgain, match="unset PREFECT_API_URL"):
        local.prepare(tmp_path, quiet=True)


def test_a_server_that_answers_with_any_status_counts_as_running(environment, tmp_path):
    with server(say_half) as url:
        for address in (f"{url}/api", f"{url}/elsewhere"):
            environment.setitem(os.environ, "PREFECT_API_URL", address)
            local.prepare(tmp_path, quiet=True)
    assert "PREFECT_HOME" not in os.environ


def test_a_server_on_this_machine_is_found_and_ended(tmp_path, capsys):
    with server(say_half) as url, up(tmp_path, f"{os.uname().nodename} {pid_scope()}", url) as process:
        assert local.serving(tmp_path) == url
        threading.Thread(target=process.wait, daemon=True).start()  # as init does
        status.down(tmp_path)
        assert process.wait() == -signal.SIGTERM
    assert capsys.readouterr().out == "down\n", "though the server did not say what runs"


def test_a_server_that_does_not_answer_yet_is_starting(tmp_path):
    with up(tmp_path, f"{os.uname().nodename} {pid_scope()}", ""):
        output = CliRunner().invoke(main, ["status", "--runs", str(tmp_path)]).stdout
    assert output.startswith("starting   spin up has been started and is not ready yet: try again in a minute\n")
    assert "nothing is up" not in output


def test_a_server_that_was_ready_and_does_not_answer_is_busy_restarts_or_ends(tmp_path):
    with up(tmp_path, f"{os.uname().nodename} {pid_scope()}", NOWHERE):
        output = CliRunner().invoke(main, ["status", "--runs", str(tmp_path)]).stdout
    assert output.startswith("no answer  spin up runs, but its server is busy, restarts, or ends: try again")


@pytest.mark.parametrize("answer", [break_off, say_half])
def test_status_of_a_server_that_ends_meanwhile_is_no_error(tmp_path, answer):
    with server(answer) as url, up(tmp_path, f"{os.uname().nodename} {pid_scope()}", url):
        done = CliRunner().invoke(main, ["status", "--runs", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout.startswith("no answer  spin up runs, but")


def test_a_command_waits_for_a_spin_up_that_starts_and_says_so(tmp_path, capsys):
    with (
        server(break_off) as url,
        up(tmp_path, f"{os.uname().nodename} {pid_scope()}"),
        local.address_file(tmp_path).open("a") as file,
    ):
        threading.Timer(1.0, print, [url], {"file": file, "flush": True}).start()
        answering = local.wait_for_answer(tmp_path)
    assert answering is not None
    assert answering.url == url
    assert capsys.readouterr().err == "spin up is starting; waiting for it …\n"


def test_a_command_waits_for_a_spin_up_that_ends(tmp_path, capsys):
    with up(tmp_path, f"{os.uname().nodename} {pid_scope()}", NOWHERE) as process:
        threading.Timer(1.0, process.kill).start()
        assert local.wait_for_answer(tmp_path) is None
    assert capsys.readouterr().err == "spin up does not answer: it is busy, restarts, or ends; waiting for it …\n"


def test_a_spin_up_that_never_answers_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "ANSWER_SECONDS", 0.1)
    with (
        up(tmp_path, f"{os.uname().nodename} {pid_scope()}") as process,
        pytest.raises(TryAgain, match=rf"spin up \(process {process.pid}\) does not answer .* end it with spin down"),
    ):
        local.wait_for_answer(tmp_path)


def test_a_second_spin_up_does_not_take_the_first_ones_port_for_another_programs(tmp_path):
    with (
        up(tmp_path, f"{os.uname().nodename} {pid_scope()}"),
        pytest.raises(TryAgain, match=r"another spin up for .* is starting or ending: spin status says when"),
    ):
        serve.serve(tmp_path, "127.0.0.1", 1)


def test_down_says_that_it_ends_a_spin_up_which_is_still_starting(tmp_path, capsys):
    with up(tmp_path, f"{os.uname().nodename} {pid_scope()}") as process:
        status.down(tmp_path)
        assert process.wait() == -signal.SIGTERM
    assert capsys.readouterr().out == "spin up is still starting; it ends now\ndown\n"


def test_a_server_on_another_machine_is_reported_and_no_local_process_is_ended(tmp_path):
    with server(say_half) as url, up(tmp_path, "machine-a 0a1b-pid:[4026531836]", url) as process:
        assert local.serving(tmp_path) is None, "its port may be another program's here"
        for end in (lambda: status.down(tmp_path), lambda: serve.serve(tmp_path, "127.0.0.1", 4200)):
            with pytest.raises(ConfigError, match="is served by machine-a: run spin down there"):
                end()
        assert process.poll() is None
        output = CliRunner().invoke(main, ["status", "--runs", str(tmp_path)]).stdout
    assert output.startswith("up         on machine-a: run spin status there to see more\n")


@pytest.mark.parametrize("answer", [break_off, say_half])
def test_a_server_that_dies_during_its_answer_is_tried_again(answer):
    with server(answer) as url, pytest.raises(TryAgain, match="does not answer"):
        api.Server(url).post("/flow_runs/filter", {})


def test_a_lineage_of_another_version_hides_no_other(tmp_path):
    build_lineage(tmp_path, "mine")
    old = build_lineage(tmp_path, "old").root / "lineage.json"
    settings = json.loads(old.read_text())
    old.write_text(json.dumps(settings | {"config": settings["config"] | {"of-another-version": 1}}))
    line = f"old  cannot be read: spin show old --runs {tmp_path} shows why"
    done = CliRunner().invoke(main, ["status", "--runs", str(tmp_path)])
    assert done.stdout.endswith(f"lineages   mine  θ_2\n           {line}\n")
    done = CliRunner().invoke(main, ["leaderboard", "--json", "--runs", str(tmp_path)])
    assert done.stderr == f"{line}\n"
    assert [row["lineage"] for row in json.loads(done.stdout)] == ["mine"]
    done = CliRunner().invoke(main, ["leaderboard", "old", "--runs", str(tmp_path)])
    assert done.exit_code == 2
    assert "lineage.json is damaged" in done.stderr


@pytest.mark.parametrize("port", ["0", "-1", "70000"])
def test_an_invalid_port_is_rejected_immediately(port, tmp_path):
    done = CliRunner().invoke(main, ["up", "--port", port, "--runs", str(tmp_path)])
    assert done.exit_code == 2
    assert "is not in the range 1<=x<=65535" in done.stderr


def test_a_port_that_only_root_may_use_is_rejected_with_the_fix(monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(serve.socket.socket, "bind", refuse)
    with pytest.raises(ConfigError, match="port 80 is for root alone: choose another with spin up --port"):
        serve.check_address("127.0.0.1", 80)
    with pytest.raises(ConfigError, match="choose another with spin serve --port"):
        serve.check_address("127.0.0.1", 80, "spin serve")


@pytest.mark.parametrize("ignored", [False, True])
def test_the_end_of_the_terminal_ends_it_unless_nohup_has_it_go_on(ignored):
    words = [
        "import signal, os",
        "signal.signal(signal.SIGHUP, signal.SIG_IGN if before else signal.SIG_DFL)".replace("before", str(ignored)),
        "from flows.server import serve",
        "serve.handle_signals()",
        "try:",
        "    os.kill(os.getpid(), signal.SIGHUP)",
        "except KeyboardInterrupt:",
        "    print('to a terminal that is gone')",
        "    os.kill(os.getpid(), signal.SIGHUP)  # the shell tells it, too",
        "    os._exit(7)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(words)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0 if ignored else 7, ""), done.stderr
