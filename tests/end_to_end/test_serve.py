"""`spin up` as a user runs it: a real server and a real worker, runs started through its API, kills and signals."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
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
from tests.support.servers.served import Up, as_in_form, free_port, holder, install, stamps, wait_for
from tests.support.servers.webhook import Webhook

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
"""MLflow's server is unreachable: its client repeats that address in its error."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with object_store.serve(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def up(finished: Any, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Serves a copy of the finished lineage `whole`, which the command line made, at all addresses, with a password."""
    environment = bucket.environment | SECRETS | SINKS
    started = Up(tmp_path_factory.mktemp("served") / "runs", free_port(), "0.0.0.0", environment)
    for name in ("whole", ".sft", ".prefect"):
        shutil.copytree(finished.runs / name, started.runs / name)
    with started:
        yield started


@pytest.fixture(scope="module")
def repeated_run(up: Up) -> Any:
    """A second run of the lineage `whole`, with all settings given as in the form."""
    return up.finish(up.trigger("spin", as_in_form(up.runs / "whole")))


@dataclass
class NightlyRun:
    """A nightly run whose flow was killed in its second phase, and the notifications about it."""

    concurrent_run: Any
    at_kill: dict[str, int]
    ended: Any
    states: list[str]
    tasks: dict[str, str]
    messages: list[Any]


@pytest.fixture(scope="module")
def nightly_run(up: Up, repeated_run: Any) -> NightlyRun:
    assert repeated_run["state_name"] == "Completed"
    root = up.runs / "whole"
    with Webhook() as webhook:
        done = install(up, "--notify-webhook", webhook.url)
        assert done.returncode == 0, done.stderr
        run = up.trigger("nightly", {"lineage": "whole"})
        wait_for((root / "iter_02" / "jobs" / "generations.json").exists)
        concurrent_run = wait_until_waiting(up, up.trigger("spin", as_in_form(root)))
        up.request("POST", f"/flow_runs/{concurrent_run['id']}/set_state", {"state": {"type": "CANCELLED"}})
        wait_for((root / "iter_02" / "generations" / "manifest.json").exists)
        os.kill(holder(root), signal.SIGKILL)
        at_kill = stamps(root)
        ended, messages = up.finish(run), [webhook.messages.get(timeout=60)]
        while not messages[-1]["event"].startswith("spin.gate."):
            messages.append(webhook.messages.get(timeout=60))
    return NightlyRun(concurrent_run, at_kill, ended, up.history(run), up.tasks(run), messages)


def wait_until_waiting(up: Up, run: Any) -> Any:
    """The run, once its state says that it waits."""

    def waiting() -> Any:
        now = up.request("GET", f"/flow_runs/{run['id']}")
        return now if now["state_name"] == "Waiting" else None

    return wait_for(waiting)


def test_requests_without_the_password_or_from_another_page_are_rejected(up):
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
    assert httpx.get(f"{url}/ui-settings", timeout=60).json()["api_url"] == "/api", (
        "relative, for any name of the server"
    )


def test_local_clients_read_the_password_from_a_file_that_only_its_owner_can_read(up):
    file = up.runs / ".prefect" / "password"
    assert file.read_text() == f"{PASSWORD}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    message = up.spin("status")
    assert f"http://127.0.0.1:{up.port} for " in message.stdout, message.stderr


def test_the_user_interface_answers(up):
    page = httpx.get(f"http://127.0.0.1:{up.port}/v2/deployments", headers={"Accept": "text/html"}, timeout=60)
    assert page.status_code == 200
    assert "<html" in page.text


