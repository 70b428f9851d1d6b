"""What a judge does not take: one item's fault while it takes the rest, the settings' if it takes nothing."""

import pytest
from endpoint import Reply, serving
from judging import ask_all, asks, short_pauses

from spin_core.errors import ConfigError
from spin_core.evaluation.judge import REFUSALS
from spin_core.store.journal import Journal

__all__ = ["short_pauses"]

FILTERED = Reply(400, "The response was filtered by our content management policy", code="content_filter")


def refusing(*numbers, reply=None):
    """An endpoint that refuses the questions of these numbers, sooner than it answers the others."""
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
def test_an_item_that_is_refused_is_a_fault_while_others_are_answered(tmp_path, parallel, status):
    with serving(refusing(0, 5, reply=Reply(status, "we would rather not"))) as endpoint:
        rows = ask_all(tmp_path, endpoint.url, asks(10), speed={"parallel": parallel})
    assert [row["value"] for row in rows] == [None, 7, 7, 7, 7, None, 7, 7, 7, 7]
    for row in (rows[0], rows[5]):
        assert (row["fault"], row["asked"], row["reply"]) == ("refused", 0, f"{status} we would rather not")
    # A refusal costs nothing and may be mended at the endpoint, so it is no part of what is kept.
    assert kept(tmp_path) == [7] * 8


def test_what_alone_is_left_and_refused_does_not_end_the_game_for_ever(tmp_path):
    with serving() as endpoint:
        ask_all(tmp_path, endpoint.url, asks(3)[1:])
        endpoint.reply = refusing(0)
        rows = ask_all(tmp_path, endpoint.url, asks(3))
        assert [row["fault"] for row in rows] == ["refused", "", ""]
        endpoint.reply = refusing()
        rows = ask_all(tmp_path, endpoint.url, asks(3))
    assert [row["value"] for row in rows] == [7] * 3


@pytest.mark.parametrize("count", [1, 3, 80])
def test_a_judge_that_refuses_everything_is_told_in_one_line_and_asked_no_further(tmp_path, count):
    with (
        serving(refusing(*range(count))) as endpoint,
        pytest.raises(ConfigError, match=r"refuses our request .400 we would rather not.*temperature") as refused,
    ):
        ask_all(tmp_path, endpoint.url, asks(count), speed={"parallel": 4})
    # The flow knows errors by their names in `errors`, so it is to be this very class.
    assert type(refused.value) is ConfigError
    assert "\n" not in str(refused.value)
    assert len(endpoint.asked) <= REFUSALS + 4
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "reply",
    [
        FILTERED,
        Reply(400, "Invalid prompt: it was flagged as potentially violating our usage policy", code="invalid_prompt"),
        Reply(403, "the model requires moderation, and your input was flagged"),
    ],
)
def test_a_content_filter_is_the_items_fault_even_before_any_answer(tmp_path, reply):
    with serving(refusing(*range(20), reply=reply)) as endpoint:
        rows = ask_all(tmp_path, endpoint.url, asks(20))
    assert {row["fault"] for row in rows} == {"refused"}


def test_a_reminder_that_is_refused_leaves_a_verdict_that_cannot_be_read(tmp_path):
    def reply(body, _before):
        return Reply(text="hm") if len(body["messages"]) == 1 else Reply(400, "roles must be user")

    with serving(reply) as endpoint:
        (row,) = ask_all(tmp_path, endpoint.url, asks(1))
    assert (row["value"], row["fault"], row["asked"], row["reply"]) == (None, "unreadable", 1, "hm")
