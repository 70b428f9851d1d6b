"""Errors that a user can fix. Each message is one line: what is wrong, and how to fix it.

A phase that raises one of these exits with its `exit_code`, and the line reaches the user unchanged.
Any other exception from a phase is a bug in SPIN, and keeps its traceback.
"""

import contextlib
from collections.abc import Callable, Iterator

_LONGEST = 200
"""The most characters of a library's message that are quoted."""


class SpinError(Exception):
    """Base of all errors caused by the user's input or environment."""

    exit_code = 2


class ConfigError(SpinError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(SpinError):
    """A data set cannot be read, or does not have what the run needs."""


class ModelError(SpinError):
    """A model or tokenizer cannot be loaded, or the two do not fit each other."""


class StaleArtifact(SpinError):
    """The content of the output folder was built from other inputs."""


class DamagedArtifact(SpinError):
    """A published file is missing or no longer has the digest in its manifest."""


class LineageBusy(SpinError):
    """Another process holds the lineage's lock."""


class TrainingDiverged(SpinError):
    """A monitor stopped the training: the loss or a gradient is not finite, or the first loss is off."""


class StorageError(SpinError):
    """The disk is full, or a folder cannot be created or written."""


class WorkersLost(SpinError):
    """All workers on other machines have failed, and this machine does not do their work."""


class TryAgain(SpinError):
    """A temporary fault (a port was taken, an engine lost a race): the same call may succeed later."""

    exit_code = 75


class Stopped(SpinError):
    """SIGTERM arrived; finished work is saved, and the same call continues from there."""

    exit_code = 143


class PhaseCrashed(Exception):
    """A phase ended because of a bug, not of a user's mistake. The message ends with the last lines of its log."""


STOPPED = "stopped on request; the same command continues from here"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut where it is long, and the next one if the first ends in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return printable(text)


def count(number: int, unit: str) -> str:
    """`1 row`, `1,200 rows`: a number with its unit, for messages."""
    return f"{number:,} {unit}" + ("" if number == 1 else "s")


def printable(text: str, longest: int = _LONGEST) -> str:
    """Foreign text as a part of one line: without line breaks and control characters, and cut where it is long."""
    text = "".join(character if character.isprintable() else "�" for character in text[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]}…"


@contextlib.contextmanager
def library_errors(make: Callable[[BaseException], SpinError]) -> Iterator[None]:
    """Raise `make(error)` for whatever error a library raises while it reads a user's file.

    A damaged file makes libraries raise errors of any type, so that no narrower list would be complete. Libraries that
    are written in Rust panic with an error that is not even an `Exception`. A `SpinError` passes unchanged.
    """
    try:
        yield
    except SpinError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise make(error) from error
        raise
