"""What `spin status` shows of lineages, of runs in other terminals, and of runs that have failed lately."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from flows.server import status
from spin_core.lineage.holders import Holder, holders
from spin_core.lineage.lineage import Lineage
from spin_core.preflight.prepare import prepare_run
from spin_core.runtime import process
from spin_core.store import lock
from tests.support.lineages.small_lineage import build_lineage, demo_config
from tests.support.processes.command_runner import run_spin


def test_a_lineage_has_no_version_before_its_first_one_is_built(tmp_path):
    prepare_run(demo_config(), tmp_path, "early")
    assert "lineages   early  no version yet\n" in run_spin("status", "--runs", tmp_path).stdout


def test_a_lineage_has_its_first_version_once_that_is_trained_and_before_it_is_scored(tmp_path):
    lineage = build_lineage(tmp_path)
    for name in ("base", "iter_00/record.json", "iter_01"):
        path = lineage.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "lineages   tale  θ_0, and iteration 0 has begun\n" in run_spin("status", "--runs", tmp_path).stdout
    shutil.rmtree(tmp_path / ".sft")
    assert "lineages   tale  no version yet\n" in run_spin("status", "--runs", tmp_path).stdout


@contextmanager
def training(lineage: Lineage) -> Iterator[Holder]:
    """This process computes the lineage, with a phase of its own and the files of phases that have ended."""
    jobs = lineage.iteration(1) / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    (jobs / "score.pid").write_text(f"{os.getppid()} {process.start_time(os.getppid())}")
    (jobs / "pairs.pid").write_text("damaged")
    with lock.locked(lineage.root), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as phase:
        (jobs / "train.pid").write_text(f"{phase.pid} {process.start_time(phase.pid)}")
        yield holders(lineage.runs)[0]
        phase.kill()


def test_a_run_in_another_terminal_is_shown_with_its_phase_without_a_server(tmp_path):
    lineage = build_lineage(tmp_path)
    assert holders(tmp_path) == []
    with training(lineage):
        output = run_spin("status", "--runs", tmp_path).stdout
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.search(
        rf"^runs       tale  Running in a terminal \(process {os.getpid()}\) since {since}: iter 01 · train$",
        output,
        re.MULTILINE,
    )


@pytest.mark.parametrize("reported", [True, False])
def test_a_run_in_another_terminal_is_shown_once_whether_or_not_the_server_knows_it(tmp_path, reported):
    """A run that has a temporary server is not known to a server that was started after it."""
    known = status.Run(name="mine", state="Running", started=1, phases=(), waits="", process=os.getpid())
    with training(build_lineage(tmp_path)) as holder:
        (run,) = status._with_holders(status._Answers("", [known] if reported else [], [], []), [holder])
    assert (run.name, run.process, run.since) == ("mine" if reported else "tale", os.getpid(), holder.since)


def test_a_deployments_run_is_the_servers_to_report(tmp_path):
    words = [sys.executable, "-c", "print('', flush=True); input()"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "SPIN_UP": "7"}
    ) as worker, training(build_lineage(tmp_path)) as holder:  # fmt: skip
        assert worker.stdout is not None
        worker.stdout.readline()
        of_worker = holder.model_copy(update={"pid": worker.pid})
        assert status._with_holders(status._Answers("", [], [], []), [of_worker]) == []
        assert [run.name for run in status._with_holders(None, [of_worker])] == ["tale"]
        worker.kill()


MORNING = datetime(2026, 12, 1, 8, tzinfo=UTC)


class Recorded:
    """A server with one failed run, which notes what it is asked."""

    def __init__(self, message):
        self.message = message

    def post(self, path, query):
        self.asked = path, query
        run = {"name": "nightly-mine", "run_count": 1, "parameters": {}, "tags": ["nightly"]}
        ended = {"end_time": "2026-12-01T02:03:00+00:00", "state_name": "Failed", "state": {"message": self.message}}
        return [run | ended]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("Flow run encountered an exception: ConfigError: give a lineage\nmore", "give a lineage"),
        ("lineage mine is busy", "lineage mine is busy"),
        (None, "Failed: its page in the UI has the log"),
    ],
)
def test_a_failure_has_its_name_time_and_sentence(message, sentence):
    server = Recorded(message)
    (failure,) = status.recent_failures(server, MORNING)
    assert (failure.name, failure.ended.hour, failure.sentence) == ("nightly-mine", 2, sentence)
    path, query = server.asked
    assert path == "/flow_runs/filter"
    assert query["flow_runs"]["end_time"] == {"after_": "2026-11-30T08:00:00+00:00"}
