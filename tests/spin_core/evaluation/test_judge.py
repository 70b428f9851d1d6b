"""How a judge is asked, with OpenAI's own client against a server on this machine."""

import logging
import threading
import time

import pytest
from endpoint import Reply, serving
from judging import ask_all, asks, config, in_turn, short_pauses

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError, Stopped, TryAgain
from spin_core.evaluation import judge as judging
from spin_core.evaluation.judge import Judge, retry_after
from spin_core.evaluation.verdicts import PAIR, REMINDERS, SINGLE
from spin_core.runtime.progress import Progress
from spin_core.store import identity
from spin_core.store.journal import Journal

__all__ = ["short_pauses"]


def test_so_many_questions_are_in_flight_at_a_time(tmp_path):
    together = threading.Barrier(8)

    def reply(_body: dict, _before: int) -> Reply:
        together.wait(timeout=60)
        return Reply(seconds=0.2)

    with serving(reply) as endpoint:
        rows = ask_all(tmp_path, endpoint.url, asks(16))
    assert endpoint.most_flying == 8
    assert [row["value"] for row in rows] == [7.0] * 16
    assert rows[0]["reply"] == "It is fair. [[7]]"
    assert (rows[0]["prompt_tokens"], rows[0]["completion_tokens"], rows[0]["asked"]) == (11, 5, 1)


def test_requests_say_what_the_configuration_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key")
    with serving() as endpoint:
        endpoint.key = "secret-key"
        ask_all(tmp_path, endpoint.url, asks(1), api_key_env="MY_KEY", max_tokens=77, extra_body={"seed": 3})
        ask_all(tmp_path, endpoint.url, asks(2)[1:], api_key_env="MY_KEY", max_tokens=None, temperature=None)
    first, second = endpoint.asked
    assert first == {
        "model": "tiny-judge", "messages": asks(1)[0].messages, "max_tokens": 77, "temperature": 0.0, "seed": 3
    }  # fmt: skip
    assert set(second) == {"model", "messages"}
    assert "secret-key" not in (tmp_path / ".verdicts.jsonl").read_text()


def test_a_rate_limit_holds_everyone_for_as_long_as_it_asks(tmp_path):
    came, together = [], threading.Barrier(4)

    def reply(_body, _before):
        came.append(time.monotonic())
        if len(came) > 4:
            return Reply()
        together.wait(timeout=60)
        return Reply(429, "slow down", {"retry-after": "1"})

    with serving(reply) as endpoint:
        rows = ask_all(tmp_path, endpoint.url, asks(30), speed={"parallel": 4})
    assert all(row["value"] == 7 for row in rows)
    # The first four are turned away, and nobody else tries before the second is over.
    assert len(endpoint.asked) == 30 + 4
    assert came[4] - came[3] >= 1


def test_a_wait_is_read_in_all_its_forms():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_an_endpoint_that_wants_hours_counts_as_down(tmp_path):
    with (
        serving(in_turn(Reply(429, "quota of the day", {"retry-after": "7200"}))) as endpoint,
        pytest.raises(TryAgain, match="429 quota of the day"),
    ):
        ask_all(tmp_path, endpoint.url, asks(1))
    assert len(endpoint.asked) == 1


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
def test_what_may_pass_is_tried_again(tmp_path, fault):
    with serving(in_turn(fault, fault, Reply())) as endpoint:
        (row,) = ask_all(tmp_path, endpoint.url, asks(1))
    assert row["value"] == 7
    assert len(endpoint.asked) == 3


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(tmp_path):
    with serving(in_turn(Reply(seconds=1.5), Reply())) as endpoint:
        (row,) = ask_all(tmp_path, endpoint.url, asks(1), speed={"timeout_seconds": 0.4})
    assert row["value"] == 7
    assert len(endpoint.asked) == 2


