"""One of several nodes that play a game together: `python -m infra.node RECIPE --lineage NAME [options of spin run]`.

Started alike on every node, by Slurm's srun or as the pods of a Kubernetes Job. The first node runs `spin run`. The
others follow it: they watch the lineage's folder, which all nodes share, answer prompts in each generation, and take
their ranks in each training that is to run on several nodes. When the first has ended well, it leaves a mark, and they
end; when it fails, they wait for it to be started again, or for Slurm or Kubernetes to end them.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from spin_core.errors import ConfigError, SpinError
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import SHARED
from spin_core.runtime import devices, launch, torchrun
from spin_core.runtime import process as runtime_process

log = logging.getLogger("spin_core")

LOOK_SECONDS = 1.0
"""How often a node looks what the first is doing."""

GRACE_SECONDS = 60.0
"""How long our part in a phase may last when the first node's has ended."""

JOBS = ("jobs", "*/jobs", "*/*/jobs")
"""Where job files lie: of an iteration, of a control, of what lineages share."""


@dataclass(frozen=True)
class Begun:
    """A phase that the first node has begun. `by` is its process, so that another attempt is another one."""

    job_file: Path
    by: str

    def lasts(self) -> bool:
        """The first node is still at it."""
        return read(self.job_file.with_suffix(".pid")) == self.by


@click.command(help=(__doc__ or "").split("\n\n", 1)[1], context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.option("--lineage", required=True, help="The lineage's name.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", envvar="SPIN_RUNS", help="A shared folder.")
@click.option("--node", type=int, required=True, envvar=torchrun.NODE_RANK, help="Which node this is, from 0.")
@click.option("--nodes", type=click.IntRange(1), required=True, envvar="SPIN_NODES", help="How many there are.")
@click.option("--meet", required=True, envvar="SPIN_MEET", help="host:port of the first node.")
@click.option("--game", required=True, envvar="SPIN_GAME", help="What no other start of this kind is called.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def main(
    recipe: str, lineage: str, runs: Path, node: int, nodes: int, meet: str, game: str, more: tuple[str, ...]
) -> None:
    """Lead or follow."""
    logging.basicConfig(level=logging.INFO, format=f"node {node}: %(message)s", stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    os.environ[torchrun.NODE_RANK] = str(node)
    runs = runs.absolute()
    try:
        root, mark = lineage_folder(runs, lineage), mark_of(runs, game)
        if node:
            follow(root, mark)
            return
        speed = ["--set", f"train.speed.nodes={nodes}", "--set", f"train.speed.rendezvous={meet}"]
        lead(["run", recipe, "--lineage", lineage, "--runs", str(runs), *speed, *more], mark)
    except SpinError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


def interrupt(*_: object) -> None:
    """The handler of both signals that end us: what we have started ends on the way out."""
    sys.exit(128 + signal.SIGTERM)


def mark_of(runs: Path, game: str) -> Path:
    """What is there when a game has ended."""
    if not game.replace("-", "").isalnum():
        raise ConfigError(f"--game {game!r} is no name: take letters, digits and hyphens, as a job's number")
    return runs / ".nodes" / f"{game}.ended"


def lead(arguments: Sequence[str], mark: Path) -> None:
    """Run `spin`, and leave the mark if it ends well. Otherwise exit as it does. It ends with us, however we end."""
    words = [sys.executable, "-m", "flows.command_line", *arguments]
    with (
        subprocess.Popen(words, stdin=subprocess.DEVNULL, process_group=0) as process,
        runtime_process.guard(process.pid),
    ):
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()  # a phase saves its work
                process.wait()
    if status:
        sys.exit(status if status > 0 else 128 - status)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def follow(root: Path, mark: Path) -> None:
    """Take our part in each phase that the first node begins, until the mark is there."""
    done: set[Begun] = set()
    while not mark.exists():
        for begun in under_way(root):
            if begun not in done and (parts := parts_in(begun.job_file)):
                done.add(begun)
                take_part(begun, parts, mark)
        time.sleep(LOOK_SECONDS)


def under_way(root: Path) -> Iterator[Begun]:
    """The phases of a lineage that the first node is at, or was at when it was killed."""
    for folder in (root, root.parent / SHARED):
        for pattern in JOBS:
            for path in folder.glob(f"{pattern}/*.pid"):
                if by := read(path):
                    yield Begun(path.with_suffix(".json"), by)


def read(path: Path) -> str:
    """What a file holds; nothing if there is none."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""


Part = tuple[list[str], Mapping[str, str]]
"""A command line, and what its environment has beyond ours."""


def parts_in(job_file: Path) -> list[Part]:
    """The processes by which this node takes part in a phase; none if the first node does it alone."""
    job = json.loads(job_file.read_text("utf-8"))
    config: dict[str, Any] = job.get("config", {})
    if job["phase"] == "generate":
        each = config["vllm"]["speed"]["tensor_parallel"] if config["engine"] == "vllm" else 1
        found = devices.environments(max(1, config["speed"]["workers"]), count_devices(), each)
        return [(launch.command(job_file, "join"), environment) for environment in found]
    if job["phase"] == "train" and int(os.environ[torchrun.NODE_RANK]) < config["speed"]["nodes"]:
        return [(launch.command(job_file, "train"), {})]
    return []


def count_devices() -> int:
    """How many GPUs this node may use. torch would say so too, and take seconds and memory for it."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return len([name for name in given.split(",") if name.strip()])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def take_part(begun: Begun, parts: Sequence[Part], mark: Path) -> None:
    """Run our processes of a phase until they end, or until it is plain that the first node is no longer at it."""
    log.info("%s: begun on the first node, taking part", begun.job_file)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(*part)) for part in parts]
        over: float | None = None
        while any(process.poll() is None for process in processes):
            now = time.monotonic()
            over = None if begun.lasts() else over or now
            if mark.exists() or (over is not None and now - over > GRACE_SECONDS):
                break
            time.sleep(LOOK_SECONDS)
        ends = [process.poll() for process in processes]
    log.info("%s: ended here%s", begun.job_file, "" if set(ends) == {0} else f" with status {ends}")


@contextlib.contextmanager
def running(words: list[str], more: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process in a group of its own, which ends with us, in whichever way we end. Its log is ours."""
    environment = {**runtime_process.DEFAULTS, **os.environ, **more, "SPIN_PARENT": str(os.getpid())}
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, process_group=0, text=True
    )
    with process, runtime_process.guard(process.pid):
        try:
            yield process
        finally:
            runtime_process.end_group(process)


if __name__ == "__main__":
    main()