def test_a_second_spin_up_finds_the_first(up):
    done = subprocess.run(up.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith(f"already up: http://127.0.0.1:{up.port} ")


def test_a_taken_port_is_an_error_that_names_another_port(up, tmp_path):
    other = Up(tmp_path, up.port)
    done = subprocess.run(other.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"port {up.port} is taken" in done.stderr
    assert f"spin up --port {up.port + 1}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["spin", "nightly"])
def test_deployments_have_a_schema_and_leave_it_to_the_worker_how_many_run_at_once(up, name):
    deployment = up.deployment(name)
    assert deployment["global_concurrency_limit"] is None
    assert deployment["enforce_parameter_schema"]
    assert deployment["description"]
    (worker,) = up.alive("worker", "start")
    assert b"--limit\x001\x00" in Path(f"/proc/{worker}/cmdline").read_bytes()


def test_there_is_no_schedule_and_no_default_lineage_at_first(up):
    nightly = up.deployment("nightly")
    assert (nightly["schedules"], nightly["parameters"]) == ([], {})


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"recipe": "no-such-recipe"}, "recipe"),
        ({"iterations": -1}, "iterations"),
        ({"lineage": "up/../and/away"}, "lineage"),
        ({"lineage": "Mine"}, "lineage"),
        ({"overrides": {"train": {"beta": -1}}}, "overrides.train.beta"),
        ({"overrides": {"train": {"betta": 1}}}, "overrides.train"),
        ({"overrides": {"trian": {}}}, "overrides"),
    ],
    ids=str,
)
def test_an_invalid_parameter_is_rejected_before_a_run_exists(up, parameters, named):
    before = up.count_runs()
    answer = up.trigger("spin", {"recipe": "demo", **parameters}, status=409)
    assert f"Validation failed for field '{named}'" in answer["detail"]
    assert up.count_runs() == before


def test_a_run_through_the_worker_is_completed_and_named_after_its_lineage(repeated_run):
    assert repeated_run["state_name"] == "Completed"
    assert repeated_run["name"] == "demo-whole"


def test_of_two_equal_runs_the_second_waits_and_says_that_it_adds_nothing(up, repeated_run):
    """As after a double click on Submit."""
    parameters = as_in_form(up.runs / "whole")
    first, second = (up.trigger("spin", parameters) for _ in range(2))
    later = max(up.finish(first), up.finish(second), key=lambda run: run["start_time"])
    assert "Waiting" in up.history(later)
    for run in (repeated_run, later):
        assert run["state_name"] == "Completed"
        assert run["state"]["message"].startswith(
            "no new iteration, since whole has had 2 already and 2 were asked for; leaderboard: http"
        )


def test_results_of_the_command_line_are_reused_and_task_runs_are_named_after_their_phases(up, repeated_run):
    # The server learns the states of tasks from events, which may arrive after the run has ended.
    def ended() -> dict[str, str] | None:
        tasks = up.tasks(repeated_run)
        return tasks if "publish t=1" in tasks and not {"Pending", "Running"} & set(tasks.values()) else None

    states = wait_for(ended)
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


def test_a_run_waits_for_a_nightly_run_of_its_lineage_and_says_so(nightly_run):
    assert nightly_run.concurrent_run["state_type"] == "SCHEDULED"
    message = nightly_run.concurrent_run["state"]["message"]
    assert message == "waits: another run of lineage whole computes; this one continues after it"


def test_a_killed_flow_is_marked_as_crashed_and_started_again(nightly_run):
    places = [nightly_run.states.index(name) for name in ("Running", "Crashed", "AwaitingRetry")]
    assert places == sorted(places)
    assert nightly_run.ended["run_count"] == 2
    assert nightly_run.ended["labels"][watch.WORKER_LABEL] == local.WORKER, "which identifies its machine"


def test_the_restarted_run_reuses_finished_phases_and_repeats_none(up, nightly_run):
    assert nightly_run.ended["state_name"] == "Completed"
    now = stamps(up.runs / "whole")
    assert {name: now[name] for name in nightly_run.at_kill} == nightly_run.at_kill
    assert "iter_02/generations/manifest.json" in nightly_run.at_kill
    assert nightly_run.tasks["train t=1"] == nightly_run.tasks["generate t=2"] == "Reused"
    assert nightly_run.tasks["train t=2"] == nightly_run.tasks["evaluate θ_3 self-play"] == "Completed"


