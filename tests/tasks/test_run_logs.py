"""What the log of a run shows of an error, on a real server."""

import logging
import time
from typing import Any

import httpx
import pytest
from prefect import flow, task
from prefect.settings import PREFECT_API_URL

from spin_core.errors import DataError
from tasks import phase_task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_server")]

SENTENCE = "prompts.jsonl has no column 'text': name one with prompts.columns.text"


def errors(run: Any) -> list[str]:
    """The error messages in a run's log, in their order, once its last line is there."""
    query = {"logs": {"flow_run_id": {"any_": [str(run)]}}, "sort": "TIMESTAMP_ASC"}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = httpx.post(f"{PREFECT_API_URL.value()}/logs/filter", json=query, timeout=60).json()
        ends = [line for line in lines if line["message"].startswith("Finished in state Failed")]
        if any(not line["task_run_id"] for line in ends):
            return [line["message"] for line in lines if line["level"] >= logging.ERROR and line not in ends]
        time.sleep(0.2)
    raise AssertionError(lines)


def failing(error: Exception) -> Any:
    """The id of a flow run whose task raises the error."""

    @task
    def read() -> None:
        raise error

    @flow
    def run() -> None:
        read()

    return run(return_state=True).state_details.flow_run_id


def test_an_error_that_a_user_can_fix_is_one_sentence_and_is_logged_once():
    assert phase_task.shorten_errors
    assert errors(failing(DataError(SENTENCE))) == [SENTENCE]


def test_a_bug_keeps_its_traceback():
    in_task, in_flow = errors(failing(ValueError("a bug")))
    for message in (in_task, in_flow):
        assert "Traceback (most recent call last)" in message
        assert message.endswith("ValueError: a bug")
