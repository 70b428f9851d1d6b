"""A node of a run on several nodes: which phases it joins, how often, and when it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra import node
from spin_core.errors import ConfigError
from spin_core.runtime import launch, torchrun
from spin_core.runtime import process as runtime_process
from tests.support.servers.stack import ROOT

VLLM = {"python": sys.executable, "speed": {"tensor_parallel": 2}}


@pytest.fixture(autouse=True)
def second(monkeypatch):
    """This process is the second node, looks often, and has no GPU."""
    monkeypatch.setenv(torchrun.NODE_RANK, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(node, "LOOK_SECONDS", 0.02)


def job_file(root: Path, where: str, phase: str, config: dict) -> Path:
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"phase": phase, "config": config}))
    return path


def train(root: Path, nodes: int = 2, where: str = "iter_00/jobs/train.json") -> Path:
    return job_file(root, where, "train", {"speed": {"nodes": nodes}})


def begin(path: Path, by: str) -> None:
    """Begin a phase, as the first node does."""
    path.with_suffix(".pid").write_text(by)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true within 60 s"
        time.sleep(0.02)


def test_a_node_joins_only_trainings_that_are_configured_for_several_nodes(tmp_path, monkeypatch):
    assert node.local_commands(train(tmp_path, nodes=1)) == []
    ((line, environment),) = node.local_commands(train(tmp_path, nodes=2))
    assert (line[1:], environment) == (["-m", "spin_core.phases.train", str(tmp_path / "iter_00/jobs/train.json")], {})
    monkeypatch.setenv(torchrun.NODE_RANK, "2")
    assert node.local_commands(train(tmp_path, nodes=2)) == []
    assert node.local_commands(job_file(tmp_path, "jobs/pairs.json", "pairs", {})) == []
    score = tmp_path / "score.json"
    score.write_text(json.dumps({"phase": "score"}))
    assert node.local_commands(score) == []


def test_a_node_answers_with_as_many_workers_as_the_first_each_on_gpus_of_its_own(tmp_path, monkeypatch):
    config = {"engine": "vllm", "vllm": VLLM, "speed": {"workers": 2}}
    path = job_file(tmp_path, "iter_00/jobs/generations.json", "generate", config)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    parts = node.local_commands(path)
    assert [environment for _, environment in parts] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert {tuple(line[1:]) for line, _ in parts} == {("-m", "spin_core.phases.join", str(path))}
    job_file(tmp_path, "iter_00/jobs/generations.json", "generate", config | {"speed": {"workers": 0}})
    assert len(node.local_commands(path)) == 1, "a first node that only waits leaves the work to the others"


def test_phases_are_found_in_all_folders_in_which_the_first_node_may_start_them(tmp_path):
    root = tmp_path / "mine"
    places = ["iter_00/jobs/train.json", "controls/dpo/jobs/train.json", "../.sft/0a1b/jobs/train.json"]
    for where in places:
        begin(train(root, where=where), "7 1")
    train(root, where="iter_01/jobs/train.json")
    begin(train(root, where="iter_02/jobs/train.json"), "")
    assert {phase.job_file.resolve() for phase in node.begun_phases(root)} == {
        (root / where).resolve() for where in places
    }


def following(root: Path, mark: Path, monkeypatch, does: str) -> threading.Thread:
    """Follow in a thread. To join a phase, it runs the Python code `does` with the job file as its argument."""
    monkeypatch.setattr(launch, "command", lambda path, _: [sys.executable, "-c", does, str(path)])
    thread = threading.Thread(target=node.follow, args=(root, mark))
    thread.start()
    return thread


TELL = "import os, sys; open(sys.argv[1] + '.log', 'a').write(os.environ['SPIN_NODE_RANK'])"


def test_each_attempt_is_joined_once_and_the_mark_ends_it(tmp_path, monkeypatch):
    path, mark = train(tmp_path), tmp_path / "ended"
    thread = following(tmp_path, mark, monkeypatch, TELL)
    log = path.with_name("train.json.log")
    for attempt in (1, 2):
        begin(path, f"{attempt} 1")
        wait_for(lambda attempt=attempt: log.exists() and len(log.read_text()) == attempt)
        time.sleep(0.2)  # in which it might be joined again
    mark.touch()
    thread.join(60)
    assert not thread.is_alive()
    assert log.read_text() == "11"


def test_a_phase_that_the_first_node_gave_up_is_given_up_here(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "GRACE_SECONDS", 0.2)
    path, mark = train(tmp_path), tmp_path / "ended"
    begin(path, "1 1")
    thread = following(tmp_path, mark, monkeypatch, f"{TELL}; import time; time.sleep(600)")
    log = path.with_name("train.json.log")
    wait_for(log.exists)
    assert str(path) in children_commands()
    path.with_suffix(".pid").unlink()
    wait_for(lambda: str(path) not in children_commands())
    mark.touch()
    thread.join(60)
    assert not thread.is_alive()


def children_commands() -> str:
    """The command lines of this process's children."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [pid for file in children for pid in file.read_text().split()]
    lines = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    return " ".join(line.read_text() for line in lines if line.exists())


def test_the_first_node_leaves_the_mark_if_the_run_succeeded_and_exits_with_its_status_otherwise(tmp_path):
    mark = node.mark_file(tmp_path, "slurm-7-0")
    with pytest.raises(SystemExit) as ended:
        node.lead(["run", "no-such-recipe", "--runs", str(tmp_path)], mark)
    assert ended.value.code == 2
    assert not mark.exists()
    node.lead(["recipes"], mark)
    assert mark == tmp_path / ".nodes" / "slurm-7-0.ended"
    assert mark.exists()


@pytest.mark.parametrize(
    "names",
    [
        {"SPIN_RUN_ID": "mine-1", "SPIN_RENDEZVOUS": "first:29500"},
        {"SPIN_GAME": "mine-1", "SPIN_MEET": "first:29500"},
    ],
    ids=["names", "earlier-names"],
)
def test_a_node_reads_its_run_id_and_rendezvous_from_the_environment(names, tmp_path, monkeypatch):
    led = []
    monkeypatch.setattr(node, "lead", lambda line, mark: led.append((line, mark)))
    environment = {**names, "SPIN_NODES": "2", "SPIN_NODE_RANK": "0", "SPIN_RUNS": str(tmp_path)}
    done = CliRunner().invoke(node.main, ["demo", "--lineage", "mine"], env=environment)
    assert done.exit_code == 0, done.output
    ((line, mark),) = led
    assert "train.speed.rendezvous=first:29500" in line
    assert mark == tmp_path / ".nodes" / "mine-1.ended"


@pytest.mark.parametrize("name", ["", "../up", "a b", "-"])
def test_a_run_id_that_is_not_a_file_name_is_rejected(tmp_path, name):
    with pytest.raises(ConfigError, match="is not a name: use letters, digits and hyphens"):
        node.mark_file(tmp_path, name)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_spin_run_ends_with_the_process_of_the_first_node(number, tmp_path):
    """A `spin run` that outlived it would hold the lineage while a new one waits."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; sleep 600\n")
    program.chmod(0o700)
    code = (
        "import pathlib, signal, sys; from infra import node; sys.executable = sys.argv[1]; "
        "signal.signal(signal.SIGTERM, node.interrupt); node.lead([], pathlib.Path('mark'))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(program)], cwd=ROOT) as process:
        wait_for((tmp_path / "pid").exists)
        process.send_signal(number)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not runtime_process.start_time(pid))
