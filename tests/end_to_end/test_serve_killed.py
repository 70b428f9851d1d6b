"""A `spin up` that was killed, and the one that is started after it."""

import re
import signal

import pytest

from tests.support.servers.served import Up, free_port, wait_for

pytestmark = pytest.mark.slow


def test_a_killed_spin_up_leaves_no_process_and_the_next_one_repairs_the_states(tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    up = Up(tmp_path / "runs", free_port(), "0.0.0.0", secrets={"TMPDIR": str(temporary)})
    up.start()
    assert up.alive()
    password = up.auth
    assert password is not None, "nobody chose one"
    nightly = up.deployment("nightly")
    schedule = {"schedule": {"cron": "30 3 * * *", "timezone": "Europe/Berlin"}, "active": True}
    changes = {"schedules": [schedule], "parameters": {"lineage": "mine"}, "concurrency_limit": 2}
    up.request("PATCH", f"/deployments/{nightly['id']}", changes)
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    path = f"/deployments/{nightly['id']}/create_flow_run"
    lost, cancelled = (up.request("POST", path, {"state": later}) for _ in range(2))
    task = up.request("POST", "/task_runs/", {"flow_run_id": lost["id"], "task_key": "train", "dynamic_key": "0"})
    for path in [f"/flow_runs/{lost['id']}"] * 4 + [f"/task_runs/{task['id']}", f"/flow_runs/{cancelled['id']}"]:
        up.request("POST", f"{path}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    up.request("POST", f"/flow_runs/{cancelled['id']}/set_state", {"state": {"type": "CANCELLING"}, "force": True})

    up.end(signal.SIGKILL)
    wait_for(lambda: not up.alive())
    assert (up.runs / ".prefect" / "server.url").read_text()
    (left,) = temporary.glob("spin-up-*")

    up.start()
    assert not left.exists()
    assert up.auth == password
    deployment = up.deployment("nightly")
    assert deployment["id"] == nightly["id"]
    assert deployment["parameters"] == {}, "a default lineage becomes that of the schedules"
    assert deployment["global_concurrency_limit"]["limit"] == 2
    assert deployment["tags"] == nightly["tags"]
    assert deployment["job_variables"] == nightly["job_variables"]
    (kept,) = deployment["schedules"]
    assert kept["active"]
    assert (kept["parameters"], kept["slug"]) == ({"lineage": "mine"}, "lineage-mine")
    assert (kept["schedule"]["cron"], kept["schedule"]["timezone"]) == ("30 3 * * *", "Europe/Berlin")
    for path in (f"/flow_runs/{lost['id']}", f"/task_runs/{task['id']}"):
        state = up.request("GET", path)["state"]
        assert state["type"] == "CRASHED"
        assert "Start it again" in state["message"]

    assert up.request("GET", f"/flow_runs/{cancelled['id']}")["state_type"] == "CANCELLED"

    status = up.spin("status").stdout
    assert re.search(rf"up +http://127.0.0.1:{up.port} for 0:0", status)
    assert re.search(r"^runs +none$", status, re.MULTILINE)
    assert up.spin("down").stdout == "down\n"
    assert up.end() == 0
    assert not up.alive()
    assert not list(temporary.glob("spin-up-*"))
    assert up.spin("down").stdout == f"nothing is up for {up.runs}\n"
    assert up.spin("status").stdout.startswith(f"nothing is up for {up.runs}: spin up --runs {up.runs} starts it\n")
    assert not (up.runs / ".prefect" / "server.url").read_text()
