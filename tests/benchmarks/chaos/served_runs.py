"""`spin up`, killed at random instants while it runs lineages, which continue by themselves or are triggered again."""

import contextlib
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx

from tests.benchmarks.chaos import lineages, processes
from tests.benchmarks.chaos.kinds import Kind
from tests.benchmarks.chaos.results import Kill, Result
from tests.support.servers import served
from tests.support.servers.served import Up, free_port, holder

served.TIMEOUT_SECONDS = 900.0

CONTINUE_SECONDS = 300.0
"""How long a run may take to continue by itself. Heartbeats and retries of a server that is away take minutes."""


class ServedFolder:
    """A folder that `spin up` serves."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.mark = folder / "runs", str(folder)
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.up = Up(
            self.runs,
            free_port(),
            secrets=processes.environment(folder),
            options=("--reruns", "1000"),
        )
        self.started = 0.0

    def start(self) -> None:
        """Start `spin up`, and return when it is up."""
        self.started = time.monotonic()
        self.up.start()

    def is_up(self) -> bool:
        """Whether `spin up` has not ended."""
        return self.up.process.poll() is None

    def end(self) -> list[str]:
        """End `spin up`; returns what is left then."""
        if self.is_up():
            self.up.end()
        left = processes.end_orphans(self.mark)
        return left + lineages.temporary_files(self.temporary)


class ServedRun:
    """One lineage of the folder, run by a deployment."""

    def __init__(self, folder: ServedFolder, name: str, kind: Kind, model_folder: Path) -> None:
        self.folder, self.name, self.root = folder, name, folder.runs / name
        self.parameters = {
            "recipe": "demo",
            "lineage": name,
            "iterations": kind.iterations,
            "overrides": kind.settings(model_folder),
        }
        self.before: set[tuple[int, str]] = set()
        self.run: Any = None

    def trigger(self) -> None:
        """Start a run of the deployment, as the form does."""
        self.run = self.folder.up.trigger("spin", self.parameters)

    def state(self) -> str:
        """The type of the run's state; empty while the server does not answer."""
        up = self.folder.up
        with contextlib.suppress(httpx.TransportError):
            answer = up.client.get(f"http://127.0.0.1:{up.port}/api/flow_runs/{self.run['id']}", auth=up.auth)
            return str(answer.json()["state_type"]) if answer.is_success else ""
        return ""

    def targets(self) -> dict[str, list[int]]:
        """What can be killed now."""
        everything = processes.marked(self.folder.mark)
        flow = holder(self.root) if (self.root / ".lock").exists() else 0
        found = {
            "flow": [flow] if flow in everything else [],
            "phase": [pid for pid, _ in processes.phases(self.folder.runs)],
            "worker": processes.named(everything, "infra.worker"),
            "server": processes.named(everything, "flows.server.app"),
            "spin up": [self.folder.up.process.pid],
            "group": sorted(everything),
        }
        return {name: pids for name, pids in found.items() if pids}

    def has_begun_a_phase(self) -> bool:
        """Whether a phase runs that did not at the last kill."""
        return bool(processes.phases(self.folder.runs) - self.before)


def run_killed(run: ServedRun, reference: Path, result: Result, rng: Random, kills: int, within: float) -> None:
    """Make the lineage with up to so many kills, each up to so many seconds after it is at work again, and judge it."""
    run.trigger()
    for _ in range(kills):
        if _continue(run, result):
            break
        end = time.monotonic() + rng.uniform(0, within)
        while time.monotonic() < end:
            time.sleep(0.1)
        _kill(run, result, rng)
    while not _continue(run, result):
        run.before = processes.phases(run.folder.runs)
    result.different += lineages.differences(run.root, reference)
    result.compared += len(lineages.digests(reference))
    result.leftovers += lineages.leftovers(run.root, reference)


def _kill(run: ServedRun, result: Result, rng: Random) -> None:
    """Kill something."""
    targets = run.targets()
    target, number = rng.choice(sorted(targets)), rng.choice(processes.SIGNALS)
    result.begin(Kill(target, number.name, round(time.monotonic() - run.folder.started, 2)))
    run.before = processes.phases(run.folder.runs)
    processes.send(targets[target], number)


def _continue(run: ServedRun, result: Result) -> bool:
    """Wait until a phase has begun after the last kill, or the run is complete; returns whether it is.

    `spin up` is started again if it has ended. A run that has failed, since its phase was killed, is triggered again.
    """
    end, asked = time.monotonic() + CONTINUE_SECONDS, 0.0
    while True:
        if not run.folder.is_up():
            result.orphans += processes.end_orphans(run.folder.mark)
            run.folder.start()
        if run.has_begun_a_phase():
            result.overcome()
            return False
        if time.monotonic() - asked > 1:
            state, asked = run.state(), time.monotonic()
            if state == "COMPLETED":
                result.overcome()
                return True
            if state in ("FAILED", "CANCELLED") or time.monotonic() > end:
                if time.monotonic() > end:
                    result.orphans.append(f"{result.kills[-1:]}: the run is {state} and did not continue by itself")
                run.trigger()
                end = time.monotonic() + CONTINUE_SECONDS
        time.sleep(0.2)
