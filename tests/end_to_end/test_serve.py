"""`spin up` as a user runs it: a real server and a real worker, runs started through its API, kills and signals."""

import base64
import contextlib
import http.server
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.server import local, watch
from tests.support.servers import object_store
from tests.support.servers.endpoint import serving
from tests.support.servers.mail_server import mailbox
from tests.support.servers.object_store import Bucket
from tests.support.servers.served import Up, as_in_form, free_port, holder, stamps, wait_for

pytestmark = pytest.mark.slow

PASSWORD = "team:planted-server-password"
SECRETS = {
    "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
    "OPENAI_API_KEY": "planted-judge-key",
    "HF_TOKEN": "planted-hub-token",
    "WANDB_API_KEY": "planted-metrics-key",
    "AWS_SECRET_ACCESS_KEY": "planted-storage-key",
}
MAIL_PASSWORD = "planted-mail-password"
TRACKING_PASSWORD = "planted-tracking-password"
SINKS = {
    "WANDB_MODE": "offline",
    "MLFLOW_TRACKING_URI": f"http://team:{TRACKING_PASSWORD}@127.0.0.1:9",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
"""MLflow's server is away: its client repeats that address when it says so."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with object_store.serve(tmp_path_factory.mktemp("store")) as one:
        yield one


@pytest.fixture(scope="module")
def up(finished: Any, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Serves a copy of the finished lineage `whole`, which the command line has played, to all, with a password."""
    known = bucket.environment | SECRETS | SINKS
    one = Up(tmp_path_factory.mktemp("served") / "runs", free_port(), "0.0.0.0", known)
    for name in ("whole", ".sft", ".prefect"):
        shutil.copytree(finished.runs / name, one.runs / name)
    one.start()
    yield one
    if one.process.poll() is None:
        one.end()


@pytest.fixture(scope="module")
def replayed(up: Up) -> Any:
    """A second run of the lineage `whole`, with every setting filled in in the form."""
    return up.finish(up.trigger("spin", as_in_form(up.runs / "whole")))


@dataclass
class Night:
    """A nightly run whose flow was killed in its second phase, and the notifications about it."""

    meanwhile: Any
    at_kill: dict[str, int]
    ended: Any
    states: list[str]
    tasks: dict[str, str]
    told: list[Any]


@pytest.fixture(scope="module")
def night(up: Up, replayed: Any) -> Night:
    assert replayed["state_name"] == "Completed"
    root = up.runs / "whole"
    with Inbox() as inbox:
        done = install(up, "--notify-webhook", inbox.url)
        assert done.returncode == 0, done.stderr
        run = up.trigger("nightly", {"lineage": "whole"})
        wait_for((root / "iter_02" / "jobs" / "generations.json").exists)
        meanwhile = up.finish(up.trigger("spin", as_in_form(root)))
        wait_for((root / "iter_02" / "generations" / "manifest.json").exists)
        os.kill(holder(root), signal.SIGKILL)
        at_kill = stamps(root)
        ended, told = up.finish(run), [inbox.messages.get(timeout=60)]
        while not told[-1]["event"].startswith("spin.gate."):
            told.append(inbox.messages.get(timeout=60))
    return Night(meanwhile, at_kill, ended, up.history(run), up.tasks(run), told)


def test_nobody_is_served_without_the_password_or_from_another_page(up):
    url = f"http://127.0.0.2:{up.port}"
    elsewhere = {"Origin": "http://elsewhere.example"}
    health = httpx.get(f"{url}/api/health", headers=elsewhere, timeout=60)
    assert health.status_code == 200, "it listens at all addresses"
    assert "access-control-allow-origin" not in health.headers
    for auth in (None, ("team", "guessed")):
        for path in ("/admin/settings", "/flows/", "/csrf-token?client=x"):
            assert httpx.get(f"{url}/api{path}", auth=auth, timeout=60).status_code == 401
        assert httpx.post(f"{url}/api/flow_runs/filter", json={}, auth=auth, timeout=60).status_code in (401, 403)
    refused = httpx.post(f"{url}/api/flow_runs/filter", json={}, auth=up.auth, timeout=60)
    assert (refused.status_code, refused.json()) == (403, {"detail": "Missing CSRF token."})
    assert httpx.get(f"{url}/ui-settings", timeout=60).json()["api_url"] == "/api", "by whatever name we are known"


def test_clients_of_the_folder_know_the_password_and_it_is_their_owners_alone(up):
    file = up.runs / ".prefect" / "password"
    assert file.read_text() == f"{PASSWORD}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    said = up.spin("status")
    assert f"http://127.0.0.1:{up.port} for " in said.stdout, said.stderr


def test_the_user_interface_answers(up):
    page = httpx.get(f"http://127.0.0.1:{up.port}/v2/deployments", headers={"Accept": "text/html"}, timeout=60)
    assert page.status_code == 200
    assert "<html" in page.text


def test_a_second_one_finds_the_first(up):
    done = subprocess.run(up.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith(f"already up: http://127.0.0.1:{up.port} ")


def test_a_taken_port_is_refused_with_the_cure(up, tmp_path):
    other = Up(tmp_path, up.port)
    done = subprocess.run(other.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"port {up.port} is taken" in done.stderr
    assert f"spin up --port {up.port + 1}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["spin", "nightly"])
def test_deployments_play_one_game_at_a_time_and_others_wait(up, name):
    found = up.deployment(name)
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert found["enforce_parameter_schema"]
    assert found["description"]


def test_a_night_is_scheduled_but_not_active(up):
    (schedule,) = up.deployment("nightly")["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "UTC")
    assert not schedule["active"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"recipe": "no-such-recipe"}, "recipe"),
        ({"iterations": 0}, "iterations"),
        ({"lineage": "up/../and/away"}, "lineage"),
        ({"lineage": "Mine"}, "lineage"),
        ({"overrides": {"train": {"beta": -1}}}, "overrides.train.beta"),
        ({"overrides": {"train": {"betta": 1}}}, "overrides.train"),
        ({"overrides": {"trian": {}}}, "overrides"),
    ],
    ids=str,
)
def test_a_bad_parameter_is_refused_before_a_run_exists(up, parameters, named):
    before = up.count_runs()
    answer = up.trigger("spin", {"recipe": "demo", **parameters}, status=409)
    assert f"Validation failed for field '{named}'" in answer["detail"]
    assert up.count_runs() == before


def test_a_run_through_the_worker_is_completed_and_called_by_its_lineage(replayed):
    assert replayed["state_name"] == "Completed"
    assert replayed["name"] == "demo-whole"


def test_what_the_command_line_has_played_is_reused_and_task_runs_are_called_what_they_do(up, replayed):
    # The server hears of tasks by events, on a busy machine after the run has ended.
    states = wait_for(lambda: found if (found := up.tasks(replayed)).get("publish t=1") == "Completed" else None)
    assert states.pop("publish t=0") == states.pop("publish t=1") == "Completed"
    assert set(states.values()) == {"Reused"}
    assert list(states)[:6] == [
        "base model",
        "prepare prompts",
        "train sft",
        "evaluate θ_0 self-play",
        "generate t=0",
        "build pairs t=0",
    ]
    assert {"score t=1", "train t=1", "evaluate θ_2 self-play", "train sft-lr-0.001-steps-24"} < set(states)


def test_a_run_of_a_lineage_in_use_fails_naming_the_holder(night):
    assert night.meanwhile["state_name"] == "Failed"
    message = night.meanwhile["state"]["message"]
    assert "LineageBusy: lineage whole is in use by process" in message
    assert "choose another lineage name" in message
    assert night.meanwhile["run_count"] == 1, "what a user has to fix is not tried again"


def test_a_killed_flow_is_said_to_have_crashed_and_is_started_again(night):
    places = [night.states.index(name) for name in ("Running", "Crashed", "AwaitingRetry")]
    assert places == sorted(places)
    assert night.ended["run_count"] == 2
    assert night.ended["labels"][watch.WORKER_LABEL] == local.WORKER, "by which its machine is known"


def test_the_run_that_is_started_again_reuses_what_was_finished_and_repeats_nothing(up, night):
    assert night.ended["state_name"] == "Completed"
    now = stamps(up.runs / "whole")
    assert {name: now[name] for name in night.at_kill} == night.at_kill
    assert "iter_02/generations/manifest.json" in night.at_kill
    assert night.tasks["train t=1"] == night.tasks["generate t=2"] == "Reused"
    assert night.tasks["train t=2"] == night.tasks["evaluate θ_3 self-play"] == "Completed"


def test_a_night_that_crashed_adds_one_iteration_and_no_second(up, night):
    assert night.ended["name"] == "nightly-whole"
    root = up.runs / "whole"
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_00", "iter_01", "iter_02"]
    assert [row["t"] for row in json.loads((root / "leaderboard.json").read_text())["rows"]] == [0, 1, 2, 3]


def test_an_iteration_has_its_page_and_the_leaderboard_a_new_version(up):
    """Of what the command line has played: a night, which is slow to wait for, publishes by the same task."""
    (page,), board = up.artifacts("whole-iteration-01"), up.artifacts("leaderboard-whole")[0]
    assert page["type"] == board["type"] == "markdown"
    assert page["description"].startswith("θ_1 → θ_2; ")
    assert page["data"].startswith("# whole: θ_1 → θ_2\n")
    plots = re.findall(r"!\[([^]]*)\]\(data:image/png;base64,", page["data"])
    assert plots == ["total_variation over the versions", "training curve", "lengths of human and generated responses"]
    assert re.search(r"leads \d versions with total_variation ", board["description"])
    assert "| θ_2 " in board["data"]


def test_a_nights_iteration_is_published_by_its_own_run_and_the_others_are_not_again(up, night):
    assert [len(up.artifacts(f"whole-iteration-{t:02d}")) for t in range(4)] == [1, 1, 1, 0]
    (page,), board = up.artifacts("whole-iteration-02"), up.artifacts("leaderboard-whole")[0]
    assert page["flow_run_id"] == board["flow_run_id"] == night.ended["id"]
    assert " leads 4 versions with total_variation " in board["description"]


def test_people_are_told_of_runs_that_end_badly_and_of_what_the_gate_decides(up, night):
    *runs, gate = night.told
    assert f"spin: demo-whole is Failed: {night.meanwhile['state']['message']}" in [one["text"] for one in runs]
    assert "prefect.flow-run.Crashed" in [one["event"] for one in runs]
    decision = json.loads((up.runs / "whole" / "iter_02" / "record.json").read_text())["gate"]
    assert gate["event"] == f"spin.gate.{decision['outcome']}"
    assert gate["text"] == f"spin: whole: {decision['reason']}"
    assert (gate["gate"]["t"], gate["gate"]["next_opponent"]) == (3, decision["next_opponent"])


class Inbox:
    """A webhook: what was posted to it, in order."""

    def __init__(self) -> None:
        self.messages: queue.Queue[Any] = queue.Queue()
        inbox = self.messages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                inbox.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/spin"

    def __enter__(self) -> "Inbox":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def install(up: Up, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.install", "--runs", str(up.runs), *arguments],
        env={**up.all_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.usefixtures("night")
def test_a_game_that_has_converged_ends_the_nights_and_people_are_told(up):
    """Its players improve every night, so its gate watches a score that no version can change."""
    root = up.runs / "whole"
    settings = json.loads((root / "lineage.json").read_text())
    settings["config"]["nightly"] = {"patience": 1}
    settings["config"]["gate"]["metric"] = "repeated_trigrams"
    (root / "lineage.json").write_text(json.dumps(settings))
    nightly = up.deployment("nightly")
    active = {"schedule": {"cron": "0 2 * * *", "timezone": "UTC"}, "active": True}
    schedules = [active | {"parameters": {"lineage": name}, "slug": name} for name in ("whole", "other")]
    up.request("PATCH", f"/deployments/{nightly['id']}", {"schedules": schedules})
    with Inbox() as inbox:
        done = install(up, SPIN_NOTIFY_WEBHOOK=inbox.url)  # again, after the night's
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        names = [one["name"] for one in up.request("POST", "/automations/filter", {})]
        assert len(names) == len(set(names)) == 2
        run = up.finish(up.trigger("nightly", {"lineage": "whole"}))
        told = inbox.messages.get(timeout=60)
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Converged")
    place = f"leaderboard: http://127.0.0.1:{up.port}/v2/artifacts/key/leaderboard-whole"
    assert run["state"]["message"] == f"θ_3 is not better than θ_0 in repeated_trigrams, beyond chance; {place}"
    assert told["text"] == f"spin: nightly-whole is Converged: {run['state']['message']}"
    assert told["event"] == "prefect.flow-run.Converged"
    after = {
        one["parameters"]["lineage"]: one["active"]
        for one in up.deployment("nightly")["schedules"]
        if one["parameters"]
    }
    assert after == {"whole": False, "other": True}
    assert not (root / "iter_03").exists()
    assert "; ended: θ_3 is not better than θ_0" in up.spin("status").stdout
    refused = up.spin("next", "whole")
    assert refused.returncode == 2
    assert "lineage whole has converged (θ_3 is not better" in refused.stderr
    assert "spin next whole --anyway" in refused.stderr


def test_an_address_or_a_block_that_is_none_is_refused(up):
    for arguments, said in [
        (["--notify-webhook", "example.org"], "it must begin with http:// or https://"),
        (["--notify-block", "sendgrid-email/nobody"], "create it in the UI under Blocks"),
    ]:
        done = install(up, *arguments)
        assert done.returncode == 2
        assert said in done.stderr


@pytest.fixture(scope="module")
def unjudged(up: Up, night: Night, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose judge refuses its key, and the mail about it."""
    assert night.ended["state_name"] == "Completed"
    questions = tmp_path_factory.mktemp("questions")
    asked = {"question_id": 81, "category": "writing", "turns": ["1+1=", "2+2="]}
    (questions / "question.jsonl").write_text(json.dumps(asked))
    (questions / "reference_answer_gpt-4.jsonl").write_text("")
    with mailbox(MAIL_PASSWORD) as box, serving() as judge:
        smtp = ["--smtp", f"smtp://spin@127.0.0.1:{box.port}", "--email-from", "spin@example.org"]
        done = install(up, "--notify-email", "me@example.org", *smtp, SPIN_SMTP_PASSWORD=MAIL_PASSWORD)
        assert done.returncode == 0, done.stderr
        judge.key = "another"
        settings = {"judge": {"base_url": judge.url, "model": "tiny"}, "mt_bench": {"data": str(questions)}}
        parameters = {"target": "whole", "versions": [0], "suites": ["mt-bench"]}
        run = up.finish(up.trigger("evaluate", parameters | {"overrides": {"evaluate": settings}}))
        return run, *box.next()


def test_people_are_told_by_mail_of_a_run_that_failed(unjudged):
    run, envelope, mail = unjudged
    assert run["state_name"] == "Failed"
    assert "refuses the key in OPENAI_API_KEY (401)" in run["state"]["message"]
    assert (envelope.mail_from, envelope.rcpt_tos) == ("spin@example.org", ["me@example.org"])
    assert mail["Subject"] == "spin: evaluate-whole"
    assert "evaluate-whole is Failed: " in mail.get_content()


@pytest.fixture(scope="module")
def told_elsewhere(up: Up, unjudged: Any, bucket: Bucket) -> Any:
    """A run that uses the keys of a store and of sinks."""
    assert unjudged
    parameters = as_in_form(up.runs / "whole")
    parameters["overrides"] |= {
        "push": {"url": bucket.url},
        "metrics": {"sinks": ["tensorboard", "mlflow", "wandb"]},
    }
    return up.finish(up.trigger("spin", parameters))


def test_a_run_has_pushed_its_copy_and_told_its_sinks_with_the_keys_of_the_environment(up, told_elsewhere, bucket):
    assert told_elsewhere["state_name"] == "Completed", told_elsewhere["state"]["message"]
    assert "whole/.pushed/manifest.json" in bucket.versions()
    assert list((up.runs / "whole" / "metrics").glob("wandb/offline-run-*/*.wandb"))
    said = json.dumps(up.request("POST", "/logs/filter", {"sort": "TIMESTAMP_DESC"}))
    assert "metrics: mlflow failed and gets no more points: " in said


@pytest.mark.usefixtures("told_elsewhere")
def test_no_secret_stands_in_anything_that_is_written_or_shown(up):
    """The last test of this server: it is ended, so that all it had to say is there."""
    hidden = [*SECRETS.values(), PASSWORD.split(":")[1], MAIL_PASSWORD, TRACKING_PASSWORD]
    hidden += [base64.b64encode(value.encode()).decode() for value in hidden]
    (worker,) = up.alive("worker", "start")
    known = Path(f"/proc/{worker}/environ").read_text()
    assert all(value in known for value in SECRETS.values()), "what is not known cannot leak"
    shown = {"settings": json.dumps(up.request("GET", "/admin/settings"))}
    for kind in ("logs", "events", "artifacts", "block_documents", "deployments", "work_pools"):
        shown[kind] = json.dumps(up.request("POST", f"/{kind}/filter", {}))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            shown[str(path)] = path.read_text(errors="replace")
    assert up.end() == 0
    shown["terminal"] = "".join(up.output)
    files = {str(path): path for path in up.runs.rglob("*") if path.is_file() and path.name != "password"}
    assert {"prefect.db", "server.log", "record.json", "leaderboard.json"} <= {path.name for path in files.values()}
    for name in [*shown, *files]:
        text = shown[name].encode() if name in shown else files[name].read_bytes()
        assert [value for value in hidden if value.encode() in text] == [], name


def test_a_killed_one_leaves_no_process_and_the_next_one_sets_things_right(tmp_path):
    one = Up(tmp_path / "runs", free_port(), "0.0.0.0")
    one.start()
    assert one.alive()
    password = one.auth
    assert password is not None, "nobody chose one"
    nightly = one.deployment("nightly")
    schedule = {"schedule": {"cron": "30 3 * * *", "timezone": "Europe/Berlin"}, "active": True}
    theirs = {"schedules": [schedule], "parameters": {"lineage": "mine"}, "concurrency_limit": 2}
    one.request("PATCH", f"/deployments/{nightly['id']}", theirs)
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    path = f"/deployments/{nightly['id']}/create_flow_run"
    lost, cancelled = (one.request("POST", path, {"state": later}) for _ in range(2))
    task = one.request("POST", "/task_runs/", {"flow_run_id": lost["id"], "task_key": "train", "dynamic_key": "0"})
    for path in [f"/flow_runs/{lost['id']}"] * 4 + [f"/task_runs/{task['id']}", f"/flow_runs/{cancelled['id']}"]:
        one.request("POST", f"{path}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    one.request("POST", f"/flow_runs/{cancelled['id']}/set_state", {"state": {"type": "CANCELLING"}, "force": True})

    one.end(signal.SIGKILL)
    wait_for(lambda: not one.alive())
    assert (one.runs / ".prefect" / "server.url").read_text()

    one.start()
    assert one.auth == password
    after = one.deployment("nightly")
    assert after["id"] == nightly["id"]
    assert after["parameters"] == {"lineage": "mine"}
    assert after["global_concurrency_limit"]["limit"] == 2
    assert after["tags"] == nightly["tags"]
    assert after["job_variables"] == nightly["job_variables"]
    (kept,) = after["schedules"]
    assert kept["active"]
    assert (kept["schedule"]["cron"], kept["schedule"]["timezone"]) == ("30 3 * * *", "Europe/Berlin")
    for path in (f"/flow_runs/{lost['id']}", f"/task_runs/{task['id']}"):
        state = one.request("GET", path)["state"]
        assert state["type"] == "CRASHED"
        assert "Start it again" in state["message"]

    assert one.request("GET", f"/flow_runs/{cancelled['id']}")["state_type"] == "CANCELLED"

    said = one.spin("status").stdout
    assert re.search(rf"up +http://127.0.0.1:{one.port} for 0:0", said)
    assert re.search(r"^runs +none$", said, re.MULTILINE)
    assert one.spin("down").stdout == "down\n"
    assert one.end() == 0
    assert not one.alive()
    assert one.spin("down").stdout == f"nothing is up for {one.runs}\n"
    assert one.spin("status").stdout.startswith(f"nothing is up for {one.runs}: spin up --runs {one.runs} starts it\n")
    assert not (one.runs / ".prefect" / "server.url").read_text()
