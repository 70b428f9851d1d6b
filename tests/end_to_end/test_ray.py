"""Generation and evaluation on a Ray cluster of this machine, whose devices are there in name alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster with two GPUs, neither of which exists."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path, since sockets lie in it
    options = ["--num-cpus=2", "--num-gpus=2", "--include-dashboard=false", f"--temp-dir={folder}", "--block"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", *options],
        # Without a token, also where another cluster has left one in the home folder.
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    address = ""
    for line in process.stdout:
        if "--address=" in line:
            address = line.split("--address='")[1].split("'")[0]
            break
    assert address
    yield address
    process.terminate()
    process.communicate(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def holder_in(folder: Path) -> dict | None:
    """Who works on a shard below a folder."""
    for claim in folder.glob(".generations.*.work/shard-*.claim-*"):
        try:
            return json.loads(claim.read_text())
        except FileNotFoundError:
            continue
    return None


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def answers(folder: Path) -> list[tuple]:
    tables = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("shard-*.parquet"))]
    return [(row["id"], row["response_ids"]) for table in tables for row in table]


def test_a_ray_cluster_gives_the_answers_of_one_machine_even_if_a_worker_is_killed(finished, cluster):
    speed = {"workers": 0, "ray": {"address": cluster, "workers": 2, "gpus": 1}}
    sets = ["--iterations", "1", "--set=controls={}", "--set=generate.shard_size=2"]
    process = subprocess.Popen(
        finished.play("ray", *sets, f"--set=generate.speed={json.dumps(speed)}"),
        env=finished.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    iteration = finished.runs / "ray" / "iter_00"
    deadline = time.monotonic() + 300
    while (holder := holder_in(iteration)) is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed = parent_of(holder["pid"])
    assert "ray::" in Path(f"/proc/{killed}/cmdline").read_text()
    os.kill(killed, signal.SIGKILL)
    assert not (iteration / "generations").exists()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    generations = iteration / "generations"
    assert answers(generations) == answers(finished.runs / "whole" / "iter_00" / "generations")
    assert len((generations / "log" / "timing.jsonl").read_text().splitlines()) == 48


def process_in(file: Path) -> int | None:
    """The process of the phase whose file this is."""
    try:
        return int(file.read_text().split()[0])
    except (FileNotFoundError, IndexError):
        return None


def test_a_ray_cluster_gives_the_scores_of_one_machine_even_if_a_worker_is_killed(
    player_in, server_url, cluster, tiny_model, tmp_path
):
    here, there = (player_in(tmp_path / name, server_url) for name in ("here", "there"))
    rows = [{"question": f"{n}+{n}?", "choices": [str(n), str(2 * n), str(n + 7)], "label": 1} for n in range(11, 19)]
    (tmp_path / "arc_easy_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lm_eval = {"tasks": ["arc_easy"], "local_data": str(tmp_path)}
    sets = [
        "prompts.sample=24",
        "prompts.held_out=16",
        "evaluate.exact=false",
        f"evaluate.lm_eval={json.dumps(lm_eval)}",
    ]
    arguments = [
        "evaluate",
        str(tiny_model),
        "--recipe=demo",
        "--lineage=mine",
        *(f"--set={setting}" for setting in sets),
    ]
    here.spin(*arguments, one_process=True)
    shutil.copytree(here.runs, there.runs)
    for scores in ("mine/base/eval", ".scores"):
        shutil.rmtree(there.runs / scores)
    speed = {"ray": {"address": cluster, "workers": 2, "gpus": 1}}
    process = subprocess.Popen(
        there.command("evaluate", "mine", f"--set=evaluate.speed={json.dumps(speed)}"),
        env=there.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = there.runs / "mine" / "base" / "eval"
    deadline = time.monotonic() + 300
    while (phase := process_in(folder / "jobs" / "self-play.pid")) is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = parent_of(phase)
    assert "ray::" in Path(f"/proc/{killed}/cmdline").read_text()
    os.kill(killed, signal.SIGKILL)
    assert not (folder / "self-play").exists()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    ours = [line for line in output.splitlines() if "(run-suite-on-ray" not in line]
    assert "base · evaluate" not in "\n".join(ours), "no suite was run or looked for here"
    scored, whole = there.digests("mine"), here.digests("mine")
    assert {"base/eval/self-play", "base/eval/lm-eval"} < set(scored)
    assert scored == whole
    local, distributed = (
        json.loads((player.runs / "mine" / "leaderboard.json").read_text()) for player in (here, there)
    )
    assert "arc_easy" in local["rows"][0]["scores"]
    assert local["rows"][0]["scores"] == distributed["rows"][0]["scores"]
