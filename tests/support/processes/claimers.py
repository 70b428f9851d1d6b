"""Shards to claim, and processes that race for claims. Light to import, since each process imports it."""

import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any

from spin_core.inference.shards import Shards

SPAWN = multiprocessing.get_context("spawn")


def shards_in(folder: Path, count: int = 3, **settings: Any) -> Shards:
    """Shards whose folders are in `folder`; these are created if they are missing."""
    for name in ("final", "work"):
        (folder / name).mkdir(exist_ok=True)
    return Shards(folder / "final", folder / "work", count, **settings)


def refuse(*_: Any, **__: Any) -> None:
    """`os.link` on a file system without hard links."""
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def claim_all(folder: Path, count: int, ready: Any, taken: Any, end: Any, links: bool) -> None:
    """Claim as many shards as possible, and hold them until `end` is set."""
    if not links:
        os.link = refuse
    ready.wait()
    shards = shards_in(folder, count)
    claimed = []
    while (claim := shards.claim(range(count))) is not None:
        claimed.append(claim.number)
    taken.put(claimed)
    end.wait()


def race(folder: Path, count: int, workers: int, *, links: bool = True) -> list[list[int]]:
    """Let processes that start at the same time claim all shards; returns each one's. They have ended on return."""
    ready, taken, end = SPAWN.Barrier(workers), SPAWN.Queue(), SPAWN.Event()
    processes = [
        SPAWN.Process(target=claim_all, args=(folder, count, ready, taken, end, links), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    numbers = [taken.get(timeout=120) for _ in processes]
    end.set()
    for process in processes:
        process.join(60)
    return numbers
