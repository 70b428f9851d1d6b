"""Transactions of the server's SQLite database that meet: none fails, and they come in the order of asking."""

import asyncio
from pathlib import Path

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from flows.server import database
from flows.server.database import WaitingSqlite

Configuration = type[AioSqliteConfiguration]


async def add(config: AioSqliteConfiguration, name: str) -> None:
    """Read, then write a row, in a transaction, as the server does for a submit."""
    async with await config.session(await config.engine()) as session, config.begin_transaction(session):
        await session.execute(text("select count(*) from names"))
        await asyncio.sleep(0.05)
        await session.execute(text("insert into names values (:name)"), {"name": name})


async def names_after(kind: Configuration, file: Path, count: int) -> list[str]:
    """What is in the table after so many transactions at once."""
    config = kind(connection_url=f"sqlite+aiosqlite:///{file}")
    engine = await config.engine()
    try:
        async with engine.begin() as connection:
            await connection.execute(text("create table names (name text)"))
        await asyncio.gather(*(add(config, f"{number:02d}") for number in range(count)))
        async with engine.connect() as connection:
            return [str(row[0]) for row in await connection.execute(text("select name from names order by rowid"))]
    finally:
        await engine.dispose()


def test_transactions_that_meet_wait_and_all_of_them_write(tmp_path):
    """More of them than the pool has connections."""
    names = asyncio.run(names_after(WaitingSqlite, tmp_path / "waiting.db", 40))
    assert names == [f"{number:02d}" for number in range(40)]


def test_prefects_own_transactions_fail_where_they_meet(tmp_path):
    """The reason for all this. If it fails with a newer Prefect, `flows/server/database.py` can go."""
    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(names_after(AioSqliteConfiguration, tmp_path / "prefect.db", 5))


def test_one_that_is_cancelled_while_it_waits_leaves_the_lock_to_the_next(tmp_path):
    async def run() -> list[str]:
        config = WaitingSqlite(connection_url=f"sqlite+aiosqlite:///{tmp_path}/cancelled.db")
        engine = await config.engine()
        async with engine.begin() as connection:
            await connection.execute(text("create table names (name text)"))
        first, second, third = (asyncio.create_task(add(config, name)) for name in ("first", "second", "third"))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.gather(first, third)
        async with engine.connect() as connection:
            rows = [str(row[0]) for row in await connection.execute(text("select name from names order by rowid"))]
        await engine.dispose()
        return rows

    assert asyncio.run(asyncio.wait_for(run(), 30)) == ["first", "third"]


def test_a_transaction_within_a_transaction_does_not_wait_for_itself():
    async def run() -> str:
        async with database._transaction_lock(), database._transaction_lock():
            return "within"

    assert asyncio.run(asyncio.wait_for(run(), 5)) == "within"


def test_a_task_that_is_started_within_a_transaction_waits_for_its_end():
    order: list[str] = []

    async def other() -> None:
        async with database._transaction_lock():
            order.append("other")

    async def run() -> None:
        async with database._transaction_lock():
            task = asyncio.create_task(other())
            await asyncio.sleep(0.02)
            order.append("first")
        await task

    asyncio.run(asyncio.wait_for(run(), 5))
    assert order == ["first", "other"]


def test_a_transaction_that_awaits_a_task_with_another_one_ends(monkeypatch):
    monkeypatch.setattr(database, "MAX_WAIT_SECONDS", 0.05)

    async def other() -> str:
        async with database._transaction_lock():
            return "begun"

    async def run() -> str:
        async with database._transaction_lock():
            return await asyncio.create_task(other())

    assert asyncio.run(asyncio.wait_for(run(), 5)) == "begun"


def test_the_lock_is_not_waited_for_without_an_end(monkeypatch):
    monkeypatch.setattr(database, "MAX_WAIT_SECONDS", 0.05)

    async def hold() -> None:
        async with database._transaction_lock():
            await asyncio.sleep(10)

    async def run() -> str:
        holder = asyncio.create_task(hold())
        await asyncio.sleep(0.01)
        async with database._transaction_lock():
            holder.cancel()
            return "begun"

    assert asyncio.run(asyncio.wait_for(run(), 5)) == "begun"
