"""An endpoint that speaks OpenAI's protocol, called through OpenAI's own client.

A request that failed is sent again while that may help (`retries`). What an endpoint rejects becomes an error that says
whether this one request is the reason or the settings are.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast

import openai

from spin_core.config.evaluate import JudgeConfig
from spin_core.data.chat import Message
from spin_core.errors import ConfigError, TryAgain
from spin_core.evaluation.mt_bench.retries import Failure, RetryPolicy, SharedPause
from spin_core.store.journal import Row

log = logging.getLogger("spin_core")

T = TypeVar("T")

_OFFICIAL_URL = "https://api.openai.com/v1"

_RATE_LIMITED = 429

_TRANSIENT = (408, 409, 425, _RATE_LIMITED)
"""Statuses below 500 that a later attempt may not have."""

_FILTERED = re.compile(
    r"content[ _-]?(filter|policy|management)|moderation|flagged|usage polic|responsible ?ai", re.IGNORECASE
)
"""In the code or the message of an endpoint that rejects a request for its content, and takes others."""


class TooLong(Exception):
    """The request does not fit into the model's context."""


class Refused(Exception):
    """A request that the endpoint rejects: either for its content, or because the settings are wrong."""

    def __init__(self, message: str, settings_error: str | None) -> None:
        """`settings_error` says what is wrong if the endpoint rejects all requests; None if this content is why."""
        super().__init__(message)
        self.message, self.settings_error = message, settings_error


