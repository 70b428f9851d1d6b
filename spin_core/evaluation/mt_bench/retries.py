"""When a request to the judge that failed is sent again, and how long all threads wait before.

Two kinds of waiting are kept apart. A failure (no connection, a timeout, status 500 …) is one thread's: it tries again
after a pause that doubles, up to a number of attempts. A rate limit concerns all threads: the endpoint says how long it
wants no requests, and all threads wait until then. Being rejected by a rate limit is not a failed attempt, since the
endpoint is up, as long as it says how long to wait or answers other requests meanwhile.
"""

import random
import threading
import time
from typing import NamedTuple

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second attempt, and the longest pause before a later one. Each pause is twice the one before."""

LONGEST_WAIT = 900.0
"""Most seconds to wait at an endpoint's request. An endpoint that asks for more counts as down."""

RATE_LIMIT_TIMEOUT = 3600.0
"""Seconds for which an endpoint may reject all requests by its rate limit before it counts as down. Limits are counted
by the minute, and some by the hour; what lasts longer is a quota."""


class Cancelled(Exception):
    """Another thread has ended the work."""


class Failure(NamedTuple):
    """Why a request failed that may succeed later."""

    problem: str
    """One line, for people."""
    retry_after: float | None = None
    """Seconds for which the endpoint asks to send nothing; None if it does not say."""
    rate_limited: bool = False


class SharedPause:
    """A pause of all threads that use one endpoint."""

    def __init__(self) -> None:
        self.last_success = 0.0
        """When the endpoint last answered any thread, by the monotonic clock."""
        self._ends = self._spread = 0.0
        self._cancelled = threading.Event()

    def begin(self, seconds: float) -> None:
        """Make all threads wait this long before their next request."""
        seconds = max(seconds, FIRST_PAUSE)
        self._spread = min(LONGEST_PAUSE, seconds / 2)
        self._ends = max(self._ends, time.monotonic() + seconds)

    def wait(self) -> None:
        """Wait until the pause is over, and a random time longer.

        So the threads do not all come back at once; and if the first ones are rejected and begin another pause, the
        others, which wake up in it, wait again without having sent anything. Raises `Cancelled`.
        """
        while (seconds := self._ends - time.monotonic()) > 0:
            self.sleep(seconds + random.uniform(0, self._spread))

    def sleep(self, seconds: float) -> None:
        """Wait in this thread alone. Raises `Cancelled`."""
        if self._cancelled.wait(max(0.0, seconds)):
            raise Cancelled

    def cancel(self) -> None:
        """Make every thread that waits, or would wait, raise `Cancelled`."""
        self._cancelled.set()


class RetryPolicy:
    """Decides for one request whether to send it again, and when."""

    def __init__(self, pause: SharedPause, attempts: int, *, waits_for_rate_limit: bool) -> None:
        """Begin the first attempt.

        Args:
            pause: That of all threads.
            attempts: How often the request may fail.
            waits_for_rate_limit: Whether a rejection by the rate limit is not counted as an attempt.
        """
        self._pause, self._attempts = pause, attempts
        self._waits_for_rate_limit = waits_for_rate_limit
        self._started = self._last_failure = time.monotonic()
        self._failed_attempts = self._failures = 0

    def reason_to_give_up(self, failure: Failure) -> str | None:
        """Count a failure, and return why the endpoint now counts as down; None to try again."""
        now = time.monotonic()
        others_answered = self._pause.last_success > self._last_failure
        self._last_failure = now
        self._failures += 1
        retry_after = failure.retry_after or 0.0
        give_up = None
        if self._waits_for_rate_limit and failure.rate_limited and (retry_after or others_answered):
            silent = now - max(self._started, self._pause.last_success)
            if silent + retry_after > RATE_LIMIT_TIMEOUT:
                give_up = f"no request was answered for {silent:.0f} s"
        else:
            self._failed_attempts += 1
            if self._failed_attempts == self._attempts:
                give_up = f"attempt {self._failed_attempts} of {self._attempts}"
        if retry_after > LONGEST_WAIT:
            give_up = f"it asks to wait for {retry_after:,.0f} s"
        return give_up

    def next_pause(self) -> float:
        """Return how many seconds to wait before the next attempt, if the endpoint does not say.

        It is shortened at random, so that threads which failed together do not try again together.
        """
        # The exponent is bounded, since a request may fail for hours.
        doubled = FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16)
        return min(LONGEST_PAUSE, float(doubled)) * random.uniform(0.75, 1.0)
