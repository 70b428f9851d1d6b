"""The judge: a model behind an endpoint that speaks OpenAI's protocol, asked by OpenAI's own client.

Many questions are in flight at a time. A rate limit holds all of them for as long as the endpoint asks; whatever else
may pass is tried again with growing pauses. Each verdict stands in a journal before it counts, so that whatever ends
this process, a restart asks for what is missing and for nothing else.
"""

import contextlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import openai

from spin_core.chat import Message
from spin_core.config import JudgeConfig
from spin_core.errors import ConfigError, SpinError, TryAgain
from spin_core.phase import Progress
from spin_core.verdicts import READERS, REMINDERS, Ask

log = logging.getLogger("spin_core")

T = TypeVar("T")
Row = dict[str, Any]

OFFICIAL = "https://api.openai.com/v1"

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second attempt, and most seconds before a later one. Each pause is twice the one before."""

LONGEST_WAIT = 900.0
"""Most seconds that an endpoint is waited for at its own wish; one that wants more counts as down."""

ASKED = 3
"""How often a judge is asked for a verdict that can be read."""

PASSING = (408, 409, 425, 429)
"""Statuses below 500 that may be gone at the next attempt."""


class Cancelled(Exception):
    """Another thread has found that there is no going on."""


class TooLong(Exception):
    """What is to be judged does not fit into the judge's context."""


class Journal:
    """Rows in a file, one JSON object a line. What is added is there, whatever ends this process afterwards."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # a kill in the middle of a line
            path.write_bytes(whole)
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]

    def add(self, row: Row) -> None:
        """Write one row. Any thread may."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            self.rows.append(row)


class Judge:
    """An endpoint, and how it is asked. Any number of threads may ask."""

    def __init__(self, config: JudgeConfig) -> None:
        """`ConfigError` if there is no key where one is needed, or if the endpoint's address is none."""
        self.config, self.url = config, endpoint(config)
        self.stop = threading.Event()
        """Set it, and whoever would wait or ask again raises `Cancelled`."""
        self.silent_until = 0.0
        key = key_of(config)
        self.client = openai.OpenAI(api_key=key, base_url=self.url, max_retries=0, timeout=config.speed.timeout_seconds)
        self.secret = key

    def meet(self, attempts: int | None = None) -> None:
        """See that the endpoint answers, takes our key and knows the model."""
        try:
            listed: Any = self.persist(self.client.models.list, attempts)
        except (openai.NotFoundError, openai.APIStatusError) as error:
            if error.status_code not in (404, 405, 501):
                raise self.refusal(error) from error
            return  # it keeps no list: the first question will tell
        names = [model.id for model in getattr(listed, "data", None) or ()]
        if names and self.config.model not in names and "*" not in names:
            some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise ConfigError(
                f"the judge at {self.url} has no model {self.config.model!r}: set evaluate.judge.model to one that "
                f"it has ({some})"
            )

    def verdict(self, ask: Ask) -> Row:
        """What the judge says, as it stands in the journal: `value` is None where there is no verdict to be had."""
        conversation = list(ask.messages)
        row: Row = {"key": ask.key, "value": None, "fault": "unreadable", "asked": 0, "reply": ""}
        while row["value"] is None and row["asked"] < ASKED:
            try:
                row |= self.reply(conversation)
            except TooLong:
                # A conversation that has grown too long for another question is one without a verdict.
                return row if row["asked"] else {**row, "fault": "too long"}
            row["asked"] += 1
            row["value"] = READERS[ask.kind](row["reply"])
            said = {"role": "assistant", "content": row["reply"] or "…"}
            conversation = [*ask.messages, said, {"role": "user", "content": REMINDERS[ask.kind]}]
        return row if row["value"] is None else {**row, "fault": ""}

    def reply(self, conversation: Sequence[Message]) -> Row:
        """The judge's reply, and what the endpoint tells about it."""
        config = self.config
        # Newer models of OpenAI's refuse the old name of the limit, and many other servers do not know the new one.
        limit = "max_tokens" if config.base_url else "max_completion_tokens"
        settings = {limit: config.max_tokens, "temperature": config.temperature}
        given: Any = {name: value for name, value in settings.items() if value is not None}

        def call() -> Row:
            create = cast(Any, self.client.chat.completions.create)
            found = create(
                model=config.model, messages=list(conversation), extra_body=dict(config.extra_body) or None, **given
            )
            return row_of(found)

        try:
            return self.persist(call)
        except openai.APIStatusError as error:
            raise self.refusal(error) from error

    def persist(self, call: Callable[[], T], attempts: int | None = None) -> T:
        """What `call` gives, tried again while what is wrong may pass; `TryAgain` if it does not.

        Any other answer of the endpoint's is raised as the client has it.
        """
        attempts = attempts or self.config.speed.retries
        for attempt in range(1, attempts + 1):
            self.rest(self.silent_until - time.monotonic())
            try:
                return call()
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in PASSING:
                    raise
                if error.code == "insufficient_quota":
                    raise self.refusal(error) from error
                problem, asked = self.told(error), retry_after(error.response.headers)
            except openai.APITimeoutError:
                problem, asked = f"no answer within {self.config.speed.timeout_seconds:g} s", None
            except openai.APIConnectionError as error:
                problem, asked = f"{gist(error.__cause__ or error)}", None
            except (openai.APIResponseValidationError, ValueError) as error:
                problem, asked = f"not OpenAI's protocol: {gist(error)}", None
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0)
            if attempt < attempts and (asked or 0) <= LONGEST_WAIT:
                log.info("judge: %s; trying again in %.1f s", problem, asked or pause)
                if asked:
                    self.silent_until = max(self.silent_until, time.monotonic() + asked)
                else:
                    self.rest(pause)
                continue
            raise TryAgain(
                f"the judge at {self.url} gives no answer ({problem}; attempt {attempt} of {attempts}): see that it "
                "runs, and run the same command again; what is answered and judged is kept"
            )
        raise AssertionError

    def rest(self, seconds: float) -> None:
        """Wait. Raises `Cancelled` if there is no going on."""
        if self.stop.wait(max(0.0, seconds)):
            raise Cancelled

    def refusal(self, error: openai.APIStatusError) -> Exception:
        """What a status means that will not pass."""
        variable, said = self.config.api_key_env, self.told(error)
        if error.status_code in (401, 403):
            have = "the key in" if os.environ.get(variable) else "a request without a key:"
            return ConfigError(
                f"the judge at {self.url} refuses {have} {variable} ({error.status_code}): set that variable to a key "
                "that is valid there, or name another in evaluate.judge.api_key_env"
            )
        if error.code == "insufficient_quota":
            return ConfigError(f"the judge's account has no quota left ({said}): top it up; what is judged is kept")
        if error.status_code == 404:
            return ConfigError(
                f"the judge at {self.url} does not know model {self.config.model!r}, or has nothing at that address "
                f"({said}): see evaluate.judge.model, and whether evaluate.judge.base_url should end in /v1"
            )
        if "context" in said.lower() and error.status_code in (400, 413, 422):
            return TooLong(said)
        return ConfigError(
            f"the judge at {self.url} refuses our request ({said}): see evaluate.judge.temperature, max_tokens and "
            "extra_body, which it may not take"
        )

    def told(self, error: openai.APIStatusError) -> str:
        """A status and the endpoint's own words, without the key that some endpoints quote."""
        body: Any = error.body
        words = body.get("message", body) if isinstance(body, Mapping) else body
        text = f"{error.status_code} {gist(words or error.response.reason_phrase)}"
        return text.replace(self.secret, "…")


