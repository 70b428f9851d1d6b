"""A worker that ends as runs need it: `python -m infra.worker [options of prefect worker start]`.

Asked to end, Prefect's worker kills its runs at once, and what a phase has computed since its last checkpoint is gone.
So the runs are asked first, which has their phases save; the worker ends when they have. Meanwhile it is held still, or
it would begin the next run.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from spin_core.runtime import grace, process

PATIENCE_SECONDS = 30.0
"""How long runs may take to say what became of them, once their phases have saved their work."""


def main() -> None:
    """Run Prefect's worker, and end as it does."""
    sys.exit(tend([sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]))


def tend(command: Sequence[str]) -> int:
    """The status of a worker that has ended, by itself or because we were asked to. However we end, it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with subprocess.Popen(command, process_group=0) as worker, process.guard(worker.pid):
        try:
            status = worker.wait()
        except KeyboardInterrupt:
            worker.send_signal(signal.SIGSTOP)
            end_runs(worker.pid)
            worker.send_signal(signal.SIGTERM)
            worker.send_signal(signal.SIGCONT)
            status = worker.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)  # its guard, too
    return status if status >= 0 else 128 - status


def interrupt(*_: object) -> None:
    """The handler of both signals that end us."""
    raise KeyboardInterrupt


def end_runs(worker: int) -> None:
    """Ask the worker's runs to end, and wait for that.

    Between the worker and a run may be a process of Prefect's that heeds no signal itself: it leaves that to the others
    of its group.
    """
    runs = process.children_of(worker)
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(run) == run:
                os.killpg(run, signal.SIGTERM)
            else:
                os.kill(run, signal.SIGTERM)
    deadline = time.monotonic() + grace.longest_grace() + PATIENCE_SECONDS
    while runs & process.children_of(worker) and time.monotonic() < deadline:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
