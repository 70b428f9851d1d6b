"""Errors that a user can mend. Each message says what is wrong and how to mend it, in one line.

A phase that raises one of these exits with its `exit_code`, and the line reaches the user unchanged.
Anything else that escapes a phase is our own bug, and keeps its traceback.
"""


class SpinError(Exception):
    """Base of all errors that the user's input or surroundings caused."""

    exit_code = 2


class ConfigError(SpinError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(SpinError):
    """A data set cannot be read, or lacks what the game needs."""


class ModelError(SpinError):
    """A model or tokenizer cannot be loaded, or the two do not fit each other."""


class StaleArtifact(SpinError):
    """What stands in the output folder was built from something else."""


class DamagedArtifact(SpinError):
    """A published file is missing or no longer has the digest its manifest names."""


class LineageBusy(SpinError):
    """Another process holds the lineage's lock."""


class TrainingDiverged(SpinError):
    """A monitor stopped the training: the loss or a gradient is not finite, or the first loss is off."""


class StorageError(SpinError):
    """The disk is full or the folder cannot be written."""


class WorkersLost(SpinError):
    """All workers elsewhere that were to do what is not done here have failed for good."""


class TryAgain(SpinError):
    """A passing fault (a port was taken, an engine lost a race): the same call may succeed later."""

    exit_code = 75


class Stopped(SpinError):
    """SIGTERM arrived; what was finished is saved, and the same call goes on from there."""

    exit_code = 143


class PhaseCrashed(Exception):
    """A phase ended in a way that is no user's fault. The message ends with the last lines of its log."""


STOPPED = "stopped on request; the same command continues from here"


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
