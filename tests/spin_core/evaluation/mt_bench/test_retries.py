"""Failures that pass are tried again; a rate limit is waited for, by all threads one after the other, up to a limit."""

import threading
import time

import pytest

from spin_core.errors import TryAgain
from spin_core.evaluation.mt_bench import retries
from spin_core.evaluation.mt_bench.endpoint import JudgeEndpoint
from spin_core.evaluation.mt_bench.retries import SharedPause
from tests.support.lineages.judge_requests import (
    judge_config,
    replies_in_order,
    request_verdicts,
    short_pauses,
    verdict_requests,
)
from tests.support.servers.endpoint import Reply, serving

__all__ = ["short_pauses"]

WINDOW = 0.3
"""Seconds in which `one_a_window` answers one request."""


@pytest.mark.parametrize(
    "fault",
    [
        Reply(500, "broken"),
        Reply(503, "loading"),
        Reply(429, "no header"),
        Reply(408, "slow"),
        Reply(raw="<html>a proxy's page</html>", headers={"content-type": "text/html"}),
        Reply(raw='{"choi'),
        Reply(raw='{"choices": []}'),
    ],
)
def test_a_transient_failure_is_tried_again(tmp_path, fault):
    with serving(replies_in_order(fault, fault, Reply())) as endpoint:
        (row,) = request_verdicts(tmp_path, endpoint.url, verdict_requests(1))
    assert row["value"] == 7
    assert len(endpoint.requests) == 3


def test_an_answer_that_takes_too_long_is_requested_again(tmp_path):
    with serving(replies_in_order(Reply(seconds=1.5), Reply())) as endpoint:
        (row,) = request_verdicts(tmp_path, endpoint.url, verdict_requests(1), speed={"timeout_seconds": 0.4})
    assert row["value"] == 7
    assert len(endpoint.requests) == 2


def test_each_pause_is_twice_the_one_before_up_to_a_limit(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(SharedPause, "sleep", lambda _self, seconds: waited.append(seconds) if seconds > 0 else None)
    monkeypatch.setattr(retries, "FIRST_PAUSE", 1.0)
    with serving(replies_in_order(Reply(500, "broken"))) as endpoint, pytest.raises(TryAgain, match="attempt 9 of 9"):
        request_verdicts(tmp_path, endpoint.url, verdict_requests(1), speed={"retries": 9})
    assert len(waited) == 8
    for wait, most in zip(waited, (1, 2, 4, 8, 16, 32, 60, 60), strict=True):
        assert 0.75 * most <= wait <= most


def test_a_rate_limit_pauses_all_threads_for_its_time(tmp_path):
    came, together = [], threading.Barrier(4)

    def reply(_body, _before):
        came.append(time.monotonic())
        if len(came) > 4:
            return Reply()
        together.wait(timeout=60)
        return Reply(429, "slow down", {"retry-after": "1"})

    with serving(reply) as endpoint:
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(30), speed={"parallel": 4})
    assert all(row["value"] == 7 for row in rows)
    # The first four are rejected, and no other request is sent before the second is over.
    assert len(endpoint.requests) == 30 + 4
    assert came[4] - came[3] >= 1


def test_an_endpoint_that_requests_a_pause_of_hours_counts_as_down(tmp_path):
    with (
        serving(replies_in_order(Reply(429, "quota of the day", {"retry-after": "7200"}))) as endpoint,
        pytest.raises(TryAgain, match="429 quota of the day"),
    ):
        request_verdicts(tmp_path, endpoint.url, verdict_requests(1))
    assert len(endpoint.requests) == 1


def one_a_window():
    """Answers one request in each window; the error for the others has the time until the next window."""
    started, served, lock = time.monotonic(), set(), threading.Lock()

    def reply(_body, _before):
        now = time.monotonic() - started
        with lock:
            if int(now / WINDOW) not in served:
                served.add(int(now / WINDOW))
                return Reply()
        left = WINDOW - now % WINDOW
        return Reply(429, "slow down", {"retry-after-ms": f"{1000 * left:.0f}"})

    return reply


def test_waiting_for_a_rate_limit_is_not_an_attempt_and_is_not_followed_by_a_burst(tmp_path):
    with serving(one_a_window()) as endpoint:
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(8), speed={"retries": 2, "parallel": 8})
    assert [row["value"] for row in rows] == [7] * 8
    # Seven are rejected at first. If all came back at once, six would be next, then five: 28.
    assert len(endpoint.requests) - 8 < 22


def test_held_threads_come_back_one_after_the_other(tmp_path):
    came, lock, together = [], threading.Lock(), threading.Barrier(8)

    def reply(_body, before):
        if not before:
            together.wait(timeout=60)
            return Reply(429, "slow down", {"retry-after": "1"})
        with lock:
            came.append(time.monotonic())
        return Reply()

    with serving(reply) as endpoint:
        request_verdicts(tmp_path, endpoint.url, verdict_requests(8), speed={"parallel": 8})
    assert len(came) == 8
    assert 0.1 < max(came) - min(came) < 1.5


def test_a_rate_limit_that_rejects_everything_is_not_waited_for_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "RATE_LIMIT_TIMEOUT", 0.6)
    limited = Reply(429, "slow down", {"retry-after-ms": "100"})
    with (
        serving(lambda _body, _before: limited) as endpoint,
        pytest.raises(TryAgain, match=r"429 slow down; no request was answered for \d s"),
    ):
        request_verdicts(tmp_path, endpoint.url, verdict_requests(1), speed={"retries": 2})
    assert 3 <= len(endpoint.requests) <= 7


def test_a_rate_limit_without_retry_after_is_an_attempt_unless_others_are_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.25)

    def reply(body, before):
        return Reply(429, "busy") if "question 0" in str(body) and before < 3 else Reply(seconds=0.05)

    with serving(reply) as endpoint:
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(45), speed={"retries": 2, "parallel": 2})
        assert [row["value"] for row in rows] == [7] * 45
        endpoint.reply = lambda _body, _before: Reply(429, "busy")
        with pytest.raises(TryAgain, match="429 busy; attempt 2 of 2"):
            request_verdicts(tmp_path, endpoint.url, verdict_requests(46)[45:], speed={"retries": 2})


def test_a_given_number_of_attempts_is_not_extended_by_a_rate_limit():
    limited = Reply(429, "slow down", {"retry-after": "60"})
    with serving(lambda _body, _before: limited) as endpoint:
        client = JudgeEndpoint(judge_config(endpoint.url))
        messages = verdict_requests(1)[0].messages
        with pytest.raises(TryAgain, match="attempt 1 of 1"):
            client.request(
                lambda: client.client.chat.completions.create(model="tiny-judge", messages=messages), attempts=1
            )
    assert len(endpoint.requests) == 1
