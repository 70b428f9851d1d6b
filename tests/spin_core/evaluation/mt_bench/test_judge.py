"""Verdicts of a judge on a server of this machine: read, kept, refused and requested again."""

import threading

import pytest

from spin_core.errors import ConfigError, Stopped, TryAgain
from spin_core.evaluation.mt_bench.judge import REFUSALS
from spin_core.evaluation.mt_bench.judge_prompts import PAIR, SINGLE
from spin_core.evaluation.mt_bench.verdicts import REMINDERS
from spin_core.runtime.progress import Progress
from spin_core.store.journal import Journal
from tests.support.lineages.judge_requests import replies_in_order, request_verdicts, short_pauses, verdict_requests
from tests.support.servers.endpoint import Reply, serving

__all__ = ["short_pauses"]

FILTERED = Reply(400, "The response was filtered by our content management policy", code="content_filter")


def test_as_many_requests_are_in_flight_as_configured(tmp_path):
    together = threading.Barrier(8)

    def reply(_body: dict, _before: int) -> Reply:
        together.wait(timeout=60)
        return Reply(seconds=0.2)

    with serving(reply) as endpoint:
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(16))
    assert endpoint.most_in_flight == 8
    assert [row["value"] for row in rows] == [7.0] * 16
    assert rows[0]["reply"] == "It is fair. [[7]]"
    assert (rows[0]["prompt_tokens"], rows[0]["completion_tokens"], rows[0]["asked"]) == (11, 5, 1)


def test_equal_requests_are_sent_once(tmp_path):
    with serving() as endpoint:
        request_verdicts(tmp_path, endpoint.url, [*verdict_requests(3), *verdict_requests(3)])
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(("kind", "good"), [(SINGLE, "[[4]]"), (PAIR, "[[B]]")])
def test_a_reply_without_a_verdict_is_requested_again_with_a_reminder(tmp_path, kind, good):
    def reply(body, _before):
        reminded = body["messages"][-1]["content"] == REMINDERS[kind]
        return Reply(text=good if reminded else "Let me think.")

    with serving(reply) as endpoint:
        (row,) = request_verdicts(tmp_path, endpoint.url, verdict_requests(1, kind))
    assert (row["value"], row["asked"], row["fault"]) == (4.0 if kind == SINGLE else "B", 2, "")
    assert endpoint.requests[1]["messages"][:2] == [
        *verdict_requests(1)[0].messages,
        {"role": "assistant", "content": "Let me think."},
    ]


@pytest.mark.parametrize(("kind", "weighed", "good"), [(SINGLE, "[[10]]", "[[4]]"), (PAIR, "[[A]]", "[[B]]")])
def test_a_verdict_in_a_reply_that_was_cut_does_not_count(tmp_path, kind, weighed, good):
    cut = Reply(text=f"They ask to be told {weighed}, and I find that", finish="length")
    with serving(replies_in_order(cut)) as endpoint:
        (row,) = request_verdicts(tmp_path, endpoint.url, verdict_requests(1, kind))
    assert (row["value"], row["asked"], row["fault"]) == (None, 3, "unreadable")

    def reply(body, _before):
        return Reply(text=good) if body["messages"][-1]["content"] == REMINDERS[kind] else cut

    with serving(reply) as endpoint:
        (row,) = request_verdicts(tmp_path, endpoint.url, verdict_requests(2, kind)[1:])
    assert (row["value"], row["asked"], row["fault"]) == (4.0 if kind == SINGLE else "B", 2, "")


def test_an_unreadable_verdict_is_recorded_and_not_requested_again(tmp_path):
    with serving(replies_in_order(Reply(text="ten out of ten"))) as endpoint:
        for _ in range(2):
            (row,) = request_verdicts(tmp_path, endpoint.url, verdict_requests(1))
    assert (row["value"], row["fault"], row["asked"], row["reply"]) == (None, "unreadable", 3, "ten out of ten")
    assert len(endpoint.requests) == 3


def test_an_item_that_is_too_long_for_the_judge_has_no_verdict_and_ends_nothing(tmp_path):
    def reply(body, _before):
        long = "question 1" in str(body)
        return Reply(400, "This model's maximum context length is 9 tokens", code="x") if long else Reply()

    with serving(reply) as endpoint:
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(3))
    assert [row["value"] for row in rows] == [7, None, 7]
    assert rows[1]["fault"] == "too long"


