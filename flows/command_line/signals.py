"""Signals that stop a command that computes: Ctrl-C, SIGTERM, and the end of its terminal.

All three raise `KeyboardInterrupt`, so that phases save their work and all that was started ends. The exit status
says which signal it was, as shells do: 128 and its number.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

_received = signal.SIGINT


def stop_on_signals() -> None:
    """Handle SIGTERM and SIGHUP as Ctrl-C."""
    signal.signal(signal.SIGTERM, _stop)
    # Where SIGHUP is ignored, nohup has asked that this process outlives its terminal.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)


def exit_status() -> int:
    """The exit status of a command that a signal has stopped."""
    return 128 + _received


def _stop(number: int, _frame: FrameType | None) -> None:
    """Handler of SIGTERM and SIGHUP."""
    global _received  # noqa: PLW0603 (a handler can return nothing)
    _received = signal.Signals(number)
    if number == signal.SIGHUP:
        # Shell and kernel may both send it, and nothing can be printed any more.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    raise KeyboardInterrupt
