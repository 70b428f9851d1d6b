"""A phase for tests of what surrounds phases: it does what its job says, and counts as a real one works."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from spin_core.errors import DataError, TryAgain
from spin_core.jobs import Job
from spin_core.phase import Progress, main
from spin_core.records import ScoredPairs


class ToyJob(Job):
    phase: Literal["toy"] = "toy"
    version: int = 1
    does: str = "count"
    items: int = 3
    seconds: float = 0.0
    """Pause after each item."""


def run(job: ToyJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    print("toy is at work", file=sys.stderr, flush=True)
    DOES[job.does](job)
    progress.start(job.items, "item")
    counted = scratch / "counted.txt"
    done = len(counted.read_text().split()) if counted.exists() else 0
    for item in range(done, job.items):
        with counted.open("a") as file:
            file.write(f"{item + job.seed}\n")
        time.sleep(job.seconds)
        progress.tell(item + 1, loss=1 / (item + 1))
    return {"pairs": "p", "opponent": "o"}


def count(_job: ToyJob) -> None:
    """Does nothing before it counts."""


def wrong(_job: ToyJob) -> None:
    raise DataError("the data are wrong: mend them")


def again(_job: ToyJob) -> None:
    raise TryAgain("port 29500 is taken: the same call may succeed later")


def bug(_job: ToyJob) -> None:
    raise ValueError("a bug of our own")


def killed(_job: ToyJob) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full(_job: ToyJob) -> None:
    Path("/dev/full").write_text("x")


def deaf(_job: ToyJob) -> None:
    """Takes no notice of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def noisy(_job: ToyJob) -> None:
    """Writes to both streams as libraries do: past Python, from a child, without a newline, not in UTF-8."""
    print('{"record": "printed"}')
    os.write(1, b'{"done": 1, "total"')
    subprocess.run(["sh", "-c", "printf 'from a child'"], check=True)
    os.write(2, b"\xff\xfe not text\n" * 20_000)


def family(job: ToyJob) -> None:
    """Has a child that would outlive it."""
    child = subprocess.Popen(["sleep", "600"])
    job.output.with_name("pids").write_text(f"{os.getpid()} {child.pid}\n")


DOES = {does.__name__: does for does in (count, wrong, again, bug, killed, full, deaf, noisy, family)}

if __name__ == "__main__":
    main(ToyJob, ScoredPairs, run)
