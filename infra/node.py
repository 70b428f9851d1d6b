"""One of several nodes of a run: `python -m infra.node RECIPE --lineage NAME [options of spin run]`.

The same command is started on every node, by Slurm's srun or as the pods of a Kubernetes Job. The first node runs
`spin run`. The others follow it: they watch the lineage's folder, which all nodes share, answer prompts in each
generation, and run their ranks of each training that several nodes share. When the first node has succeeded, it
creates a file, and the others end. When it fails, they wait until it is started again, or until Slurm or Kubernetes
ends them.
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
"""How often a node looks at what the first node is doing."""

GRACE_SECONDS = 60.0
"""How long this node's processes of a phase may run on when the first node's process has ended."""

JOBS = ("jobs", "*/jobs", "*/*/jobs")
"""Folders of job files: of an iteration, of a control, of what lineages share."""


@dataclass(frozen=True)
class BegunPhase:
    """A phase that the first node has begun."""

    job_file: Path
    process: str
    """The first node's process. A second attempt at the phase has another one, and so is another `BegunPhase`."""

    def is_current(self) -> bool:
        """Whether the first node is still running this attempt at the phase."""
        return _read(self.job_file.with_suffix(".pid")) == self.process


@click.command(help=(__doc__ or "").split("\n\n", 1)[1], context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.option("--lineage", required=True, help="The lineage's name.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", envvar="SPIN_RUNS", help="A shared folder.")
@click.option("--node", type=int, required=True, envvar=torchrun.NODE_RANK, help="Which node this is, from 0.")
@click.option("--nodes", type=click.IntRange(1), required=True, envvar="SPIN_NODES", help="How many there are.")
@click.option(
    "--rendezvous",
    "--meet",  # this and the next older name are those of 0.2
    "rendezvous",
    required=True,
    envvar=["SPIN_RENDEZVOUS", "SPIN_MEET"],
    help="host:port of the first node.",
)
@click.option(
    "--run-id",
    "--game",
    "run_id",
    required=True,
    envvar=["SPIN_RUN_ID", "SPIN_GAME"],
    help="A new name for each start, the same on all nodes.",
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def main(
    recipe: str, lineage: str, runs: Path, node: int, nodes: int, rendezvous: str, run_id: str, more: tuple[str, ...]
) -> None:
    """Run `spin run` on the first node; follow it on the others."""
    logging.basicConfig(level=logging.INFO, format=f"node {node}: %(message)s", stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    os.environ[torchrun.NODE_RANK] = str(node)
    runs = runs.absolute()
    try:
        root, mark = lineage_folder(runs, lineage), mark_file(runs, run_id)
        if node:
            follow(root, mark)
            return
        speed = ["--set", f"train.speed.nodes={nodes}", "--set", f"train.speed.rendezvous={rendezvous}"]
        lead(["run", recipe, "--lineage", lineage, "--runs", str(runs), *speed, *more], mark)
    except SpinError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


def interrupt(*_: object) -> None:
    """Handle a signal that ends this process, so that it ends its child processes too."""
    sys.exit(128 + signal.SIGTERM)


def mark_file(runs: Path, run_id: str) -> Path:
    """The file that exists when a run has ended successfully."""
    if not run_id.replace("-", "").isalnum():
        raise ConfigError(f"--run-id {run_id!r} is not a name: use letters, digits and hyphens, such as a job's number")
    return runs / ".nodes" / f"{run_id}.ended"


def lead(arguments: Sequence[str], mark: Path) -> None:
    """Run `spin`, and create the mark file if it succeeds; else exit with its status.

    It ends when this process ends, even by kill -9.
    """
    words = [sys.executable, "-m", "flows.command_line", *arguments]
    with runtime_process.guarded(words) as process:
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
    """Join each phase that the first node begins, until the mark file exists."""
    done: set[BegunPhase] = set()
    while not mark.exists():
        for phase in begun_phases(root):
            if phase not in done and (commands := local_commands(phase.job_file)):
                done.add(phase)
                _join(phase, commands, mark)
        time.sleep(LOOK_SECONDS)


def begun_phases(root: Path) -> Iterator[BegunPhase]:
    """The phases of a lineage that the first node is running, or was running when it was killed."""
    for folder in (root, root.parent / SHARED):
        for pattern in JOBS:
            for path in folder.glob(f"{pattern}/*.pid"):
                if process := _read(path):
                    yield BegunPhase(path.with_suffix(".json"), process)


def _read(path: Path) -> str:
    """The text of a file; empty if it does not exist."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""


Command = tuple[list[str], Mapping[str, str]]
"""A command line, and what is added to its environment."""


def local_commands(job_file: Path) -> list[Command]:
    """The commands by which this node joins a phase; none if the first node runs it alone."""
    job = json.loads(job_file.read_text("utf-8"))
    config: dict[str, Any] = job.get("config", {})
    if job["phase"] == "generate":
        each = config["vllm"]["speed"]["tensor_parallel"] if config["engine"] == "vllm" else 1
        environments = devices.environments(max(1, config["speed"]["workers"]), _count_devices(), each)
        return [(launch.command(job_file, "join"), environment) for environment in environments]
    if job["phase"] == "train" and int(os.environ[torchrun.NODE_RANK]) < config["speed"]["nodes"]:
        return [(launch.command(job_file, "train"), {})]
    return []


def _count_devices() -> int:
    """How many GPUs this node may use. torch knows it too, but takes seconds and memory to load."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return len([name for name in given.split(",") if name.strip()])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _join(phase: BegunPhase, commands: Sequence[Command], mark: Path) -> None:
    """Run this node's processes of a phase until they end, or until the first node has clearly stopped running it."""
    log.info("%s: begun on the first node, joining", phase.job_file)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_running(*command)) for command in commands]
        stopped: float | None = None
        while any(process.poll() is None for process in processes):
            now = time.monotonic()
            stopped = None if phase.is_current() else stopped or now
            if mark.exists() or (stopped is not None and now - stopped > GRACE_SECONDS):
                break
            time.sleep(LOOK_SECONDS)
        statuses = [process.poll() for process in processes]
    log.info("%s: ended here%s", phase.job_file, "" if set(statuses) == {0} else f" with status {statuses}")


@contextlib.contextmanager
def _running(words: list[str], more: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process in its own group, which ends when this process ends, even by kill -9, and shares its log."""
    environment = {**runtime_process.DEFAULTS, **os.environ, **more, "SPIN_PARENT": str(os.getpid())}
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, process_group=0, text=True
    )
    with process, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(runtime_process.guard(process.pid))
            yield process
        finally:
            runtime_process.end_group(process)


if __name__ == "__main__":
    main()
