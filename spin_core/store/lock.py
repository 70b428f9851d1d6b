"""The lock of a lineage's folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from spin_core.errors import LineageBusy
from spin_core.store.files import storage_errors


@contextlib.contextmanager
def locked(lineage: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock. The kernel releases it when this process ends, for whatever reason.

    Raises:
        LineageBusy: Another process holds the lock and `wait` is off. The message names that process.
    """
    with storage_errors(lineage):
        lineage.mkdir(parents=True, exist_ok=True)
        file = (lineage / ".lock").open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LineageBusy(
                f"lineage {lineage.name} is in use by {holder}: wait for it to end, or choose another lineage name"
            ) from error
        with storage_errors(lineage):
            # Without a buffer, which would be written again when the file is closed.
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield
