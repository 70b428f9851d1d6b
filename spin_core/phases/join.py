"""Join a generation that another process runs: `python -m spin_core.phases.join JOB`.

Works on any machine that sees the job's folders under the same paths, and ends when every shard is published.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from spin_core.errors import SpinError
from spin_core.inference.shard_loop import WAITING_SECONDS
from spin_core.inference.shards import POLL_SECONDS, work_folder
from spin_core.inference.worker import GenerationWorker
from spin_core.inference.workers import WORKER_VARIABLE
from spin_core.preflight import fit
from spin_core.runtime import phase, process
from spin_core.runtime.progress import Progress, claim_stdout
from spin_core.runtime.ranks import Ranks
from spin_core.store import artifacts, files
from spin_core.store.identity import identity_of
from spin_core.store.jobs import GenerateJob
from spin_core.store.records import Artifact

log = logging.getLogger("spin_core")


def main() -> None:
    """Make shards of a generation together with its other workers."""
    process.die_with_parent()
    number = os.environ.get(WORKER_VARIABLE, "")
    logging.basicConfig(
        level=logging.INFO, format=f"worker {number}: %(message)s" if number else "%(message)s", stream=sys.stderr
    )
    progress = Progress(out=claim_stdout())
    signal.signal(signal.SIGTERM, progress.stop)
    try:
        job = phase.read_job(sys.argv[1:], GenerateJob)
        with files.storage_errors(job.output.parent):
            if wait_until_begun(job, progress.check):
                GenerationWorker(job, phase.scratch_of(job.output), progress, batch_size=_batch_size(job)).run()
    except SpinError as error:
        phase.exit_with(error, progress, Ranks())


def _batch_size(job: GenerateJob) -> int | None:
    """How many prompts at a time fit this machine, if the job leaves that to it."""
    chosen_here = job.config.engine != "vllm" and job.config.batch_size == "auto"
    return fit.prompts_that_fit(job) if chosen_here else None


def wait_until_begun(job: GenerateJob, check_stop: Callable[[], None]) -> bool:
    """Wait until the job's own run has begun. Returns False if the job is already finished.

    `check_stop` is called while this waits, and may raise to end it.
    """
    identity, logged = identity_of(job), 0.0
    while not work_folder(job).exists():
        if artifacts.reusable(job.output, identity, Artifact) is not None:
            return False
        if time.monotonic() - logged > WAITING_SECONDS:
            logged = time.monotonic()
            log.info("waiting for the run that begins %s", job.output)
        check_stop()
        time.sleep(POLL_SECONDS)
    return True


if __name__ == "__main__":
    main()