def test_pauses_grow(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(Judge, "rest", lambda _self, seconds: waited.append(seconds) if seconds > 0 else None)
    monkeypatch.setattr(judging, "FIRST_PAUSE", 1.0)
    with serving(in_turn(Reply(500, "broken"))) as endpoint, pytest.raises(TryAgain, match="attempt 9 of 9"):
        ask_all(tmp_path, endpoint.url, asks(1), speed={"retries": 9})
    assert len(waited) == 8
    for wait, most in zip(waited, (1, 2, 4, 8, 16, 32, 60, 60), strict=True):
        assert 0.75 * most <= wait <= most


def test_a_judge_that_goes_down_loses_nothing(tmp_path):
    stop = threading.Event()

    def reply(body, _before):
        return Reply(500, "gone") if stop.is_set() and "question 9" in str(body) else Reply()

    with serving(reply) as endpoint:
        stop.set()
        with pytest.raises(TryAgain, match=r"gives no answer .500 gone; attempt 4 of 4.*what is answered and judged"):
            ask_all(tmp_path, endpoint.url, asks(10), speed={"parallel": 2})
        stop.clear()
        rows = ask_all(tmp_path, endpoint.url, asks(10), speed={"parallel": 2})
    assert [row["value"] for row in rows] == [7] * 10
    assert len(endpoint.answered) == len(set(endpoint.answered)) == 10


def test_nobody_at_the_address_is_a_judge_that_is_down(tmp_path):
    with serving() as endpoint:
        url = endpoint.url
    with pytest.raises(TryAgain, match=f"the judge at {url} gives no answer .*see that it runs"):
        Judge(config(url, speed={"retries": 2})).meet()
    with pytest.raises(TryAgain):
        ask_all(tmp_path, url, asks(20), speed={"retries": 2})


def test_a_wrong_key_is_told_at_once_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", "sk-wrong-and-secret")
    caplog.set_level(logging.INFO)
    with serving() as endpoint:
        endpoint.key = "right"
        for call in (lambda one: one.meet(), lambda one: one.reply(asks(1)[0].messages)):
            with pytest.raises(ConfigError, match=r"refuses the key in MY_KEY \(401\): set that variable") as refused:
                call(Judge(config(endpoint.url, api_key_env="MY_KEY")))
            assert "sk-wrong" not in str(refused.value)
    assert "sk-wrong" not in caplog.text
    assert endpoint.asked == []


def test_a_key_that_an_endpoint_quotes_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with (
        serving(in_turn(Reply(500, "cannot bill sk-secret"))) as endpoint,
        pytest.raises(TryAgain, match="500 cannot bill …"),
    ):
        ask_all(tmp_path, endpoint.url, asks(1), speed={"retries": 1})


def test_openais_own_endpoint_needs_a_key_and_others_need_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no key"):
        Judge(config())
    with serving() as endpoint:
        Judge(config(endpoint.url)).meet()
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert Judge(config()).url == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "http://",
        "ftp://127.0.0.1/v1",
        "http://me:hush@127.0.0.1/v1",
        "http://127.0.0.1\\@hush/v1",
        "http://127.0.0.1/v1?key=hush",
    ],
)
def test_an_address_that_is_none_or_has_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match=r"base_url must be like http://127\.0\.0\.1:8000/v1") as refused:
        resolve("demo", overrides={"evaluate": {"judge": {"base_url": url}}})
    assert len(str(refused.value).splitlines()) == 1
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1/", "https://judge.example.org"])
def test_an_address_without_secrets_is_taken(url):
    assert config(url).base_url == url


def test_an_unknown_model_is_told_with_those_that_are_there():
    with serving() as endpoint:
        with pytest.raises(ConfigError, match=r"has no model 'gpt-9'.*\(tiny-judge, other\)"):
            Judge(config(endpoint.url, model="gpt-9")).meet()
        Judge(config(endpoint.url, model="other")).meet()
        endpoint.models = None  # it keeps no list, which is no fault
        Judge(config(endpoint.url, model="gpt-9")).meet()
    with serving(in_turn(Reply(404, "no such model", code="model_not_found"))) as endpoint:
        with pytest.raises(ConfigError, match=r"does not know model 'tiny-judge'.*no such model.*base_url"):
            Judge(config(endpoint.url)).reply(asks(1)[0].messages)
        with pytest.raises(ConfigError, match="should end in /v1"):
            Judge(config(endpoint.url.removesuffix("/v1"))).reply(asks(1)[0].messages)


def test_a_request_that_is_refused_names_the_settings(tmp_path):
    with (
        serving(in_turn(Reply(400, "temperature does not support 0"))) as endpoint,
        pytest.raises(ConfigError, match=r"temperature does not support 0.*evaluate.judge.temperature"),
    ):
        ask_all(tmp_path, endpoint.url, asks(1))


def test_an_account_without_quota_is_told_at_once():
    with (
        serving(in_turn(Reply(429, "You exceeded your quota", code="insufficient_quota"))) as endpoint,
        pytest.raises(ConfigError, match="no quota left"),
    ):
        Judge(config(endpoint.url)).reply(asks(1)[0].messages)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(("kind", "good"), [(SINGLE, "[[4]]"), (PAIR, "[[B]]")])
