"""A phase's progress in the UI, on a real server."""

from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from tasks import phase_task
from tasks.phase_task import ProgressArtifact

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_server")]


def cards(run: str) -> list[Any]:
    """The descriptions of a run's progress artifacts."""
    query = {"artifacts": {"flow_run_id": {"any_": [run]}, "type": {"any_": ["progress"]}}}
    answer = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/filter", json=query, timeout=60)
    return [artifact["description"] for artifact in answer.json()]


def test_a_finished_phase_leaves_no_progress_in_the_list_not_even_of_a_try_that_was_killed(monkeypatch):
    monkeypatch.setattr(phase_task, "PROGRESS_EVERY_SECONDS", 0.0)
    message = {"done": 1, "total": 4, "unit": "step"}

    @flow
    def two_phases() -> tuple[list[Any], list[Any]]:
        killed, again, other = ProgressArtifact("train"), ProgressArtifact("train"), ProgressArtifact("train sft")
        for progress in (killed, again, other):
            progress.update(message)
        during = cards(flow_run.id)
        again.finish()
        return during, cards(flow_run.id)

    during, after = two_phases()
    assert sorted(during) == ["train sft: 1 of 4 steps", "train: 1 of 4 steps", "train: 1 of 4 steps"]
    assert after == ["train sft: 1 of 4 steps"]


def test_a_server_that_is_away_does_not_end_a_phase(monkeypatch):
    monkeypatch.setattr(phase_task, "PROGRESS_EVERY_SECONDS", 0.0)

    def fail(**_: Any) -> Any:
        raise httpx.ConnectError("no server")

    @flow
    def one_phase() -> str:
        monkeypatch.setattr(phase_task, "get_client", fail)
        monkeypatch.setattr(phase_task, "create_progress_artifact", fail)
        progress = ProgressArtifact("train")
        progress.update({"done": 1, "total": 4, "unit": "step"})
        progress.finish()
        return "went on"

    assert one_phase() == "went on"
