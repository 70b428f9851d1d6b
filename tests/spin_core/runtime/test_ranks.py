"""Ranks: what a process on its own is, and what several say to one another."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spin_core.config.train import SpeedConfig
from spin_core.errors import DataError, PhaseCrashed, Stopped
from spin_core.runtime import launch, ranks, torchrun
from spin_core.runtime import torchrun as runtime_torchrun
from spin_core.runtime.launch import run_phase
from spin_core.runtime.ranks import Ranks
from spin_core.store import artifacts
from spin_core.store.records import ScoredPairs
from tests.support.helpers import ROOT
from tests.support.lineages import toy_phase
from tests.support.lineages.toy_phase import ToyConfig, ToyJob
from tests.support.processes.children import runs, wait_for
from tests.support.servers.nodes import ADDRESSES, two_nodes

TOY = Path(toy_phase.__file__)
TWO = ToyConfig(speed=SpeedConfig(ranks=2))


@pytest.fixture(autouse=True)
def toy_command(monkeypatch):
    """Phases are the toy's; all else of the launcher is as it is."""
    monkeypatch.setattr(launch, "command", lambda job_file, _phase: [sys.executable, str(TOY), str(job_file)])


def job(folder: Path, **values) -> ToyJob:
    return ToyJob(output=folder / "toy", **{"config": TWO, **values})


def family(folder: Path) -> list[int]:
    """Both ranks, and the process that started them."""
    files = [folder / "pids-0", folder / "pids-1"]
    wait_for(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files), 60)
    pairs = [[int(pid) for pid in file.read_text().split()] for file in files]
    assert pairs[0][1] == pairs[1][1]
    return [pairs[0][0], pairs[1][0], pairs[0][1]]


def test_a_single_process_is_rank_zero_of_one():
    alone = ranks.join(on_gpu=False)
    assert alone == Ranks(0, 1)
    assert alone.first
    assert (alone.total(3.0), alone.any(True), alone.any(False), alone.failure()) == (3.0, True, False, None)
    assert torch.equal(alone.sum(torch.ones(2)), torch.ones(2))
    assert alone.gather({"a": torch.ones(1)}).keys() == {"a"}
    alone.wait()
    assert not torch.distributed.is_initialized()


def test_the_environment_of_another_programs_ranks_is_ignored(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "theirs"}.items():
        monkeypatch.setenv(name, value)
    assert ranks.current() == Ranks(0, 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "spin-0123")
    assert ranks.current() == Ranks(3, 8)


def test_one_process_without_deepspeed_needs_no_torchrun():
    assert ToyJob(output=Path("toy")).rank_settings is None
    for speed in (SpeedConfig(ranks=2), SpeedConfig(deepspeed="zero1")):
        assert ToyJob(output=Path("toy"), config=ToyConfig(speed=speed)).rank_settings == speed


def test_torchrun_gets_no_option_that_its_version_lacks(tmp_path, monkeypatch):
    from torch.distributed import run

    job = ToyJob(output=tmp_path / "toy")
    words = torchrun.rank_arguments(job, tmp_path / "job.json", SpeedConfig(ranks=2), 0)
    assert run.parse_args(words).nproc_per_node == "2"
    assert run.parse_args(words).log_dir == os.devnull
    assert ("--shutdown-timeout" in words) is torchrun.torchrun_has("--shutdown-timeout")
    monkeypatch.setattr(torchrun, "torchrun_has", lambda _option: False)
    assert "--shutdown-timeout" not in torchrun.rank_arguments(job, tmp_path / "job.json", SpeedConfig(ranks=2), 0)


def test_several_nodes_need_a_rendezvous():
    for rendezvous in ("", "host", "host:", ":29500"):
        with pytest.raises(ValueError, match=r"several nodes need train\.speed\.rendezvous"):
            SpeedConfig(nodes=2, rendezvous=rendezvous)
    assert SpeedConfig(nodes=2, rendezvous="10.0.0.1:29500").nodes == 2


@pytest.mark.slow
def test_only_the_first_of_two_ranks_speaks_and_publishes(tmp_path):
    messages, logged = [], []
    record = run_phase(job(tmp_path, does="crowd"), ScoredPairs, messages.append, logged.append)
    assert record == artifacts.read_record(tmp_path / "toy", ScoredPairs)
    assert [message["done"] for message in messages] == sorted({message["done"] for message in messages})
    assert logged == ["toy is running"]
    assert (tmp_path / "toy" / "counted.txt").read_text().split() == ["0", "1", "2"]
    assert not any(runs(pid) for pid in family(tmp_path))
    assert run_phase(job(tmp_path, does="crowd"), ScoredPairs) == record


@pytest.mark.slow
def test_the_error_of_any_rank_reaches_the_user_as_its_one_line(tmp_path):
    with pytest.raises(DataError, match=r"^the data of one rank are wrong: correct them$"):
        run_phase(job(tmp_path, does="wrong_second"), ScoredPairs)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_reported_as_killed(tmp_path):
    with pytest.raises(PhaseCrashed, match=r"phase toy was killed by SIGKILL \(out of memory\?\)"):
        run_phase(job(tmp_path, does="killed_second"), ScoredPairs)