def test_a_reply_without_a_verdict_is_asked_again_with_a_reminder(tmp_path, kind, good):
    def reply(body, _before):
        reminded = body["messages"][-1]["content"] == REMINDERS[kind]
        return Reply(text=good if reminded else "Let me think.")

    with serving(reply) as endpoint:
        (row,) = ask_all(tmp_path, endpoint.url, asks(1, kind))
    assert (row["value"], row["asked"], row["fault"]) == (4.0 if kind == SINGLE else "B", 2, "")
    assert endpoint.asked[1]["messages"][:2] == [
        *asks(1)[0].messages,
        {"role": "assistant", "content": "Let me think."},
    ]


@pytest.mark.parametrize(("kind", "weighed", "good"), [(SINGLE, "[[10]]", "[[4]]"), (PAIR, "[[A]]", "[[B]]")])
def test_a_verdict_in_a_reply_that_was_cut_is_none(tmp_path, kind, weighed, good):
    cut = Reply(text=f"They ask to be told {weighed}, and I find that", finish="length")
    with serving(in_turn(cut)) as endpoint:
        (row,) = ask_all(tmp_path, endpoint.url, asks(1, kind))
    assert (row["value"], row["asked"], row["fault"]) == (None, 3, "unreadable")

    def reply(body, _before):
        return Reply(text=good) if body["messages"][-1]["content"] == REMINDERS[kind] else cut

    with serving(reply) as endpoint:
        (row,) = ask_all(tmp_path, endpoint.url, asks(2, kind)[1:])
    assert (row["value"], row["asked"], row["fault"]) == (4.0 if kind == SINGLE else "B", 2, "")


def test_a_judge_that_never_gives_a_verdict_is_counted_and_not_asked_again(tmp_path):
    with serving(in_turn(Reply(text="ten out of ten"))) as endpoint:
        for _ in range(2):
            (row,) = ask_all(tmp_path, endpoint.url, asks(1))
    assert (row["value"], row["fault"], row["asked"], row["reply"]) == (None, "unreadable", 3, "ten out of ten")
    assert len(endpoint.asked) == 3


def test_what_is_too_long_for_the_judge_has_no_verdict_and_ends_nothing(tmp_path):
    def reply(body, _before):
        long = "question 1" in str(body)
        return Reply(400, "This model's maximum context length is 9 tokens", code="x") if long else Reply()

    with serving(reply) as endpoint:
        rows = ask_all(tmp_path, endpoint.url, asks(3))
    assert [row["value"] for row in rows] == [7, None, 7]
    assert rows[1]["fault"] == "too long"


def test_the_same_question_is_asked_once(tmp_path):
    with serving() as endpoint:
        ask_all(tmp_path, endpoint.url, [*asks(3), *asks(3)])
    assert len(endpoint.asked) == 3


def test_a_request_to_stop_keeps_what_is_in_flight(tmp_path):
    progress = Progress(quiet=True)

    def reply(body, _before):
        if "question 5" in str(body):
            progress.stop()
        return Reply(seconds=0.2)

    with serving(reply) as endpoint:
        with pytest.raises(Stopped):
            ask_all(tmp_path, endpoint.url, asks(40), progress, speed={"parallel": 3})
        kept = len(Journal(tmp_path / ".verdicts.jsonl").rows)
        assert 6 <= kept == len(endpoint.answered) < 40
        ask_all(tmp_path, endpoint.url, asks(40))
    assert len(endpoint.asked) == 40


def test_half_a_line_of_the_journal_is_forgotten(tmp_path):
    path = tmp_path / ".verdicts.jsonl"
    journal = Journal(path)
    journal.add({"key": "a", "reply": "two\nlines ü \u2028"})
    with path.open("ab") as file:
        file.write(b'{"key": "b", "rep')
    again = Journal(path)
    again.add({"key": "c"})
    assert [row["key"] for row in Journal(path).rows] == ["a", "c"]
    assert Journal(path).rows[0] == journal.rows[0]


def test_how_a_judge_is_asked_and_who_pays_are_no_part_of_an_identity():
    judges = [
        config("http://a/v1"),
        config("http://a/v1", api_key_env="OTHER", speed={"parallel": 2, "retries": 1, "timeout_seconds": 1}),
        config("http://a/v1", model="other"),
    ]
    first, second, third = (identity.identity_of({"judge": one.model_dump(mode="json")}) for one in judges)
    assert first == second != third
