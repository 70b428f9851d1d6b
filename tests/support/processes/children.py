"""Start processes that run some Python code, wait for conditions, and see which processes run."""

import subprocess
import sys
import textwrap
import time

from spin_core.runtime.process import is_running as runs

__all__ = ["python", "runs", "wait_for"]


def python(code: str, *arguments: object, **kwargs) -> subprocess.Popen:
    """A process that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], text=True, stdout=subprocess.PIPE, **kwargs
    )


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not become true within {seconds} s"
        time.sleep(0.02)
