"""Requests to the judge's endpoint, with OpenAI's own client and a server on this machine."""

import logging

import pytest

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError, TryAgain
from spin_core.evaluation.mt_bench.endpoint import JudgeEndpoint, read_retry_after
from spin_core.store import identity
from tests.support.lineages.judge_requests import (
    judge_config,
    replies_in_order,
    request_verdicts,
    short_pauses,
    verdict_requests,
)
from tests.support.servers.endpoint import Reply, serving

__all__ = ["short_pauses"]


def test_requests_have_the_configured_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key")
    with serving() as endpoint:
        endpoint.key = "secret-key"
        request_verdicts(
            tmp_path, endpoint.url, verdict_requests(1), api_key_env="MY_KEY", max_tokens=77, extra_body={"seed": 3}
        )
        request_verdicts(
            tmp_path, endpoint.url, verdict_requests(2)[1:], api_key_env="MY_KEY", max_tokens=None, temperature=None
        )
    first, second = endpoint.requests
    assert first == {
        "model": "tiny-judge",
        "messages": verdict_requests(1)[0].messages,
        "max_tokens": 77,
        "temperature": 0.0,
        "seed": 3,
    }
    assert set(second) == {"model", "messages"}
    assert "secret-key" not in (tmp_path / ".verdicts.jsonl").read_text()


def test_speed_and_the_key_are_not_part_of_an_identity():
    judges = [
        judge_config("http://a/v1"),
        judge_config("http://a/v1", api_key_env="OTHER", speed={"parallel": 2, "retries": 1, "timeout_seconds": 1}),
        judge_config("http://a/v1", model="other"),
    ]
    first, second, third = (identity.identity_of(judge) for judge in judges)
    assert first == second != third


def test_retry_after_is_read_in_all_its_forms():
    assert read_retry_after({"retry-after": "2.5"}) == 2.5
    assert read_retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert read_retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert read_retry_after({"retry-after": "soon"}) is None
    assert read_retry_after({}) is None


def test_an_address_without_a_server_is_a_judge_that_is_down(tmp_path):
    with serving() as endpoint:
        url = endpoint.url
    with pytest.raises(TryAgain, match=f"the judge at {url} gives no answer .*check that it runs"):
        JudgeEndpoint(judge_config(url, speed={"retries": 2})).check()
    with pytest.raises(TryAgain):
        request_verdicts(tmp_path, url, verdict_requests(20), speed={"retries": 2})


def test_a_wrong_key_is_an_error_at_once_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", "sk-wrong-and-secret")
    caplog.set_level(logging.INFO)
    with serving() as endpoint:
        endpoint.key = "right"
        for call in (
            lambda endpoint: endpoint.check(),
            lambda endpoint: endpoint.complete(verdict_requests(1)[0].messages),
        ):
            with pytest.raises(ConfigError, match=r"refuses the key in MY_KEY \(401\): set that variable") as refused:
                call(JudgeEndpoint(judge_config(endpoint.url, api_key_env="MY_KEY")))
            assert "sk-wrong" not in str(refused.value)
    assert "sk-wrong" not in caplog.text
    assert endpoint.requests == []


def test_a_key_that_an_endpoint_quotes_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with (
        serving(replies_in_order(Reply(500, "cannot bill sk-secret"))) as endpoint,
        pytest.raises(TryAgain, match="500 cannot bill …"),
    ):
        request_verdicts(tmp_path, endpoint.url, verdict_requests(1), speed={"retries": 1})


def test_openais_own_endpoint_needs_a_key_and_others_do_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no key"):
        JudgeEndpoint(judge_config())
    with serving() as endpoint:
        JudgeEndpoint(judge_config(endpoint.url)).check()
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert JudgeEndpoint(judge_config()).url == "https://api.openai.com/v1"


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
def test_an_invalid_address_or_one_with_a_secret_is_rejected_and_not_repeated(url):
    with pytest.raises(ConfigError, match=r"base_url must be like http://127\.0\.0\.1:8000/v1") as refused:
        resolve("demo", overrides={"evaluate": {"judge": {"base_url": url}}})
    assert len(str(refused.value).splitlines()) == 1
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1/", "https://judge.example.org"])
def test_an_address_without_secrets_is_accepted(url):
    assert judge_config(url).base_url == url


def test_an_unknown_model_is_an_error_that_lists_known_ones():
    with serving() as endpoint:
        with pytest.raises(ConfigError, match=r"has no model 'gpt-9'.*\(tiny-judge, other\)"):
            JudgeEndpoint(judge_config(endpoint.url, model="gpt-9")).check()
        JudgeEndpoint(judge_config(endpoint.url, model="other")).check()
        endpoint.models = None  # an endpoint need not have a list
        JudgeEndpoint(judge_config(endpoint.url, model="gpt-9")).check()
    with serving(replies_in_order(Reply(404, "no such model", code="model_not_found"))) as endpoint:
        with pytest.raises(ConfigError, match=r"does not know model 'tiny-judge'.*no such model.*base_url"):
            JudgeEndpoint(judge_config(endpoint.url)).complete(verdict_requests(1)[0].messages)
        with pytest.raises(ConfigError, match="should end in /v1"):
            JudgeEndpoint(judge_config(endpoint.url.removesuffix("/v1"))).complete(verdict_requests(1)[0].messages)


def test_the_error_of_a_rejected_request_names_the_settings(tmp_path):
    with (
        serving(replies_in_order(Reply(400, "temperature does not support 0"))) as endpoint,
        pytest.raises(ConfigError, match=r"temperature does not support 0.*evaluate.judge.temperature"),
    ):
        request_verdicts(tmp_path, endpoint.url, verdict_requests(1))


def test_an_account_without_quota_is_an_error_at_once():
    with (
        serving(replies_in_order(Reply(429, "You exceeded your quota", code="insufficient_quota"))) as endpoint,
        pytest.raises(ConfigError, match="no quota left"),
    ):
        JudgeEndpoint(judge_config(endpoint.url)).complete(verdict_requests(1)[0].messages)
    assert len(endpoint.requests) == 1