def test_a_crashed_nightly_run_adds_exactly_one_iteration(up, nightly_run):
    assert nightly_run.ended["name"] == "nightly-whole"
    root = up.runs / "whole"
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_00", "iter_01", "iter_02"]
    assert [row["t"] for row in json.loads((root / "leaderboard.json").read_text())["rows"]] == [0, 1, 2, 3]


def test_an_iteration_has_a_page_and_the_leaderboard_a_new_version(up):
    """For iterations of the command line: a nightly run, which is slow to wait for, publishes by the same task."""
    (page,), board = up.artifacts("whole-iteration-01"), up.artifacts("leaderboard-whole")[0]
    assert page["type"] == board["type"] == "markdown"
    assert page["description"].startswith("θ_1 → θ_2; ")
    links, _, text = page["data"].partition("\n\n")
    assert links.startswith("[leaderboard](/v2/artifacts/key/leaderboard-whole) · ")
    assert text.startswith("# whole: θ_1 → θ_2\n")
    plots = re.findall(r"!\[([^]]*)\]\(data:image/png;base64,", page["data"])
    assert plots == ["total_variation over the versions", "training curve", "lengths of human and generated responses"]
    assert re.search(r"leads \d versions with total_variation ", board["description"])
    assert "| θ_2 " in board["data"]


def test_a_nightly_run_publishes_only_its_own_iteration(up, nightly_run):
    assert [len(up.artifacts(f"whole-iteration-{t:02d}")) for t in range(4)] == [1, 1, 1, 0]
    (page,), board = up.artifacts("whole-iteration-02"), up.artifacts("leaderboard-whole")[0]
    assert page["flow_run_id"] == board["flow_run_id"] == nightly_run.ended["id"]
    assert " leads 4 versions with total_variation " in board["description"]


def test_notifications_report_crashed_runs_and_the_gates_decisions(up, nightly_run):
    *runs, gate = nightly_run.messages
    assert "prefect.flow-run.Crashed" in [message["event"] for message in runs]
    decision = json.loads((up.runs / "whole" / "iter_02" / "record.json").read_text())["gate"]
    assert gate["event"] == f"spin.gate.{decision['outcome']}"
    assert gate["text"] == f"spin: whole: {decision['reason']}"
    assert (gate["gate"]["t"], gate["gate"]["next_opponent"]) == (3, decision["next_opponent"])


@pytest.mark.usefixtures("nightly_run")
def test_a_converged_lineage_ends_its_nightly_runs_with_a_notification(up):
    """Its versions improve every time, so its gate watches a score that no version can change."""
    root = up.runs / "whole"
    settings = json.loads((root / "lineage.json").read_text())
    settings["config"]["nightly"] = {"patience": 1}
    settings["config"]["gate"]["metric"] = "repeated_trigrams"
    (root / "lineage.json").write_text(json.dumps(settings))
    nightly = up.deployment("nightly")
    active = {"schedule": {"cron": "0 2 * * *", "timezone": "UTC"}, "active": True}
    schedules = [active | {"parameters": {"lineage": name}, "slug": f"lineage-{name}"} for name in ("whole", "other")]
    up.request("PATCH", f"/deployments/{nightly['id']}", {"schedules": schedules})
    with Webhook() as webhook:
        done = install(up, SPIN_NOTIFY_WEBHOOK=webhook.url)  # again, after the nightly run's
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        names = [schedule["name"] for schedule in up.request("POST", "/automations/filter", {})]
        assert len(names) == len(set(names)) == 2
        run = up.finish(up.trigger("nightly", {"lineage": "whole"}))
        message = webhook.messages.get(timeout=60)
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Converged")
    url = f"http://127.0.0.1:{up.port}"
    place = f"leaderboard: {url}/v2/artifacts/key/leaderboard-whole report: {url}/lineages/whole/report.html"
    assert run["state"]["message"] == f"θ_3 is not better than θ_0 in repeated_trigrams, beyond chance; {place}"
    assert message["text"] == f"spin: nightly-whole is Converged: {run['state']['message']}"
    assert message["event"] == "prefect.flow-run.Converged"
    after = {
        schedule["parameters"]["lineage"]: schedule["active"]
        for schedule in up.deployment("nightly")["schedules"]
        if schedule["parameters"]
    }
    assert after == {"whole": False, "other": True}
    assert not (root / "iter_03").exists()
    assert "; ended: θ_3 is not better than θ_0" in up.spin("status").stdout
    refused = up.spin("next", "whole")
    assert refused.returncode == 2
    assert "lineage whole has converged (θ_3 is not better" in refused.stderr
    assert "spin next whole --anyway" in refused.stderr


