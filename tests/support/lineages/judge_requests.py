"""A judge and requests for it, for tests of how verdicts are requested."""

from pathlib import Path
from typing import Any

import pytest

from spin_core.config.evaluate import JudgeConfig
from spin_core.evaluation.mt_bench import retries
from spin_core.evaluation.mt_bench.judge import Judge, Verdicts
from spin_core.evaluation.mt_bench.judge_prompts import SINGLE
from spin_core.evaluation.mt_bench.verdicts import VerdictRequest
from spin_core.runtime.progress import Progress
from spin_core.store.journal import Journal
from tests.support.servers.endpoint import Reply


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Milliseconds between attempts instead of seconds."""
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.02)


def judge_config(url: str = "", **settings) -> JudgeConfig:
    """Settings of a judge at `url` that is tried four times."""
    speed = {"retries": 4, "timeout_seconds": 5, **settings.pop("speed", {})}
    return JudgeConfig(**{"base_url": url, "model": "tiny-judge", "speed": speed, **settings})


def verdict_requests(count: int, kind: str = SINGLE) -> list[VerdictRequest]:
    """Requests for verdicts, each on another question."""
    return [VerdictRequest(kind, [{"role": "user", "content": f"question {number}"}]) for number in range(count)]


def request_verdicts(
    folder: Path, url: str, requests: list[VerdictRequest], progress: Progress | None = None, **settings
) -> list[dict]:
    """The judge's verdicts on these requests, in their order; they are kept in `folder`."""
    verdicts = Verdicts(Journal(folder / ".verdicts.jsonl"))
    verdicts.request_all(requests, Judge(judge_config(url, **settings)), progress or Progress(quiet=True))
    return [verdicts.by_key[request.key] for request in requests]


def replies_in_order(*replies: Reply) -> Any:
    """A judge that sends a conversation these replies one after the other, and then repeats the last one."""
    return lambda _body, before: replies[min(before, len(replies) - 1)]
