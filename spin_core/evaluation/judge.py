"""The judge: a model behind an endpoint that speaks OpenAI's protocol, asked by OpenAI's own client.

Many questions are in flight at a time. A rate limit holds all of them for as long as the endpoint asks, and says that
it is up; whatever else may pass is tried again with growing pauses, so many times. What the endpoint does not take,
while it takes the rest, has no verdict. Each verdict stands in a journal before it counts, so that whatever ends this
process, a restart asks for what is missing and for nothing else.
"""

import contextlib
import itertools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, TypeVar, cast

import openai

from spin_core.config.evaluate import JudgeConfig
from spin_core.data.chat import Message
from spin_core.errors import ConfigError, SpinError, TryAgain
from spin_core.evaluation.verdicts import READERS, REMINDERS, Ask
from spin_core.runtime.progress import Progress
from spin_core.store.journal import Journal, Row

log = logging.getLogger("spin_core")

T = TypeVar("T")

OFFICIAL = "https://api.openai.com/v1"

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second attempt, and most seconds before a later one. Each pause is twice the one before."""

LONGEST_WAIT = 900.0
"""Most seconds that an endpoint is waited for at its own wish; one that wants more counts as down."""

PATIENCE = 3600.0
"""Seconds for which an endpoint may turn everybody away by its rate limit before it counts as down. Limits are counted
by the minute, and some by the hour; what lasts longer is a quota."""

REFUSALS = 10
"""So many requests refused before the first one is answered are a judge that refuses all. A single one may be what
that item holds, and the verdicts of the others take longer than a refusal."""

ASKED = 3
"""How often a judge is asked for a verdict that can be read."""

LIMITED = 429

PASSING = (408, 409, 425, LIMITED)
"""Statuses below 500 that may be gone at the next attempt."""

FILTERED = re.compile(
    r"content[ _-]?(filter|policy|management)|moderation|flagged|usage polic|responsible ?ai", re.IGNORECASE
)
"""In the code or the words of an endpoint that refuses what a request says, and would refuse no other for it."""


class Cancelled(Exception):
    """Another thread has found that there is no going on."""


class TooLong(Exception):
    """What is to be judged does not fit into the judge's context."""


class Refused(Exception):
    """A question that the endpoint does not take. The settings are wrong if it takes none, else this one item is."""

    def __init__(self, said: str, of_all: str | None) -> None:
        """`said` are the endpoint's words, `of_all` what they mean if it takes none; None if the item is why."""
        super().__init__(said)
        self.said, self.of_all = said, of_all


class Judge:
    """An endpoint, and how it is asked. Any number of threads may ask."""

    def __init__(self, config: JudgeConfig) -> None:
        """`ConfigError` if there is no key where one is needed."""
        self.config, self.url = config, config.base_url or OFFICIAL
        self.stop = threading.Event()
        """Set it, and whoever would wait or ask again raises `Cancelled`."""
        self.silent_until = self.spread = 0.0
        """The moment before which nobody asks, and over how many seconds after it those who wait come back."""
        self.heard = 0.0
        """The moment of the endpoint's last answer to anybody."""
        self.answered = False
        """Whether it is known to answer questions, and not only to refuse them."""
        self.refused: list[str] = []
        """What its refusals mean if it answers nothing."""
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
        """What the judge says, as it stands in the journal: `value` is None where there is no verdict to be had.

        Raises `ConfigError` when it is plain that nothing is answered.
        """
        conversation = list(ask.messages)
        row: Row = {"key": ask.key, "value": None, "fault": "unreadable", "asked": 0, "reply": ""}
        while row["value"] is None and row["asked"] < ASKED:
            try:
                row |= self.reply(conversation)
            except (TooLong, Refused) as error:
                if row["asked"]:  # it has grown too long for another question, or into what is not taken
                    return row
                if isinstance(error, TooLong):
                    return {**row, "fault": "too long"}
                self.bear(error)
                return {**row, "fault": "refused", "reply": error.said}
            row["asked"] += 1
            # Of a reply that was cut, the last verdict may be one that the judge quotes or weighs on its way.
            row["value"] = None if row["finish_reason"] == "length" else READERS[ask.kind](row["reply"])
            said = {"role": "assistant", "content": row["reply"] or "…"}
            conversation = [*ask.messages, said, {"role": "user", "content": REMINDERS[ask.kind]}]
        return row if row["value"] is None else {**row, "fault": ""}

    def bear(self, error: Refused) -> None:
        """Take a refusal for the item's own, unless so many came before any answer."""
        if error.of_all is not None:
            self.refused.append(error.of_all)
            if not self.answered and len(self.refused) >= REFUSALS:
                self.stop.set()
                raise ConfigError(error.of_all)

    def reply(self, conversation: Sequence[Message]) -> Row:
        """The judge's reply, and what the endpoint tells about it. `TooLong` or `Refused` may be one item's fault."""
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
            row = self.persist(call)
        except openai.APIStatusError as error:
            raise self.fault(error) or self.refusal(error) from error
        self.answered = True
        return row

    def persist(self, call: Callable[[], T], attempts: int | None = None) -> T:
        """What `call` gives, tried again while what is wrong may pass; `TryAgain` if it does not.

        Being turned away by a rate limit is no attempt, where the endpoint says for how long or answers others
        meanwhile; but whoever gives a number of attempts gets no more. Any other answer of the endpoint's is raised as
        the client has it.
        """
        patience = PATIENCE if attempts is None else 0.0
        attempts, attempt = attempts or self.config.speed.retries, 0
        began = before = time.monotonic()
        for number in itertools.count():
            self.hold()
            limited = False
            try:
                found = call()
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in PASSING:
                    raise
                if error.code == "insufficient_quota":
                    raise self.refusal(error) from error
                problem, asked = self.told(error), retry_after(error.response.headers)
                limited = error.status_code == LIMITED
            except openai.APITimeoutError:
                problem, asked = f"no answer within {self.config.speed.timeout_seconds:g} s", None
            except openai.APIConnectionError as error:
                problem, asked = f"{gist(error.__cause__ or error)}", None
            except (openai.APIResponseValidationError, ValueError) as error:
                problem, asked = f"not OpenAI's protocol: {gist(error)}", None
            else:
                self.heard = time.monotonic()
                return found
            now, others = time.monotonic(), self.heard > before
            before = now
            if patience and limited and (asked or others):
                silent = now - max(began, self.heard)
                down, tried = silent + (asked or 0) > patience, f"no answer to anybody for {silent:.0f} s"
            else:
                attempt += 1
                down, tried = attempt == attempts, f"attempt {attempt} of {attempts}"
            if asked and asked > LONGEST_WAIT:
                down, tried = True, f"we are to wait for {asked:,.0f} s"
            if down:
                raise TryAgain(
                    f"the judge at {self.url} gives no answer ({problem}; {tried}): see that it runs, and run the same "
                    "command again; what is answered and judged is kept"
                )
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(number, 16)) * random.uniform(0.75, 1.0)
            log.info("judge: %s; trying again in %.1f s", problem, asked or pause)
            if asked:
                self.silence(asked)
            else:
                self.rest(pause)
        raise AssertionError

    def silence(self, seconds: float) -> None:
        """Hold everybody for as long as the endpoint asks."""
        seconds = max(seconds, FIRST_PAUSE)
        self.spread = min(LONGEST_PAUSE, seconds / 2)
        self.silent_until = max(self.silent_until, time.monotonic() + seconds)

    def hold(self) -> None:
        """Wait as long as the endpoint has asked for, and a little longer, each caller by another while.

        So those who were held do not come back all at once; and if the first is turned away, the rest are held anew.
        """
        while (seconds := self.silent_until - time.monotonic()) > 0:
            self.rest(seconds + random.uniform(0, self.spread))

    def rest(self, seconds: float) -> None:
        """Wait. Raises `Cancelled` if there is no going on."""
        if self.stop.wait(max(0.0, seconds)):
            raise Cancelled

    def fault(self, error: openai.APIStatusError) -> TooLong | Refused | None:
        """What a status means that may be for the question alone; None if it is for all."""
        said = self.told(error)
        if error.status_code in (400, 403, 422) and FILTERED.search(f"{error.code} {said}"):
            return Refused(said, None)
        if error.status_code not in (400, 413, 422):
            return None
        return TooLong(said) if "context" in said.lower() else Refused(said, str(self.refusal(error)))

    def refusal(self, error: openai.APIStatusError) -> ConfigError:
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
        """Have all verdicts. Raises the `SpinError` that ended it; what came before is in the journal.

        The judge's connections are closed afterwards.
        What the endpoint would not read is not in the journal: it costs nothing to be asked again, and may be mended.
        """
        missing = self.missing(asks)
        there = len({ask.key for ask in asks}) - len(missing)
        log.info("%d of %d verdicts are there already", there, there + len(missing))
        judge.answered = judge.answered or bool(self.by_key)
        progress.start(there + len(missing), "verdict")

        def work(ask: Ask) -> None:
            judge.rest(0)
            row = judge.verdict(ask)
            if row["asked"]:
                self.journal.add(row)
            self.by_key[ask.key] = row

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
        judge.client.close()
        if isinstance(failure, SpinError):
            log.info("%d of %d verdicts are kept", there + len(missing) - len(self.missing(asks)), there + len(missing))
        if failure:
            raise failure
        progress.check()
        if judge.refused and not judge.answered:
            raise ConfigError(judge.refused[0])


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
