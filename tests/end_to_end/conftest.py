"""A whole small run by the command line in its own process, as a user starts it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.helpers import SUPPORT

TINY = {
    "sft.hidden_size": 8,
    "sft.intermediate_size": 16,
    "sft.layers": 1,
    "sft.train.epochs": 1,
    "prompts.sample": 96,
    "prompts.held_out": 16,
    "generate.shard_size": 24,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.save_every": 3,
    "gate.rule": "always",
    "evaluate.frontier": [],
    "metrics.sinks": [],
    "controls": {
        "sft_continued": True,
        "sft_learning_rate": [1e-3],
        "dpo": {"source": {"path": str(SUPPORT / "preferences.jsonl")}, "learning_rate": 1e-3},
        "temperatures": [0.7],
    },
}
ITERATIONS = 2


@dataclass(frozen=True)
class Player:
    """The `spin` command with its own folder."""

    runs: Path
    api: str = ""
    """A server's, for commands whose own temporary one is not what is tested."""

    def command(self, *arguments: str, one_process: bool = False) -> list[str]:
        """The command line; with `one_process`, one that runs all phases in its own process."""
        spin = [str(SUPPORT / "processes" / "one_process.py")] if one_process else ["-m", "flows.command_line"]
        return [sys.executable, *spin, *arguments, "--runs", str(self.runs)]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        served = {"PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.runs / ".prefect")} if self.api else {}
        return {**kept, "OMP_NUM_THREADS": "1", **served}

    def spin(self, *arguments: str, check: bool = True, one_process: bool = False) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments, one_process=one_process),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=560,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def play(self, lineage: str, *more: str) -> list[str]:
        return self.command(*self.arguments(lineage, *more))

    @staticmethod
    def arguments(lineage: str, *more: str) -> list[str]:
        sets = [f"--set={name}={json.dumps(value)}" for name, value in TINY.items()]
        return ["run", "demo", "--lineage", lineage, "--iterations", str(ITERATIONS), *sets, *more]

    def digests(self, lineage: str) -> dict[str, str]:
        """What every published folder of a lineage holds."""
        root = self.runs / lineage
        manifests = sorted(root.rglob("manifest.json"))
        return {
            str(path.parent.relative_to(root)): json.loads(path.read_text("utf-8"))["record"]["digest"]
            for path in manifests
        }

    def stamps(self, lineage: str) -> dict[str, int]:
        """When every published folder of a lineage was published."""
        root = self.runs / lineage
        return {str(path): path.stat().st_mtime_ns for path in root.rglob("manifest.json")}


@pytest.fixture(scope="session")
def player_in() -> type[Player]:
    """Makes the `spin` command for a folder."""
    return Player


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the lineage `whole`, run from start to end without interruption.

    If several processes share the tests, the first one runs it for all.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    player, finished_file = Player(shared / "whole"), shared / "whole.played"
    with (shared / "whole.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished_file.exists():
            player.runs.mkdir()
            player.spin(*player.arguments("whole"), one_process=True)
            finished_file.touch()
    return player.runs


@pytest.fixture(scope="module")
def finished(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Player:
    """The `spin` command for a copy of that folder, which a file's tests may change."""
    copy = tmp_path_factory.mktemp("finished") / "runs"
    shutil.copytree(whole, copy)
    for name in ("leaderboard.json", "report.html"):  # they name the paths of models
        path = copy / "whole" / name
        path.write_text(path.read_text("utf-8").replace(str(whole), str(copy)), "utf-8")
    return Player(copy)
