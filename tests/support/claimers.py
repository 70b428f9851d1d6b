"""Processes that race for claims. Light to import, since each of them begins with nothing."""

import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any

from spin_core.inference.shards import Shards

SPAWN = multiprocessing.get_context("spawn")


def refuse(*_: Any, **__: Any) -> None:
    """`os.link` on a file system that has none."""
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def claim_all(folder: Path, count: int, ready: Any, taken: Any, end: Any, links: bool) -> None:
    """Claim as many shards as can be had, and hold them until told to end."""
    if not links:
        os.link = refuse
    ready.wait()
    shards = Shards(folder / "final", folder / "work", count)
    mine = []
    while (claim := shards.claim(range(count))) is not None:
        mine.append(claim.number)
    taken.put(mine)
    end.wait()


def race(folder: Path, count: int, workers: int, *, links: bool = True) -> list[list[int]]:
    """Which shards each of so many processes gets that start at the same time. They are dead when this returns."""
    ready, taken, end = SPAWN.Barrier(workers), SPAWN.Queue(), SPAWN.Event()
    processes = [
        SPAWN.Process(target=claim_all, args=(folder, count, ready, taken, end, links), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    found = [taken.get(timeout=120) for _ in processes]
    end.set()
    for process in processes:
        process.join(60)
    return found