class Verdicts:
    """The verdicts of a journal, and the way to have those that are missing."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    @cached_property
    def by_key(self) -> dict[str, Row]:
        """Rows of the journal by what was asked."""
        return {row["key"]: row for row in self.journal.rows}

    def missing(self, asks: Sequence[Ask]) -> dict[str, Ask]:
        """What is still to be asked."""
        return {ask.key: ask for ask in asks if ask.key not in self.by_key}

    def ask(self, asks: Sequence[Ask], judge: Judge, progress: Progress) -> None:
        """Have all verdicts. Raises the `SpinError` that ended it; what came before is in the journal."""
        missing = self.missing(asks)
        there = len({ask.key for ask in asks}) - len(missing)
        progress.start(there + len(missing), "verdict")

        def work(ask: Ask) -> None:
            judge.rest(0)
            row = judge.verdict(ask)
            self.journal.add(row)
            self.by_key[ask.key] = row

        _ = self.by_key  # made before there are threads
        failure: BaseException | None = None
        with ThreadPoolExecutor(judge.config.speed.parallel, "judge") as pool:
            open_: set[Future[None]] = {pool.submit(work, ask) for ask in missing.values()}
            while open_:
                finished, open_ = wait(open_, timeout=0.25, return_when=FIRST_COMPLETED)
                errors = [error for one in finished if (error := one.exception()) is not None]
                failure = failure or next((one for one in errors if not isinstance(one, Cancelled)), None)
                if failure or progress.stopping:
                    judge.stop.set()  # those in flight are waited for, and kept
                progress.show(len(self.by_key.keys() & {ask.key for ask in asks}))
        if isinstance(failure, SpinError):
            log.info("%d of %d verdicts are kept", len(self.missing(asks)), len(asks))
        if failure:
            raise failure
        progress.check()


def endpoint(config: JudgeConfig) -> str:
    """The endpoint's address. `ConfigError` if it is none, or brings a password that would stand in records."""
    url = config.base_url or OFFICIAL
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"evaluate.judge.base_url {url!r} is no address: write it as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ConfigError(
            "evaluate.judge.base_url brings a user or a password, which would stand in records: take it out, and give "
            f"the key in the environment variable {config.api_key_env}"
        )
    return url


def key_of(config: JudgeConfig) -> str:
    """The key. `ConfigError` where OpenAI's own endpoint is asked without one; others may want none."""
    key = os.environ.get(config.api_key_env, "")
    if not key and not config.base_url:
        raise ConfigError(
            f"the judge is OpenAI's, and the environment variable {config.api_key_env} holds no key: set it, or set "
            "evaluate.judge.base_url to an endpoint of your own"
        )
    return key or "none"


def row_of(found: Any) -> Row:
    """What of a completion is kept. `ValueError` if it is none: a server may answer anything."""
    try:
        choice, usage = found.choices[0], found.usage
        row = {"reply": choice.message.content or "", "finish_reason": choice.finish_reason, "model": found.model}
        tokens = ("prompt_tokens", "completion_tokens")
        return row | {name: getattr(usage, name) if usage else None for name in tokens}
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"no completion, but {gist(found)}") from error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How many seconds the endpoint asks us to wait; None if it does not say."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def gist(said: object) -> str:
    """Something's text in one line."""
    text = " ".join(str(said).split()) or type(said).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
