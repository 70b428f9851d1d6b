"""A phase for tests of what surrounds phases: it behaves as its job says, and counts instead of computing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from spin_core.config.base import Execution, Frozen
from spin_core.config.train import SpeedConfig
from spin_core.errors import STOPPED, DataError, Stopped, TryAgain
from spin_core.runtime import ranks
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import Job
from spin_core.store.records import ScoredPairs


class ToyConfig(Frozen):
    speed: Execution[SpeedConfig] = SpeedConfig()


class ToyJob(Job):
    phase: Literal["toy"] = "toy"
    version: int = 1
    config: ToyConfig = ToyConfig()
    does: str = "count"
    items: int = 3
    seconds: float = 0.0
    """Pause after each item."""

    @property
    def rank_settings(self) -> SpeedConfig | None:
        return self.config.speed if self.config.speed.distributed else None

    @property
    def devices(self) -> None:
        return None


def run(job: ToyJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    local = ranks.current()
    if local.first:
        print("toy is running", file=sys.stderr, flush=True)
    DOES[job.does](job)
    progress.start(job.items, "item")
    counted = scratch / "counted.txt"
    done = len(counted.read_text().split()) if counted.exists() else 0
    for item in range(int(local.total(done if local.first else 0)), job.items):
        if local.first:
            with counted.open("a") as file:
                file.write(f"{item + job.seed}\n")
        time.sleep(job.seconds)
        progress.show(item + 1, loss=1 / (item + 1))
        if local.any(progress.stopping):
            raise Stopped(STOPPED)
    return {"pairs": "p", "opponent": "o"}


def count(_job: ToyJob) -> None:
    """Does nothing before it counts."""


def wrong(_job: ToyJob) -> None:
    raise DataError("the data are wrong: correct them")


def again(_job: ToyJob) -> None:
    raise TryAgain("port 29500 is taken: the same call may succeed later")


def bug(_job: ToyJob) -> None:
    raise ValueError("a bug of our own")


def starved(_job: ToyJob) -> None:
    """Raise the error that torch raises when a GPU is out of memory."""
    raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")


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


def crowd(job: ToyJob) -> None:
    """Each rank writes its process id, and that of the process that started it."""
    rank = ranks.current().rank
    job.output.with_name(f"pids-{rank}").write_text(f"{os.getpid()} {os.getppid()}\n")


def wrong_second(_job: ToyJob) -> None:
    """The second rank has an error, while the others wait for it."""
    if ranks.current().rank == 1:
        raise DataError("the data of one rank are wrong: correct them")
    ranks.current().wait()


def killed_second(_job: ToyJob) -> None:
    """The second rank is killed, as by a machine that is out of memory."""
    if ranks.current().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.current().wait()


DOES = {
    does.__name__: does
    for does in (
        count,
        wrong,
        again,
        bug,
        starved,
        killed,
        full,
        deaf,
        noisy,
        family,
        crowd,
        wrong_second,
        killed_second,
    )
}

if __name__ == "__main__":
    main(ToyJob, ScoredPairs, run)
