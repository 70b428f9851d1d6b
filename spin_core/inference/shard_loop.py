"""The loop of a worker: claim a shard, make it, and repeat until no shard of the job is missing."""

import logging
import time
from collections.abc import Callable
from typing import Any

from spin_core.errors import WorkersLost
from spin_core.inference.shards import POLL_SECONDS, WORKERS_ENDED, Claim, Shards, shard_name

log = logging.getLogger("spin_core")

WAITING_SECONDS = 60.0
"""How often a waiting worker logs that it waits."""

IDLE_SECONDS = 5.0
"""A run that makes no shards itself ends when its workers have ended and no claim was held for this long. A worker that
a person has started may continue, and holds no claim between two shards."""


def make_shards(
    shards: Shards,
    make: Callable[[Claim], None] | None,
    order: Callable[[int], Any] = lambda number: number,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Make shards until all exist. Also returns when their folder is gone, because another worker made the last ones.

    Args:
        shards: The shards of the job.
        make: Makes and publishes the claimed shard. With None, all shards are left to other workers.
        order: The sort key of missing shards; the smallest is claimed first.
        between: Is called between shards, and while this waits.

    Raises:
        WorkersLost: `make` is None, shards are missing, and no other worker is left.
    """
    logged = active = time.monotonic()
    while True:
        between()
        try:
            # Read before the shards are: a worker may have made the last ones before it ended.
            ended = shards.workers_ended() if make is None else ""
            missing = shards.missing()
            if not missing:
                return
            if not ended or shards.holders():
                active = time.monotonic()
            elif time.monotonic() - active > IDLE_SECONDS:
                (shards.folder / WORKERS_ENDED).unlink(missing_ok=True)  # the next attempt has its own workers
                raise WorkersLost(
                    f"no worker is left, and {len(missing)} of {shards.count} shards are missing ({ended}): fix that "
                    "and run the same command again; finished shards are kept"
                )
            claim = shards.claim(sorted(missing, key=order)) if make is not None else None
            if make is not None and claim is not None:
                with claim:
                    make(claim)
                continue
        except FileNotFoundError:
            if shards.folder.exists():
                raise
            return
        if time.monotonic() - logged > WAITING_SECONDS:
            logged = time.monotonic()
            workers = ", ".join(f"{holder['host']} ({shard_name(number)})" for number, holder in shards.holders())
            log.info("waiting for %d shards, in progress: %s", len(missing), workers or "none")
        time.sleep(POLL_SECONDS)
