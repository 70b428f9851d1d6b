"""How long a phase may take to save its work after SIGTERM."""

import os

from spin_core import errors
from spin_core.store.jobs import Job

GRACE_SECONDS = 30.0
"""How long a phase may take to save its work after SIGTERM, before it is killed, unless `GRACE` says otherwise."""

LONGEST_GRACE_SECONDS = 900.0
"""What no phase exceeds unless `GRACE` says so; whoever ends what has started a phase waits for longer."""

GRACE = "SPIN_GRACE"
"""The seconds that a phase is given, where whoever ends us allows as many."""

DISK_BYTES_A_SECOND = 200e6
"""What a disk writes, at least."""


def grace_of(job: Job) -> float:
    """How long this phase may take to save its work after SIGTERM: a training has to write a whole checkpoint."""
    if (told := told_grace()) is not None:
        return told
    return min(GRACE_SECONDS + job.bytes_to_save() / DISK_BYTES_A_SECOND, LONGEST_GRACE_SECONDS)


def longest_grace() -> float:
    """How long any phase may take to save its work after SIGTERM."""
    return LONGEST_GRACE_SECONDS if (told := told_grace()) is None else told


def told_grace() -> float | None:
    """What the environment says; `ConfigError` if that is no number."""
    told = os.environ.get(GRACE)
    try:
        return float(told) if told else None
    except ValueError as error:
        raise errors.ConfigError(f"{GRACE} is {told!r}: give seconds, or unset it") from error