class JudgeEndpoint:
    """The judge's endpoint and the settings of its requests. Any number of threads may use it."""

    def __init__(self, config: JudgeConfig) -> None:
        """Create the client; nothing is sent. Raises `ConfigError` if a key is needed and not set."""
        self.config, self.url = config, config.base_url or _OFFICIAL_URL
        self.pause = SharedPause()
        self._key = _read_key(config)
        self.client = openai.OpenAI(
            api_key=self._key, base_url=self.url, max_retries=0, timeout=config.speed.timeout_seconds
        )

    def check(self, attempts: int | None = None) -> None:
        """Check that the endpoint answers, accepts the key and has the model.

        Args:
            attempts: As of `request`.

        Raises:
            ConfigError: The key or the model is wrong.
            TryAgain: It does not answer.
        """
        try:
            models: Any = self.request(self.client.models.list, attempts)
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405, 501):
                raise self._settings_error(error) from error
            return  # it has no list of models: the first request will show whether it has this one
        names = [model.id for model in getattr(models, "data", None) or ()]
        if names and self.config.model not in names and "*" not in names:
            listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise ConfigError(
                f"the judge at {self.url} has no model {self.config.model!r}: set evaluate.judge.model to one that "
                f"it has ({listed})"
            )

    def complete(self, messages: Sequence[Message]) -> Row:
        """Return the model's reply: `reply`, `finish_reason`, `model`, `prompt_tokens` and `completion_tokens`.

        Raises:
            TooLong: The messages do not fit into the context.
            Refused: The endpoint rejects the request.
            ConfigError: The endpoint rejects the key or the model, or the account has no quota.
            TryAgain: The endpoint does not answer.
        """
        config = self.config
        # Newer models of OpenAI reject the old name of the limit, and many other servers do not know the new one.
        limit = "max_tokens" if config.base_url else "max_completion_tokens"
        optional = {limit: config.max_tokens, "temperature": config.temperature}
        settings: Any = {name: value for name, value in optional.items() if value is not None}

        def send() -> Row:
            create = cast(Any, self.client.chat.completions.create)
            return _reply_of(
                create(
                    model=config.model, messages=list(messages), extra_body=dict(config.extra_body) or None, **settings
                )
            )

        try:
            return self.request(send)
        except openai.APIStatusError as error:
            raise self._request_error(error) or self._settings_error(error) from error

    def request(self, send: Callable[[], T], attempts: int | None = None) -> T:
        """Call `send`, again while its failure may be transient, and return its result.

        Args:
            send: Sends one request.
            attempts: The number of attempts, in which rejections by a rate limit count too. None takes
                `evaluate.judge.speed.retries`, and waits for rate limits in addition (`retries`).

        Raises:
            TryAgain: The endpoint counts as down.
            ConfigError: The account has no quota.
            openai.APIStatusError: Any other answer of the endpoint that would be the same next time.
        """
        most = attempts or self.config.speed.retries
        policy = RetryPolicy(self.pause, most, waits_for_rate_limit=attempts is None)
        while True:
            self.pause.wait()
            try:
                result = send()
            except (openai.APIError, ValueError) as error:
                failure = self._transient_failure(error)
                if failure is None:
                    raise
            else:
                self.pause.last_success = time.monotonic()
                return result
            reason = policy.reason_to_give_up(failure)
            if reason:
                raise TryAgain(
                    f"the judge at {self.url} gives no answer ({failure.problem}; {reason}): check that it runs, and "
                    "run the same command again; what is answered and judged is kept"
                )
            seconds = failure.retry_after or policy.next_pause()
            log.info("judge: %s; trying again in %.1f s", failure.problem, seconds)
            if failure.retry_after:
                self.pause.begin(seconds)
            else:
                self.pause.sleep(seconds)

    def _transient_failure(self, error: openai.APIError | ValueError) -> Failure | None:
        """Return what failed if a later attempt may succeed; None if it would not."""
        if isinstance(error, openai.APIStatusError):
            if error.status_code < 500 and error.status_code not in _TRANSIENT:
                return None
            if error.code == "insufficient_quota":
                raise self._settings_error(error) from error
            retry_after = read_retry_after(error.response.headers)
            return Failure(self._message(error), retry_after, rate_limited=error.status_code == _RATE_LIMITED)
        if isinstance(error, openai.APITimeoutError):
            return Failure(f"no answer within {self.config.speed.timeout_seconds:g} s")
        if isinstance(error, openai.APIConnectionError):
            return Failure(_one_line(error.__cause__ or error))
        if isinstance(error, (openai.APIResponseValidationError, ValueError)):
            return Failure(f"not OpenAI's protocol: {_one_line(error)}")
        return None

    def _request_error(self, error: openai.APIStatusError) -> TooLong | Refused | None:
        """Return what a status means if this one request may be the reason; None if all requests would have it."""
        message = self._message(error)
        if error.status_code in (400, 403, 422) and _FILTERED.search(f"{error.code} {message}"):
            return Refused(message, None)
        if error.status_code not in (400, 413, 422):
            return None
        return TooLong(message) if "context" in message.lower() else Refused(message, str(self._settings_error(error)))

    def _settings_error(self, error: openai.APIStatusError) -> ConfigError:
        """Return what a status means that every request would have."""
        variable, message = self.config.api_key_env, self._message(error)
        if error.status_code in (401, 403):
            rejected = "the key in" if os.environ.get(variable) else "a request without a key:"
            return ConfigError(
                f"the judge at {self.url} refuses {rejected} {variable} ({error.status_code}): set that variable to a "
                "key that is valid there, or name another in evaluate.judge.api_key_env"
            )
        if error.code == "insufficient_quota":
            return ConfigError(f"the judge's account has no quota left ({message}): top it up; what is judged is kept")
        if error.status_code == 404:
            return ConfigError(
                f"the judge at {self.url} does not know model {self.config.model!r}, or has nothing at that address "
                f"({message}): see evaluate.judge.model, and whether evaluate.judge.base_url should end in /v1"
            )
        return ConfigError(
            f"the judge at {self.url} rejects the request ({message}): see evaluate.judge.temperature, max_tokens and "
            "extra_body, which it may not take"
        )

    def _message(self, error: openai.APIStatusError) -> str:
        """Return the status and the endpoint's message, without the key, which some endpoints quote."""
        body: Any = error.body
        message = body.get("message", body) if isinstance(body, Mapping) else body
        text = f"{error.status_code} {_one_line(message or error.response.reason_phrase)}"
        return text.replace(self._key, "…")


def _read_key(config: JudgeConfig) -> str:
    """Return the key from the environment. OpenAI's own endpoint needs one, others may not."""
    key = os.environ.get(config.api_key_env, "")
    if not key and not config.base_url:
        raise ConfigError(
            f"the judge is OpenAI's, and the environment variable {config.api_key_env} holds no key: set it, or set "
            "evaluate.judge.base_url to an endpoint of your own"
        )
    return key or "none"


def _reply_of(completion: Any) -> Row:
    """Return what is kept of a completion. Raises `ValueError` if it is not one: a server may send anything."""
    try:
        choice, usage = completion.choices[0], completion.usage
        row = {"reply": choice.message.content or "", "finish_reason": choice.finish_reason, "model": completion.model}
        counts = ("prompt_tokens", "completion_tokens")
        return row | {name: getattr(usage, name) if usage else None for name in counts}
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"no completion, but {_one_line(completion)}") from error


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds the endpoint asks to wait; None if it does not say.

    It may say so in milliseconds, in seconds, or by a date.
    """
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _one_line(value: object) -> str:
    """Return a value's text in one line of at most 200 characters."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
