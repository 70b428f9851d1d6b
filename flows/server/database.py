"""Prefect's SQLite database without refused clicks: a transaction that may write waits for the lock as it begins.

Prefect begins such a transaction without the lock, reads, and asks for the lock at its first write. If another
transaction has the lock then, SQLite does not wait, since what was read may be out of date: it fails at once with
"database is locked", which the server answers as 503. Prefect's own clients send a request again at that; a browser
does not, and the click is lost. A transaction that takes the lock as it begins waits its turn instead.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class WaitingSqlite(AioSqliteConfiguration):
    """SQLite whose transactions begin with the lock."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 (all do)
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin one. Prefect reads outside of transactions, so that readers do not wait."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def wait_for_lock() -> None:
    """Make the server of this process wait for SQLite's lock. Call it before the server is created.

    Other databases stay as they are.
    """
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        MODELS_DEPENDENCIES["database_config"] = WaitingSqlite(connection_url=url)