def test_an_invalid_webhook_or_block_is_rejected(up):
    for arguments, message in [
        (["--notify-webhook", "example.org"], "it must begin with http:// or https://"),
        (["--notify-block", "sendgrid-email/nobody"], "create it in the UI under Blocks"),
    ]:
        done = install(up, *arguments)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.fixture(scope="module")
def failed_evaluation(up: Up, nightly_run: NightlyRun, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose judge refuses its key, and the mail about it."""
    assert nightly_run.ended["state_name"] == "Completed"
    questions = tmp_path_factory.mktemp("questions")
    question = {"question_id": 81, "category": "writing", "turns": ["1+1=", "2+2="]}
    (questions / "question.jsonl").write_text(json.dumps(question))
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


def test_a_failed_run_is_reported_by_mail(failed_evaluation):
    run, envelope, mail = failed_evaluation
    assert run["state_name"] == "Failed"
    assert "refuses the key in OPENAI_API_KEY (401)" in run["state"]["message"]
    assert (envelope.mail_from, envelope.rcpt_tos) == ("spin@example.org", ["me@example.org"])
    assert mail["Subject"] == "spin: evaluate-whole"
    assert "evaluate-whole is Failed: " in mail.get_content()


def test_status_shows_a_failed_run_with_its_reason(up, failed_evaluation):
    assert failed_evaluation
    shown = up.spin("status").stdout
    assert re.search(
        r"^failed +evaluate-whole  at .*: .*refuses the key in OPENAI_API_KEY \(401\)", shown, re.MULTILINE
    )


@pytest.fixture(scope="module")
def run_with_keys(up: Up, failed_evaluation: Any, bucket: Bucket) -> Any:
    """A run that uses the keys of a store and of sinks."""
    assert failed_evaluation
    parameters = as_in_form(up.runs / "whole")
    parameters["overrides"] |= {
        "push": {"url": bucket.url},
        "metrics": {"sinks": ["tensorboard", "mlflow", "wandb"]},
    }
    return up.finish(up.trigger("spin", parameters))


def test_a_run_pushes_its_copy_and_sends_its_metrics_with_the_environments_keys(up, run_with_keys, bucket):
    assert run_with_keys["state_name"] == "Completed", run_with_keys["state"]["message"]
    assert "whole/.pushed/manifest.json" in bucket.versions()
    assert list((up.runs / "whole" / "metrics").glob("wandb/offline-run-*/*.wandb"))
    message = json.dumps(up.request("POST", "/logs/filter", {"sort": "TIMESTAMP_DESC"}))
    assert "metrics: mlflow failed and gets no more points: " in message


@pytest.mark.usefixtures("run_with_keys")
def test_no_secret_is_written_or_shown_anywhere(up):
    """The last test of this server: it ends the server, so that its output is complete."""
    hidden = [*SECRETS.values(), PASSWORD.split(":")[1], MAIL_PASSWORD, TRACKING_PASSWORD]
    hidden += [base64.b64encode(value.encode()).decode() for value in hidden]
    (worker,) = up.alive("worker", "start")
    worker_environment = Path(f"/proc/{worker}/environ").read_text()
    assert all(value in worker_environment for value in SECRETS.values()), "values that it does not have could not leak"
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
