"""`spin run`, killed at random instants and started again until its lineage is complete."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import yaml

from spin_core.store import lock
from tests.benchmarks.chaos import lineages, processes
from tests.benchmarks.chaos.kinds import Kind
from tests.benchmarks.chaos.results import Kill, Result
from tests.support.helpers import SUPPORT

SIGNAL_SECONDS = 10.0
"""From when on the command must end with the status of a signal, and not by the signal. Python is loaded before."""

STOP_SECONDS = 300.0
"""How long a command may take to end or to go on after a kill."""


class CommandRun:
    """A lineage made by `spin run`, with a temporary server of its own unless `spin up` serves its runs folder."""

    def __init__(self, folder: Path, kind: Kind, model_folder: Path, runs: Path | None = None) -> None:
        self.folder, self.runs = folder, runs or folder / "runs"
        self.root = self.runs / folder.name
        self.mark = str(folder)
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.settings = folder / "settings.yaml"
        self.settings.write_text(yaml.safe_dump(kind.settings(model_folder)), "utf-8")
        self.arguments = ["run", "demo", "--lineage", folder.name, "--iterations", str(kind.iterations)]
        self.process: subprocess.Popen[bytes]
        self.started = 0.0
        self.before: set[tuple[int, str]] = set()
        """The phases that ran at the last kill."""

    def start(self, *, one_process: bool = False) -> None:
        """Start the command; with `one_process`, one that runs all phases in its own process."""
        spin = [str(SUPPORT / "processes" / "one_process.py")] if one_process else ["-m", "flows.command_line"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment = {**kept, **processes.environment(self.folder)}
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *spin, *self.arguments, "--config", str(self.settings), "--runs", str(self.runs)],
                env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip
        self.started = time.monotonic()

    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self.process.poll() is None

    def targets(self) -> dict[str, list[int]]:
        """What can be killed now."""
        everything = processes.marked(self.mark)
        found = {
            "flow": [self.process.pid],
            "phase": [pid for pid, _ in processes.phases(self.runs)],
            "server": processes.named(everything, "flows.server.child"),
            "group": sorted(everything),
        }
        return {name: pids for name, pids in found.items() if pids}

    def traceback(self) -> str:
        """The end of the output if it has a traceback; else empty."""
        text = (self.folder / "output").read_text("utf-8", "replace")
        return text[-2000:] if "Traceback (most recent call last)" in text else ""

    def finish(self) -> None:
        """Wait for the command's success.

        Raises:
            RuntimeError: It failed though nothing was killed.
        """
        if self.process.wait() != 0:
            raise RuntimeError((self.folder / "output").read_text("utf-8", "replace")[-4000:])


def run_uninterrupted(folder: Path, kind: Kind) -> Path:
    """The root of an uninterrupted lineage. It is made once, also for several of these programs."""
    with lock.locked(folder, wait=True):
        run = CommandRun(folder, kind, folder)
        if not (folder / "complete").exists():
            try:
                run.start(one_process=kind.fits_one_process)
                run.finish()
            finally:
                processes.send(sorted(processes.marked(run.mark)), signal.SIGKILL)  # if this program is stopped
            (folder / "complete").touch()
    return run.root


def run_killed(run: CommandRun, reference: Path, result: Result, rng: Random, kills: int, within: float) -> None:
    """Make the lineage with up to so many kills, and judge it.

    Half of the kills come within so many seconds of a start, so that many hit the start itself. The others come that
    long after a phase has begun.
    """
    run.start()
    for _ in range(kills):
        if rng.random() < 0.5:
            _watch(run, result, STOP_SECONDS, until_phase=True)
        _watch(run, result, rng.uniform(0, within))
        if not run.is_running():
            break
        _kill(run, result, rng)
    _watch(run, result, math.inf)
    if run.process.returncode != 0:
        run.start()
        run.finish()
    result.orphans += processes.end_orphans(run.mark)
    result.different += lineages.differences(run.root, reference)
    result.compared += len(lineages.digests(reference))
    result.leftovers += lineages.leftovers(run.root, reference) + lineages.temporary_files(run.folder / "tmp")


def _watch(run: CommandRun, result: Result, seconds: float, *, until_phase: bool = False) -> None:
    """Wait until the command has ended or the time is up, and note when the last kill was overcome."""
    end = time.monotonic() + seconds
    while run.is_running() and time.monotonic() < end:
        time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        is_at_work = bool(processes.phases(run.runs) - run.before)
        if is_at_work:
            result.overcome()
        if is_at_work and until_phase:
            return
    if run.process.poll() == 0:
        result.overcome()


def _kill(run: CommandRun, result: Result, rng: Random) -> None:
    """Kill something, wait until the command has ended or has gone on, and start it again if it has ended."""
    targets = run.targets()
    target = rng.choice(sorted(targets))
    signals = [*processes.SIGNALS, signal.SIGHUP] if target == "flow" else processes.SIGNALS
    number, after = rng.choice(signals), round(time.monotonic() - run.started, 2)
    result.begin(Kill(target, number.name, after))
    run.before = processes.phases(run.runs)
    processes.send(targets[target], number)
    _watch(run, result, STOP_SECONDS, until_phase=True)
    what = f"{number.name} to {target} after {after} s"
    if run.is_running() and not processes.phases(run.runs) - run.before:
        result.orphans.append(f"{what}: the command neither ended nor went on")
        processes.send([run.process.pid], signal.SIGKILL)
        run.process.wait()
    if not run.is_running() and run.process.returncode != 0:
        if trace := run.traceback():
            result.tracebacks.append(f"{what}: {trace}")
        if target == "flow" and after > SIGNAL_SECONDS and run.process.returncode not in _statuses(number):
            result.tracebacks.append(f"{what}: status {run.process.returncode}")
        result.orphans += [f"{what}: {line}" for line in processes.end_orphans(run.mark)]
        run.start()


def _statuses(number: signal.Signals) -> tuple[int, ...]:
    """The exit statuses of a command that got a signal: a shell's, or the signal itself where it cannot be handled."""
    return (-number,) if number == signal.SIGKILL else (128 + number,)
