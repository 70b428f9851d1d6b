"""Nightly runs of a lineage: which of them add an iteration, and which are skipped. Results are published by hand."""

import json
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

from flows import nightly as nights
from tests.support.helpers import HOLDS
from tests.support.lineages.small_lineage import NLLS, build_lineage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_server")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The iterations of a nightly run are replaced, so that they take no time."""
    monkeypatch.setattr(nights, "continue_lineage", publish)


def publish(runs: str, name: str, config: Any) -> None:
    build_lineage(Path(runs), name, [[value - t / 10 for value in NLLS[0]] for t in range(config.iterations + 1)])


def night(runs: Path, lineage: str, due: timedelta = timedelta()) -> State[Any]:
    """The final state of a run that was due some time ago and starts now."""
    parameters = {"lineage": lineage, "recipe": "demo", "until_converged": False, "runs": str(runs)}
    with get_client(sync_client=True) as client:
        scheduled = Scheduled(scheduled_time=datetime.now(UTC) - due)
        run = client.create_flow_run(nights.nightly, parameters=parameters, state=scheduled)
    return run_flow(nights.nightly, flow_run=run, parameters=parameters, return_type="state")


def count_iterations(runs: Path, lineage: str) -> int:
    return len(list((runs / lineage).glob("iter_*/record.json")))


def test_a_nightly_run_that_waited_for_another_of_its_lineage_adds_nothing(tmp_path):
    assert night(tmp_path, "tale", timedelta(hours=30)).name == "Completed"
    skipped = night(tmp_path, "tale", timedelta(hours=6))
    assert (skipped.type.value, skipped.name) == ("COMPLETED", "Skipped")
    assert "due while another nightly run of tale was busy" in skipped.message
    assert "\n" not in skipped.message
    assert count_iterations(tmp_path, "tale") == 1
    assert len(list((tmp_path / "tale" / "nights").iterdir())) == 1


def test_a_nightly_run_starts_if_the_one_before_has_ended(tmp_path):
    for iterations in (1, 2):
        assert night(tmp_path, "tale").name == "Completed"
        assert count_iterations(tmp_path, "tale") == iterations


def test_a_nightly_run_is_not_skipped_for_nightly_runs_of_another_lineage(tmp_path):
    for lineage in ("tale", "other"):
        assert night(tmp_path, lineage, timedelta(hours=6)).name == "Completed"
        assert count_iterations(tmp_path, lineage) == 1


def test_missed_nightly_runs_do_not_pile_up(tmp_path):
    states = [night(tmp_path, "tale", timedelta(days=days)).name for days in (2, 4, 1, 3)]
    assert states == ["Completed", "Skipped", "Skipped", "Skipped"]
    assert count_iterations(tmp_path, "tale") == 1


def test_a_nightly_run_that_died_is_replaced_by_the_one_that_waited(tmp_path, monkeypatch):
    def die(*_: Any) -> None:
        raise RuntimeError("as if killed")

    monkeypatch.setattr(nights, "continue_lineage", die)
    with pytest.raises(RuntimeError):
        night(tmp_path, "tale", timedelta(hours=30)).result()
    monkeypatch.setattr(nights, "continue_lineage", publish)
    assert night(tmp_path, "tale", timedelta(hours=6)).name == "Completed"
    assert count_iterations(tmp_path, "tale") == 1


@pytest.mark.parametrize("holder", ["another command", "another nightly run"])
def test_a_nightly_run_waits_for_its_lineage_and_is_skipped_if_a_nightly_run_used_it(tmp_path, holder):
    root = build_lineage(tmp_path, "tale").root

    def end() -> None:
        if holder == "another nightly run":
            (root / "nights").mkdir()
            note = {"iterations": 2, "ended": "", "played": datetime.now(UTC).isoformat()}
            (root / "nights" / "another.json").write_text(json.dumps(note))
        assert process.stdin is not None
        process.stdin.close()

    command = [sys.executable, "-c", HOLDS, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        threading.Timer(2, end).start()
        state = night(tmp_path, "tale")
    ended = ("Completed", 3) if holder == "another command" else ("Skipped", 2)
    assert (state.name, count_iterations(tmp_path, "tale")) == ended
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(state.state_details.flow_run_id)
    (waiting,) = (each for each in states if each.name == "Waiting")
    assert re.match(
        rf"waits: another run of tale \(process {process.pid} on .*\) computes; this one continues", waiting.message
    )
