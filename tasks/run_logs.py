"""What the log of a run shows of an error: its sentence if a user can fix it, and the whole traceback of a bug.

Prefect logs every error with its traceback, first in the task and again in the flow.
"""

import logging
import weakref

from spin_core.errors import SpinError

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
"""The loggers of the runs' own logs, as Prefect names them."""


class OneSentence(logging.Filter):
    """Reduces the record of a `SpinError` to its sentence, and drops further records of the same error."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: weakref.WeakSet[SpinError] = weakref.WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, SpinError):
            return True
        if error in self.logged:
            return False
        self.logged.add(error)
        record.msg, record.args, record.exc_info = "%s", (error,), None
        return True


def shorten_errors() -> None:
    """From now on log the errors that a user can fix as one sentence, in all runs of this process."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, OneSentence) for each in logger.filters):
            logger.addFilter(_FILTER)


_FILTER = OneSentence()