@pytest.mark.slow
@pytest.mark.parametrize("does", ["crowd", "killed_second"])
def test_ranks_leave_nothing_in_the_folder_for_temporary_files(tmp_path, monkeypatch, does):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with contextlib.suppress(PhaseCrashed):
        run_phase(job(tmp_path, does=does), ScoredPairs)
    left = [path.name for path in (tmp_path / "tmp").iterdir() if not path.name.startswith("torchinductor_")]
    assert left == []


@pytest.mark.slow
def test_sigterm_stops_all_ranks_at_one_step_and_the_same_call_continues(tmp_path):
    def stop(_message):
        os.kill(int((tmp_path / "jobs" / "toy.pid").read_text().split()[0]), signal.SIGTERM)

    slow = job(tmp_path, does="crowd", items=10_000, seconds=0.01)
    with pytest.raises(Stopped, match="continues from here"):
        run_phase(slow, ScoredPairs, stop)
    assert not any(runs(pid) for pid in family(tmp_path))
    done = len((tmp_path / ".toy.partial" / "counted.txt").read_text().split())
    assert 0 < done < 10_000
    assert not (tmp_path / "toy").exists()


PARENT = """
import sys
from pathlib import Path
from spin_core.runtime import launch
from spin_core.store.records import ScoredPairs
from tests.support.lineages import toy_phase
from tests.support.lineages.toy_phase import ToyJob

toy, job_file = sys.argv[1:]
launch.command = lambda job_file, _phase: [sys.executable, toy, str(job_file)]
launch.run_phase(ToyJob.model_validate_json(Path(job_file).read_text()), ScoredPairs)
"""


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["parent", "torchrun", "rank"])
def test_no_rank_outlives_the_one_that_started_it(tmp_path, whom):
    toy_job = job(tmp_path, does="crowd", items=100_000, seconds=0.02)
    (tmp_path / "asked.json").write_text(toy_job.model_dump_json())
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, TOY, tmp_path / "asked.json"], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    first, second, torchrun = family(tmp_path)
    assert all(runs(pid) for pid in (first, second, torchrun))
    os.kill({"parent": parent.pid, "torchrun": torchrun, "rank": second}[whom], signal.SIGKILL)
    parent.wait(timeout=60)
    wait_for(lambda: not any(runs(pid) for pid in (first, second, torchrun)))


LATE = """
import sys
from pathlib import Path
from spin_core.config.train import SpeedConfig
from spin_core.errors import TryAgain
from spin_core.runtime import ranks, torchrun
from tests.support.lineages import toy_phase
from tests.support.lineages.toy_phase import ToyJob

ranks.TIMEOUT = ranks.timedelta(seconds=2)
try:
    torchrun.start_ranks(ToyJob(output=Path("toy")), Path("toy.json"), SpeedConfig(nodes=2, rendezvous="127.0.0.1:1"))
except TryAgain as error:
    print(error)
"""


@pytest.mark.slow
def test_a_node_that_cannot_reach_the_first_one_reports_its_address():
    process = subprocess.run(
        [sys.executable, "-c", LATE], cwd=ROOT, env={**os.environ, runtime_torchrun.NODE_RANK: "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert process.stdout.startswith("the ranks could not be started"), process.stderr
    assert "see that 127.0.0.1:1 can be reached" in process.stdout
    assert process.stdout.count("\n") == 1


def on_two_nodes(folder: Path, **values) -> list[tuple[int, list[dict], str]]:
    """Status, messages and log of the toy, started by hand on each of two nodes."""
    speed = SpeedConfig(nodes=2, rendezvous=f"{ADDRESSES[0]}:29541")
    (folder / "job.json").write_text(job(folder, config=ToyConfig(speed=speed), **values).model_dump_json())
    with two_nodes() as nodes:
        started = []
        for number, node in enumerate(nodes):
            environment = {**os.environ, runtime_torchrun.NODE_RANK: str(number)}
            started.append(
                subprocess.Popen(
                    [*node, sys.executable, TOY, folder / "job.json"],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        ended = []
        for process in started:
            out, err = process.communicate(timeout=100)
            ended.append((process.returncode, [json.loads(line) for line in out.splitlines()], err))
    return ended


@pytest.mark.slow
def test_two_nodes_form_one_group_over_the_network(tmp_path):
    first, second = on_two_nodes(tmp_path, does="crowd")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1] == []
    assert first[1][-1]["record"]["path"] == str(tmp_path / "toy")
    assert f"run SPIN_NODE_RANK=1 {sys.executable}" in first[2]


@pytest.mark.slow
def test_an_error_on_another_node_is_reported_where_the_flow_runs(tmp_path):
    ended = on_two_nodes(tmp_path, does="wrong_second")
    for status, messages, _ in ended:
        assert status == 2
        assert messages[-1] == {"error": "DataError", "message": "the data of one rank are wrong: correct them"}
