"""A worker that lets runs save their work before it ends: `python -m infra.worker [options of prefect worker start]`.

At SIGTERM, Prefect's worker kills its runs at once, and what a phase has computed since its last checkpoint is lost. So
this process sends SIGTERM to the runs first, which makes their phases save, and ends the worker when they have ended.
Meanwhile the worker is paused (SIGSTOP), or it would start the next run.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.server import local
from spin_core.runtime import grace, process

REPORT_SECONDS = 30.0
"""How long runs may take to report their final state, once their phases have saved their work."""


def main() -> None:
    """Run Prefect's worker, and exit with its status."""
    find_server()
    sys.exit(run_worker([sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]))


def find_server() -> None:
    """Use the `spin up` of the runs folder on this machine, if there is one, with the password from its file.

    A server that the environment names keeps the environment's password.
    """
    runs = Path(os.environ.get("SPIN_RUNS", "") or "runs").absolute()
    if "SPIN_UP" not in os.environ and local.serving(runs):
        local.prepare(runs, quiet=False)


def run_worker(command: Sequence[str]) -> int:
    """Run a worker until it ends, or until this process gets SIGINT or SIGTERM; returns its exit status.

    The worker ends when this process ends, even by kill -9.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with process.guarded(command) as worker:
        try:
            status = worker.wait()
        except KeyboardInterrupt:
            worker.send_signal(signal.SIGSTOP)
            _end_runs(worker.pid)
            worker.send_signal(signal.SIGTERM)
            worker.send_signal(signal.SIGCONT)
            status = worker.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)  # its guard, too
    return status if status >= 0 else 128 - status


def _interrupt(*_: object) -> None:
    """Handler of the signals that end this process."""
    raise KeyboardInterrupt


def _end_runs(worker: int) -> None:
    """Send SIGTERM to the worker's runs, and wait until they have ended.

    Between the worker and a run there may be a process of Prefect's that ignores signals, and leaves them to the others
    of its group. So the signal goes to the whole group where the child leads one.
    """
    runs = process.children_of(worker)
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(run) == run:
                os.killpg(run, signal.SIGTERM)
            else:
                os.kill(run, signal.SIGTERM)
    deadline = time.monotonic() + grace.longest_grace() + REPORT_SECONDS
    while runs & process.children_of(worker) and time.monotonic() < deadline:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