def test_a_judge_that_goes_down_loses_nothing(tmp_path):
    stop = threading.Event()

    def reply(body, _before):
        return Reply(500, "gone") if stop.is_set() and "question 9" in str(body) else Reply()

    with serving(reply) as endpoint:
        stop.set()
        with pytest.raises(TryAgain, match=r"gives no answer .500 gone; attempt 4 of 4.*what is answered and judged"):
            request_verdicts(tmp_path, endpoint.url, verdict_requests(10), speed={"parallel": 2})
        stop.clear()
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(10), speed={"parallel": 2})
    assert [row["value"] for row in rows] == [7] * 10
    assert len(endpoint.answered) == len(set(endpoint.answered)) == 10


def test_a_request_to_stop_keeps_the_verdicts_in_flight(tmp_path):
    progress = Progress(quiet=True)

    def reply(body, _before):
        if "question 5" in str(body):
            progress.stop()
        return Reply(seconds=0.2)

    with serving(reply) as endpoint:
        with pytest.raises(Stopped):
            request_verdicts(tmp_path, endpoint.url, verdict_requests(40), progress, speed={"parallel": 3})
        kept = len(Journal(tmp_path / ".verdicts.jsonl").rows)
        assert 6 <= kept == len(endpoint.answered) < 40
        endpoint.reply = lambda _body, _before: Reply()
        request_verdicts(tmp_path, endpoint.url, verdict_requests(40))
    assert len(endpoint.requests) == 40


def refusing(*numbers, reply=None):
    """An endpoint that refuses the questions with these numbers, faster than it answers the others."""
    refused = [f"question {number}'" for number in numbers]

    def answer(body, _before):
        if any(text in str(body) for text in refused):
            return reply or Reply(400, "we would rather not")
        return Reply(seconds=0.1)

    return answer


def kept(folder):
    return [row["value"] for row in Journal(folder / ".verdicts.jsonl").rows]


@pytest.mark.parametrize("parallel", [1, 8])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_item_that_is_rejected_is_a_fault_while_others_are_answered(tmp_path, parallel, status):
    with serving(refusing(0, 5, reply=Reply(status, "we would rather not"))) as endpoint:
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(10), speed={"parallel": parallel})
    assert [row["value"] for row in rows] == [None, 7, 7, 7, 7, None, 7, 7, 7, 7]
    for row in (rows[0], rows[5]):
        assert (row["fault"], row["asked"], row["reply"]) == ("refused", 0, f"{status} we would rather not")
    # A refusal costs nothing and the endpoint's rules may change, so it is not kept.
    assert kept(tmp_path) == [7] * 8


def test_a_single_remaining_item_that_is_rejected_does_not_end_the_run(tmp_path):
    with serving() as endpoint:
        request_verdicts(tmp_path, endpoint.url, verdict_requests(3)[1:])
        endpoint.reply = refusing(0)
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(3))
        assert [row["fault"] for row in rows] == ["refused", "", ""]
        endpoint.reply = refusing()
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(3))
    assert [row["value"] for row in rows] == [7] * 3


@pytest.mark.parametrize("count", [1, 3, 80])
def test_a_judge_that_refuses_everything_is_a_one_line_error_after_a_few_requests(tmp_path, count):
    with (
        serving(refusing(*range(count))) as endpoint,
        pytest.raises(ConfigError, match=r"rejects the request .400 we would rather not.*temperature") as refused,
    ):
        request_verdicts(tmp_path, endpoint.url, verdict_requests(count), speed={"parallel": 4})
    # The flow finds errors by their names in `errors`, so it must be exactly this class.
    assert type(refused.value) is ConfigError
    assert "\n" not in str(refused.value)
    assert len(endpoint.requests) <= REFUSALS + 4
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "reply",
    [
        FILTERED,
        Reply(400, "Invalid prompt: it was flagged as potentially violating our usage policy", code="invalid_prompt"),
        Reply(403, "the model requires moderation, and your input was flagged"),
    ],
)
def test_a_content_filter_is_due_to_the_item_even_before_any_answer(tmp_path, reply):
    with serving(refusing(*range(20), reply=reply)) as endpoint:
        rows = request_verdicts(tmp_path, endpoint.url, verdict_requests(20))
    assert {row["fault"] for row in rows} == {"refused"}


def test_a_refused_reminder_leaves_an_unreadable_verdict(tmp_path):
    def reply(body, _before):
        return Reply(text="hm") if len(body["messages"]) == 1 else Reply(400, "roles must be user")

    with serving(reply) as endpoint:
        (row,) = request_verdicts(tmp_path, endpoint.url, verdict_requests(1))
    assert (row["value"], row["fault"], row["asked"], row["reply"]) == (None, "unreadable", 1, "hm")
