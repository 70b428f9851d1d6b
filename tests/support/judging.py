"""A judge and questions for it, for tests of how it is asked."""

from pathlib import Path
from typing import Any

import pytest
from endpoint import Reply

from spin_core.config.evaluate import JudgeConfig
from spin_core.evaluation import judge
from spin_core.evaluation.judge import Judge, Verdicts
from spin_core.evaluation.verdicts import SINGLE, Ask
from spin_core.runtime.progress import Progress
from spin_core.store.journal import Journal


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Not the seconds between attempts that an endpoint wants."""
    monkeypatch.setattr(judge, "FIRST_PAUSE", 0.02)


def config(url: str = "", **settings) -> JudgeConfig:
    speed = {"retries": 4, "timeout_seconds": 5, **settings.pop("speed", {})}
    return JudgeConfig(**{"base_url": url, "model": "tiny-judge", "speed": speed, **settings})


def asks(count: int, kind: str = SINGLE) -> list[Ask]:
    return [Ask(kind, [{"role": "user", "content": f"question {number}"}]) for number in range(count)]


def ask_all(folder: Path, url: str, wanted: list[Ask], progress: Progress | None = None, **settings) -> list[dict]:
    verdicts = Verdicts(Journal(folder / ".verdicts.jsonl"))
    verdicts.ask(wanted, Judge(config(url, **settings)), progress or Progress(quiet=True))
    return [verdicts.by_key[ask.key] for ask in wanted]


def in_turn(*replies: Reply) -> Any:
    """These replies to a conversation, one after the other; the last one from then on."""
    return lambda _body, before: replies[min(before, len(replies) - 1)]
