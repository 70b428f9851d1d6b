"""Run write transactions of Prefect's SQLite database one at a time, so that the UI gets no 503.

Prefect begins such a transaction without SQLite's lock, reads, and asks for the lock at its first write. If another
transaction has the lock then, SQLite does not wait, since what was read may be out of date: it fails at once with
"database is locked", which the server answers as 503. Prefect's own clients send a request again at that; a browser
does not, and the click is lost.

Here transactions begin with the lock, one at a time in the order in which they asked. They wait for each other in the
server's event loop and not in SQLite, where a waiting transaction would occupy a connection and could not be cancelled.

A transaction within another one of the same task does not wait. One in a task that was started meanwhile waits, so a
transaction that awaits such a task would wait for itself: `MAX_WAIT_SECONDS` ends that.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

MAX_WAIT_SECONDS = 60.0
"""After this time a transaction begins all the same, and SQLite decides."""

_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

_tasks_in_transaction: WeakSet[asyncio.Task[Any]] = WeakSet()
"""Tasks that are in a transaction, in which a further one must not wait for it. Tasks that they start are not."""


class WaitingSqlite(AioSqliteConfiguration):
    """SQLite whose transactions begin with the lock."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 (all do)
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin one. Prefect reads outside of transactions, so that readers do not wait."""
        async with _transaction_lock(), super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


@asynccontextmanager
async def _transaction_lock() -> AsyncIterator[None]:
    """Wait until no other transaction is running."""
    task = asyncio.current_task()
    assert task is not None, "coroutines run in tasks"
    if task in _tasks_in_transaction:
        yield
        return
    lock = _locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    has_lock = False
    with contextlib.suppress(TimeoutError):
        has_lock = await asyncio.wait_for(lock.acquire(), MAX_WAIT_SECONDS)
    _tasks_in_transaction.add(task)
    try:
        yield
    finally:
        _tasks_in_transaction.discard(task)
        if has_lock:
            lock.release()


def wait_for_lock() -> None:
    """Make the server of this process wait for SQLite's lock. Call it before the server is created.

    Other databases stay as they are.
    """
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        MODELS_DEPENDENCIES["database_config"] = WaitingSqlite(connection_url=url)
