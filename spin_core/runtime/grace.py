"""How long a phase may take to save its work after SIGTERM, before it is killed."""

import os

from spin_core.errors import ConfigError
from spin_core.store.jobs import Job

GRACE_SECONDS = 30.0
"""The time of a phase with little to save."""

LONGEST_GRACE_SECONDS = 900.0
"""The time of a phase with much to save, at most. What ends the parent of a phase must wait longer than this."""

_VARIABLE = "SPIN_GRACE"
"""The environment variable that sets the seconds of every phase, on machines that allow as many."""

DISK_BYTES_A_SECOND = 200e6
"""What a disk writes, at least."""


def grace_of(job: Job) -> float:
    """How long the phase of this job may take to save its work, in seconds: a training writes a whole checkpoint."""
    if (configured := _configured_grace()) is not None:
        return configured
    return min(GRACE_SECONDS + job.bytes_to_save() / DISK_BYTES_A_SECOND, LONGEST_GRACE_SECONDS)


def longest_grace() -> float:
    """How long any phase may take to save its work, in seconds."""
    return LONGEST_GRACE_SECONDS if (configured := _configured_grace()) is None else configured


def _configured_grace() -> float | None:
    """The seconds in the environment variable; None if it is not set. `ConfigError` if it is not a number."""
    value = os.environ.get(_VARIABLE)
    try:
        return float(value) if value else None
    except ValueError as error:
        raise ConfigError(f"{_VARIABLE} is {value!r}: give seconds, or unset it") from error
