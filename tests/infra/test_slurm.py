"""The templates for Slurm, run unchanged, with stand-ins for the two commands of Slurm that they use."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spin_core.runtime import launch
from spin_core.store.records import GenerationBatch
from tests.support.lineages.generation import generate_job, prompt_set
from tests.support.servers.stack import ROOT

FOLDER = ROOT / "infra" / "slurm"
RUN, GENERATE = FOLDER / "run.sbatch", FOLDER / "generate.sbatch"

SRUN = """#!/bin/sh
# Runs its command once a task, all at once and here.
while true; do
    case $1 in
        --label | --wait=*) shift ;;
        -*) echo "srun: unrecognized option '$1'" >&2; exit 1 ;;
        *) break ;;
    esac
done
pids= status=0 task=0
while [ $task -lt "$SLURM_NTASKS" ]; do
    SLURM_PROCID=$task SLURM_NODEID=$task "$@" &
    pids="$pids $!" task=$((task + 1))
done
for pid in $pids; do wait "$pid" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames here" ] && echo 127.0.0.1 && echo elsewhere
"""

TINY = {
    "sft.hidden_size": 8,
    "sft.intermediate_size": 16,
    "sft.layers": 1,
    "sft.train.epochs": 1,
    "prompts.sample": 48,
    "prompts.held_out": 16,
    "generate.shard_size": 24,
    "train.epochs": 1,
    "train.batch_size": 16,
    "gate.rule": "always",
    "evaluate.frontier": [],
    "controls": {"sft_continued": False, "temperatures": []},
}


def job_number() -> int:
    """The number of a job whose port, which the template makes of it, is free."""
    for port in range(20_000 + os.getpid() % 10_000, 40_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return 20_000 * 7 + port - 20_000
    raise AssertionError("no port is free")


def sbatch(folder: Path, script: Path, *arguments: str, tasks: int) -> subprocess.CompletedProcess[str]:
    """Do what Slurm would do with the script: run it on the first node, in its own environment."""
    stand_ins = folder / "bin"
    stand_ins.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SPIN_"))}
    slurm = {
        "SLURM_JOB_ID": str(job_number()),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": str(tasks),
        "SLURM_NTASKS": str(tasks),
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    settings = {"PATH": f"{stand_ins}:{os.environ['PATH']}", "SPIN_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", script, *arguments],
        env={**kept, **slurm, **settings, "SPIN_PYTHON": sys.executable},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )


@pytest.mark.parametrize("script", [RUN, GENERATE], ids=lambda path: path.name)
def test_options_for_slurm_come_before_the_first_command_and_exist_in_sbatch(script):
    lines = script.read_text().splitlines()
    option_lines = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert option_lines
    assert option_lines[-1] < first
    options = "job-name|nodes|ntasks-per-node|exclusive|time|output|open-mode|signal|requeue"
    for number in option_lines:
        assert re.fullmatch(rf"#SBATCH --({options})(=\S+)?", lines[number]), lines[number]


@pytest.mark.slow
def test_a_run_on_two_nodes_is_answered_by_the_second_and_trained_by_both(tmp_path):
    # Without its own worker, the first node leaves all prompts to the second.
    settings = {**TINY, "generate.speed.workers": 0}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    done = sbatch(tmp_path, RUN, "demo", "--lineage", "mine", "--iterations", "1", *sets, tasks=2)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    root = tmp_path / "runs" / "mine"
    assert [row["t"] for row in json.loads((root / "leaderboard.json").read_text())["rows"]] == [0, 1]
    for name in ("generations", "train"):
        assert f"node 1: {root}/iter_00/jobs/{name}.json: begun on the first node, joining" in log
        assert f"node 1: {root}/iter_00/jobs/{name}.json: ended here\n" in log
    speed = json.loads((root / "iter_00" / "jobs" / "train.json").read_text())["config"]["speed"]
    assert speed["nodes"] == 2
    assert speed["rendezvous"].startswith("127.0.0.1:")
    assert not list(root.rglob("*.pid"))


@pytest.mark.slow
def test_workers_of_two_tasks_answer_a_generation_that_was_begun_elsewhere(tmp_path, tiny_model):
    prompts = prompt_set(tmp_path / "prompts", rows=24)
    job = generate_job(
        tmp_path / "generations", tiny_model, prompts, shard_size=3, max_new_tokens=20, speed={"workers": 0}
    )
    job_file = launch.write_job(job)
    records: list[GenerationBatch] = []
    begun = threading.Thread(target=lambda: records.append(launch.run_phase(job, GenerationBatch)))
    begun.start()
    done = sbatch(tmp_path, GENERATE, str(job_file), tasks=2)
    begun.join(60)
    assert done.returncode == 0, done.stderr
    (record,) = records
    assert record.shards == 8
    timings = [json.loads(line) for line in (record.path / "log" / "timing.jsonl").read_text().splitlines()]
    workers = {timing["worker"] for timing in timings}
    assert len(timings) == 8
    assert 1 <= len(workers) <= 2
    assert f"{os.uname().nodename}:{os.getpid()}" not in workers
