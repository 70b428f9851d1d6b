"""Schedules of nightly runs, by `spin nightly` and by the UI's switch, with a real browser, server and worker.

The lineages were ended by their gate, so that their nightly runs end at once and say for which lineage they were.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from spin_core.runtime import turns
from tests.support.lineages.small_lineage import build_lineage
from tests.support.servers.prefect_ui import Ui, signed_in
from tests.support.servers.served import Up, free_port, wait_for

pytestmark = pytest.mark.slow

WORSE = [[2.0 + item / 10 + t for item in range(8)] for t in range(2)]
"""`heldout_nll` of two versions, of which the second is worse."""


@pytest.fixture(scope="module")
def up(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:  # noqa: ARG001 (or none is served)
    runs = tmp_path_factory.mktemp("schedules") / "runs"
    for name in ("tale", "other"):
        build_lineage(runs, name, WORSE, ["gate.rule=stop", "gate.metric=heldout_nll"])
    with Up(runs, free_port()) as started:
        yield started


@pytest.fixture(scope="module")
def ui(browser: Browser, up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with signed_in(browser, up, tmp_path_factory.mktemp("pictures")) as ui:
        yield ui


@pytest.fixture(scope="module")
def schedule(up: Up) -> Any:
    """The schedule that `spin nightly` has made, and what it printed."""
    assert up.deployment("nightly")["schedules"] == []
    done = up.spin("nightly", "tale", "--at", "02:30", "--timezone", "Europe/Berlin")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tale: one more iteration every night at 02:30 Europe/Berlin, next 20")
    return schedules(up)["lineage-tale"]


def schedules(up: Up) -> dict[str, Any]:
    """The schedules by their slugs."""
    return {schedule["slug"]: schedule for schedule in up.deployment("nightly")["schedules"]}


def nights(up: Up) -> list[Any]:
    """The nightly runs that have ended."""
    selection = {"name": {"like_": "nightly-"}, "state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}
    return list(up.request("POST", "/flow_runs/filter", {"flow_runs": selection}))


def test_spin_nightly_makes_a_schedule_that_spin_status_shows(up, schedule):
    assert schedule["parameters"] == {"lineage": "tale"}
    assert schedule["active"]
    assert "nightly    tale  at 02:30 Europe/Berlin, next 20" in up.spin("status").stdout


def test_spin_nightly_changes_a_schedule_and_switches_it_off_and_on(up, schedule):
    changed = up.spin("nightly", "tale", "--at", "4:05", "--off")
    assert changed.stdout.startswith("tale: at 04:05 Europe/Berlin, off; spin nightly tale --runs ")
    assert "nightly    tale  at 04:05 Europe/Berlin, off\n" in up.spin("status").stdout
    up.spin("nightly", "tale", "--at", "02:30")
    assert schedules(up)["lineage-tale"] | {"updated": ""} == schedule | {"updated": ""}
    assert up.spin("nightly", "nobody", "--off").stdout == "nobody has no schedule\n"


@pytest.mark.usefixtures("schedule")
def test_a_schedule_of_a_lineage_that_has_not_begun_is_changed_without_its_recipe(up):
    unknown = up.spin("nightly", "tael")
    assert "there is no lineage 'tael' (did you mean tale?)" in unknown.stderr
    assert "as spin nightly tael --recipe demo" in unknown.stderr
    assert up.spin("nightly", "later", "--recipe", "demo", "--at", "03:00", "--timezone", "UTC").returncode == 0
    changed = up.spin("nightly", "later", "--at", "5:00")
    assert changed.stdout.startswith("later: one more iteration every night at 05:00 UTC, next 20"), changed.stderr
    assert up.spin("nightly", "later", "--off").returncode == 0
    again = up.spin("nightly", "later")
    assert again.stdout.startswith("later: one more iteration every night at 05:00 UTC, next 20"), again.stderr
    assert schedules(up)["lineage-later"]["parameters"] == {"lineage": "later", "recipe": "demo"}
    up.request(
        "DELETE", f"/deployments/{up.deployment('nightly')['id']}/schedules/{schedules(up)['lineage-later']['id']}"
    )


@pytest.mark.usefixtures("schedule")
def test_the_page_says_which_lineage_each_schedule_is_for(ui):
    ui.go("/deployments")
    ui.page.get_by_role("link", name="nightly", exact=True).first.click()
    ui.wait_until_visible(ui.page.get_by_role("link", name="nightly-tale").first)
    ui.picture("ui-schedule")
    ui.page.get_by_role("tab", name="Description").click()
    expect(ui.page.get_by_role("tabpanel").get_by_role("listitem")).to_have_text(["tale at 02:30 Europe/Berlin"])


@pytest.mark.usefixtures("schedule")
def test_the_switch_of_the_ui_keeps_the_lineage(up, ui):
    up.spin("nightly", "tale", "--at", "02:30")
    (before,) = schedules(up).values()
    ui.go("/deployments")
    ui.page.get_by_role("link", name="nightly", exact=True).first.click()
    switch = ui.page.get_by_role("switch", name="toggle At 02:30 AM")
    path = f"/schedules/{before['id']}"
    for active in (False, True):
        wait_for(lambda: ui.answered(path, switch.click))
        expect(switch).to_be_checked(checked=active)
        assert schedules(up)["lineage-tale"]["active"] == active
        wait_for(lambda: schedules(up)["lineage-tale"]["parameters"] == before["parameters"])


@pytest.mark.usefixtures("schedule")
def test_a_schedule_without_parameters_runs_its_own_lineage_and_one_without_a_lineage_fails_with_the_fix(up):
    every_minute = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True}
    path = f"/deployments/{up.deployment('nightly')['id']}/schedules"
    up.request("POST", path, [every_minute | {"slug": "lineage-other"}, every_minute | {"slug": "of-nobody"}])
    wait_for(lambda: schedules(up)["lineage-other"]["parameters"] == {"lineage": "other"})
    by_name = wait_for(lambda: runs if len(runs := {run["name"]: run for run in nights(up)}) == 2 else None)
    run, failed = by_name["nightly-other"], by_name["nightly-without-lineage"]
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Stopped")
    assert failed["state_type"] == "FAILED"
    assert (
        "no lineage is named: fill in lineage in the form of this run or of its schedule" in failed["state"]["message"]
    )
    assert "spin nightly LINEAGE --at 02:00" in failed["state"]["message"]
    assert not schedules(up)["lineage-other"]["active"], "its gate has ended the lineage"
    up.request("DELETE", f"{path}/{schedules(up)['of-nobody']['id']}")


def test_a_run_from_the_form_without_a_lineage_fails_with_the_fix(up):
    failed = up.finish(up.trigger("nightly", {}))
    assert failed["name"] == "nightly-without-lineage"
    assert "no lineage is named: fill in lineage" in failed["state"]["message"]
    unknown = up.finish(up.trigger("nightly", {"lineage": "tael"}))
    assert "there is no lineage 'tael' (did you mean tale?)" in unknown["state"]["message"]


def test_a_run_waits_for_another_of_this_machine_and_its_state_and_spin_status_say_so(up):
    """The first waits for a run of a terminal, which this process stands for, and the second for the first."""
    with turns.turn("run of a-terminal", 0, print):
        first = up.trigger("nightly", {"lineage": "tale"})
        state = wait_for(lambda: waiting_state(up, first, "PENDING"))
        assert re.match(
            r"waits: a run of a-terminal \(process \d+\) computes; spin up --at-once allows more", state["message"]
        )
        second = up.trigger("spin", {"lineage": "tale", "iterations": 1})
        state = wait_for(lambda: waiting_state(up, second, "SCHEDULED"))
        assert state["message"] == "waits: another run of lineage tale waits; this one continues after it"
        other = up.trigger("spin", {"lineage": "other", "iterations": 1})
        state = wait_for(lambda: waiting_state(up, other, "SCHEDULED"))
        assert state["message"] == "waits: a run of tale waits; spin up --at-once allows more"
        assert state["message"] in log_of(up, other), "where the UI opens a run"
        again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
        up.request("POST", f"/flow_runs/{other['id']}/set_state", again)  # as after a crash
        wait_for(lambda: waiting_state(up, other, "SCHEDULED"))
        status = up.spin("status").stdout
        assert "nightly-tale  Waiting: a run of a-terminal (process " in status
        assert " tale  Waiting: another run of lineage tale waits; this one continues after it" in status
        assert " other  Waiting: a run of tale waits; spin up --at-once" in status
        names = [up.request("GET", f"/flow_runs/{run['id']}")["name"] for run in (second, other)]
        assert names == ["tale", "other"], "and not Prefect's random words"
        for run in (second, other):
            up.request("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}})
    assert up.finish(first)["state_name"] == "Stopped"
    assert up.history(first)[-3:] == ["Waiting", "Running", "Stopped"]


def log_of(up: Up, run: Any) -> list[str]:
    """The lines of the run's log."""
    lines = up.request("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    return [line["message"] for line in lines]


def waiting_state(up: Up, run: Any, kind: str) -> Any:
    """The run's state, if it waits in this type of state."""
    state = up.request("GET", f"/flow_runs/{run['id']}")["state"]
    return state if (state["name"], state["type"]) == ("Waiting", kind) else None


def test_spin_run_in_a_terminal_waits_for_a_run_of_spin_up_and_says_so(up):
    with turns.turn("run of tale", 0, print), subprocess.Popen(
        [sys.executable, "-m", "flows.command_line", "run", "demo", "--lineage", "new", "--runs", str(up.runs)],
        env=up.all_environment(), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        process.terminate()
        assert re.match(
            r"waiting for run of tale \(process \d+\)(, .*)? on this machine, then this run starts; Ctrl-C ends it",
            line,
        )
        assert "--no-wait runs it at once" in line
        assert "stopped; the same command continues from here" in process.stderr.read()
    assert process.returncode == 143
