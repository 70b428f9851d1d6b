"""The whole loop through real processes and a real Prefect server: playing, reusing, resuming after kills."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin_core.tracking.points import Last
from spin_core.tracking.sinks import last_events

pytestmark = pytest.mark.slow

PHASES = ("generations", "pairs", "scores", "train", "model", "eval/self-play")
STEPS = 24
DPO = "dpo-beta-0.1-lr-0.001-epochs-1"
MOMENTS = (
    "iter_00/.generations.partial/shard-00001.parquet",  # within a phase: a shard is done, others are not
    "iter_01/generations/manifest.json",  # between two phases
    "iter_01/.train.partial",  # within training
    "iter_01/train/manifest.json",  # without its server, and after SIGTERM: it does not wait
)


@pytest.fixture(scope="module")
def served(finished: Any, server_url: str) -> Any:
    """The player of the finished lineage, with a server that is up: its commands start none of their own."""
    return replace(finished, api=server_url)


def test_a_run_publishes_every_phase_of_every_iteration(finished):
    built = finished.digests("whole")
    expected = {f"iter_{t:02d}/{phase}" for t in range(2) for phase in PHASES}
    expected |= {"iter_00/prompts", "base/eval/self-play", "controls/temperature-0.7/eval/self-play"}
    expected |= {f"controls/sft-lr-0.001-steps-{STEPS}/{phase}" for phase in ("train", "model", "eval/self-play")}
    dpo = ("pairs", "scores", "train", "model", "eval/self-play")
    expected |= {f"controls/{DPO}/{phase}" for phase in dpo}
    assert set(built) == expected
    for t in range(2):
        assert (finished.runs / "whole" / f"iter_{t:02d}" / "record.json").exists()


def test_the_leaderboard_holds_every_version_and_the_controls(finished):
    board = json.loads((finished.runs / "whole" / "leaderboard.json").read_text())
    assert [row["t"] for row in board["rows"]] == [0, 1, 2]
    assert {row["name"] for row in board["controls"]} == {f"sft-lr-0.001-steps-{STEPS}", DPO, "temperature-0.7"}
    for row in board["rows"] + board["controls"]:
        assert row["scores"]["total_variation"]["n"] == 16
    # The command says where models are now; the file says where they were made.
    made = Path(board["rows"][-1]["model"]).parents[2]
    output = finished.spin("leaderboard", "whole", "--json").stdout
    assert json.loads(output.replace(f"{finished.runs}/", f"{made}/")) == board


def test_a_second_run_reuses_every_phase_and_changes_nothing(finished, served):
    before = finished.digests("whole")
    stamps = finished.stamps("whole")
    out = served.spin(*finished.arguments("whole")).stdout
    assert not [line for line in out.splitlines() if line.startswith("done")]
    tasks = [name for name in before if not name.endswith("/model")]  # weights are published by their training
    assert sum(line.startswith("reused") for line in out.splitlines()) == len(tasks) + len(("init", "train"))
    assert finished.digests("whole") == before
    assert finished.stamps("whole") == stamps


def test_verify_finds_the_lineage_whole(finished):
    assert "are whole" in finished.spin("verify", "whole").stdout


def test_another_configuration_is_rejected_before_any_compute(finished):
    done = finished.spin(*finished.arguments("whole", "--set=train.beta=0.7"), check=False)
    assert done.returncode == 2
    assert "train.beta" in done.stderr
    assert "choose a new lineage name" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_killed_again_and_again_repeats_no_finished_phase_and_ends_with_the_same_digests(finished, served):
    root = finished.runs / "killed"
    for moment in MOMENTS:
        before = finished.stamps("killed")
        # The last two starts have a server of their own. The first of these ends with its run, since the second starts.
        player = served if moment in MOMENTS[:2] else finished
        process = subprocess.Popen(
            player.play("killed"),
            env=player.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 200
        while not (root / moment).exists():
            assert process.poll() is None, f"the run ended before {moment}: {process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if moment == MOMENTS[0]:
            refused = served.spin(*finished.arguments("killed"), check=False)
            assert refused.returncode == 2
            assert f"in use by process {process.pid} " in refused.stderr
        if moment == MOMENTS[-1]:
            os.kill(temporary_server(process.pid), signal.SIGKILL)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
            assert process.returncode in (75, 143), stderr
        else:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert before.items() <= finished.stamps("killed").items()
    before = finished.stamps("killed")
    served.spin(*finished.arguments("killed"), one_process=True)  # as `whole` was: only kills need processes
    assert before.items() <= finished.stamps("killed").items()
    assert finished.digests("killed") == finished.digests("whole")


def temporary_server(run: int) -> int:
    """The process of the server that a run has started for itself."""
    pids = [int(pid) for path in Path(f"/proc/{run}/task").glob("*/children") for pid in path.read_text().split()]
    (server,) = [pid for pid in pids if b"prefect.server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return server


def test_the_sft_model_is_shared_by_lineages(finished):
    assert sorted(path.parent.name for path in (finished.runs / ".sft").rglob("manifest.json")) == [
        "init",
        "model",
        "train",
    ]


def test_a_lineage_that_a_run_has_pushed_is_pulled_elsewhere_and_reused_there(
    finished, served, player_in, server_url, tmp_path
):
    copy = f"--set=push.url=file://{tmp_path}/copy"
    out = served.spin(*finished.arguments("whole", copy, "--set=metrics.sinks=[tensorboard]")).stdout
    assert {line.split()[1] for line in out.splitlines() if line.startswith("done")} == {"push"}
    last = last_events(finished.runs / "whole" / "metrics" / "tensorboard")
    assert last == Last(step=STEPS, version=2)
    elsewhere = player_in(tmp_path / "elsewhere", server_url)
    elsewhere.spin("pull", "whole", f"file://{tmp_path}/copy")
    assert elsewhere.digests("whole") == finished.digests("whole")
    out = elsewhere.spin(*elsewhere.arguments("whole", copy)).stdout
    assert "reused  push" in out.splitlines()
    # The report names the paths of models, so it is written, and pushed, again.
    assert {line.split()[1] for line in out.splitlines() if line.startswith("done")} <= {"push"}
    assert elsewhere.digests("whole") == finished.digests("whole")
