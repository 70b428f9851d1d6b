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
from spin_core.inference import workers
from spin_core.inference.shards import POLL_SECONDS, WAITING_SECONDS, work_folder
from spin_core.runtime import phase, process
from spin_core.runtime import progress as runtime_progress
from spin_core.runtime.ranks import Ranks
from spin_core.store import artifacts, files
from spin_core.store.identity import identity_of
from spin_core.store.jobs import Job
from spin_core.store.records import Artifact

log = logging.getLogger("spin_core")


def has_begun(job: Job, tick: Callable[[], None]) -> bool:
    """Wait until the run that asks for this job has begun it. False if it is done already."""
    identity, told = identity_of(job), 0.0
    while not work_folder(job).exists():
        if artifacts.reusable(job.output, identity, Artifact) is not None:
            return False
        if time.monotonic() - told > WAITING_SECONDS:
            told = time.monotonic()
            log.info("waiting for the run that begins %s", job.output)
        tick()
        time.sleep(POLL_SECONDS)
    return True


def main() -> None:
    """Answer what is left of a generation, beside others."""
    process.die_with_parent()
    label = os.environ.get(workers.WORKER, "")
    logging.basicConfig(
        level=logging.INFO, format=f"worker {label}: %(message)s" if label else "%(message)s", stream=sys.stderr
    )
    progress = runtime_progress.Progress(out=runtime_progress.claim_stdout())
    signal.signal(signal.SIGTERM, progress.stop)
    try:
        # Here alone, since generation is built on this module.
        from spin_core.inference.worker import Generation
        from spin_core.store.jobs import GenerateJob

        job = phase.read_job(sys.argv[1:], GenerateJob)
        with files.storage_errors(job.output.parent):
            if has_begun(job, progress.check):
                Generation(job, phase.scratch_of(job.output), progress).work()
    except SpinError as error:
        phase.end(error, progress, Ranks())


if __name__ == "__main__":
    main()
