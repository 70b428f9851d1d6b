"""Prefect's SQLite database without refused clicks: a transaction that may write waits its turn before it begins.

Prefect begins such a transaction without SQLite's lock, reads, and asks for the lock at its first write. If another
transaction has the lock then, SQLite does not wait, since what was read may be out of date: it fails at once with
"database is locked", which the server answers as 503. Prefect's own clients send a request again at that; a browser
does not, and the click is lost.

Here transactions begin with the lock, one at a time in the order in which they asked. They wait for each other in the
server's event loop and not in SQLite, where a waiting transaction would occupy a connection and could not be cancelled.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

MOST_SECONDS = 60.0
"""After this time a transaction begins all the same, and SQLite decides."""

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

_has_turn: ContextVar[bool] = ContextVar("has_turn", default=False)
"""Whether the current task is in a transaction, in which a further one must not wait for it."""


class WaitingSqlite(AioSqliteConfiguration):
    """SQLite whose transactions begin with the lock."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 (all do)
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin one. Prefect reads outside of transactions, so that readers do not wait."""
        async with _turn(), super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


@asynccontextmanager
async def _turn() -> AsyncIterator[None]:
    """Wait until no other transaction is running."""
    if _has_turn.get():
        yield
        return
    lock = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    is_mine = False
    with contextlib.suppress(TimeoutError):
        is_mine = await asyncio.wait_for(lock.acquire(), MOST_SECONDS)
    token: Any = _has_turn.set(True)
    try:
        yield
    finally:
        if is_mine:
            lock.release()
        _has_turn.reset(token)


def wait_for_lock() -> None:
    """Make the server of this process wait for SQLite's lock. Call it before the server is created.

    Other databases stay as they are.
    """
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        MODELS_DEPENDENCIES["database_config"] = WaitingSqlite(connection_url=url)
