"""A judge that is up but slow: a rate limit is waited out, by everybody in turn, and not for ever."""

import threading
import time

import pytest
from endpoint import Reply, serving
from judging import ask_all, asks, config, short_pauses

from spin_core.errors import TryAgain
from spin_core.evaluation import judge as judging
from spin_core.evaluation.judge import Judge

__all__ = ["short_pauses"]

WINDOW = 0.5


def one_a_window():
    """One request in each half second is answered; the rest are told when the next one begins."""
    began, served, lock = time.monotonic(), set(), threading.Lock()

    def reply(_body, _before):
        now = time.monotonic() - began
        with lock:
            if int(now / WINDOW) not in served:
                served.add(int(now / WINDOW))
                return Reply()
        left = WINDOW - now % WINDOW
        return Reply(429, "slow down", {"retry-after-ms": f"{1000 * left:.0f}"})

    return reply


def test_waits_that_a_rate_limit_asks_for_are_no_attempts_and_nobody_storms_it_after_them(tmp_path):
    with serving(one_a_window()) as endpoint:
        rows = ask_all(tmp_path, endpoint.url, asks(8), speed={"retries": 2, "parallel": 8})
    assert [row["value"] for row in rows] == [7] * 8
    # Seven are turned away at first. If all came back at once, six would be next, then five: 28.
    assert len(endpoint.asked) - 8 < 22


def test_those_who_were_held_come_back_one_after_the_other(tmp_path):
    came, lock, together = [], threading.Lock(), threading.Barrier(8)

    def reply(_body, before):
        if not before:
            together.wait(timeout=60)
            return Reply(429, "slow down", {"retry-after": "1"})
        with lock:
            came.append(time.monotonic())
        return Reply()

    with serving(reply) as endpoint:
        ask_all(tmp_path, endpoint.url, asks(8), speed={"parallel": 8})
    assert len(came) == 8
    assert 0.1 < max(came) - min(came) < 1.5


def test_a_rate_limit_that_answers_nobody_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "PATIENCE", 0.6)
    limited = Reply(429, "slow down", {"retry-after-ms": "100"})
    with (
        serving(lambda _body, _before: limited) as endpoint,
        pytest.raises(TryAgain, match=r"429 slow down; no answer to anybody for \d s"),
    ):
        ask_all(tmp_path, endpoint.url, asks(1), speed={"retries": 2})
    assert 3 <= len(endpoint.asked) <= 7


def test_a_rate_limit_that_names_no_wait_is_an_attempt_unless_others_are_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "FIRST_PAUSE", 0.4)

    def reply(body, before):
        return Reply(429, "busy") if "question 0" in str(body) and before < 3 else Reply(seconds=0.05)

    with serving(reply) as endpoint:
        rows = ask_all(tmp_path, endpoint.url, asks(60), speed={"retries": 2, "parallel": 2})
        assert [row["value"] for row in rows] == [7] * 60
        endpoint.reply = lambda _body, _before: Reply(429, "busy")
        with pytest.raises(TryAgain, match="429 busy; attempt 2 of 2"):
            ask_all(tmp_path, endpoint.url, asks(61)[60:], speed={"retries": 2})


def test_whoever_gives_a_number_of_attempts_is_not_held_by_a_rate_limit():
    limited = Reply(429, "slow down", {"retry-after": "60"})
    with serving(lambda _body, _before: limited) as endpoint:
        judge = Judge(config(endpoint.url))
        call = lambda: judge.client.chat.completions.create(model="tiny-judge", messages=asks(1)[0].messages)  # noqa: E731
        with pytest.raises(TryAgain, match="attempt 1 of 1"):
            judge.persist(call, attempts=1)
    assert len(endpoint.asked) == 1
