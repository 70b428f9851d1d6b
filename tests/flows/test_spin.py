"""The whole loop through real processes and a real Prefect server: playing, reusing, resuming after kills."""

import json
import signal
import subprocess
import time

import pytest

PHASES = ("generations", "pairs", "scores", "train", "model", "eval/self-play")


def test_a_run_publishes_every_phase_of_every_iteration(finished):
    built = finished.digests("whole")
    expected = {f"iter_{t:02d}/{phase}" for t in range(2) for phase in PHASES}
    expected |= {"iter_00/prompts", "base/eval/self-play", "controls/temperature-0.7/eval/self-play"}
    expected |= {f"controls/sft-lr-0.001/{phase}" for phase in ("train", "model", "eval/self-play")}
    assert set(built) == expected
    for t in range(2):
        assert (finished.runs / "whole" / f"iter_{t:02d}" / "record.json").exists()


def test_the_leaderboard_holds_every_version_and_the_controls(finished):
    board = json.loads((finished.runs / "whole" / "leaderboard.json").read_text())
    assert [row["t"] for row in board["rows"]] == [0, 1, 2]
    assert {row["name"] for row in board["controls"]} == {"sft-lr-0.001", "temperature-0.7"}
    for row in board["rows"] + board["controls"]:
        assert row["scores"]["total_variation"]["n"] == 16
    assert json.loads(finished.spin("leaderboard", "whole", "--json").stdout) == board


def test_a_second_run_reuses_every_phase_and_changes_nothing(finished):
    before = finished.digests("whole")
    stamps = {path: path.stat().st_mtime_ns for path in finished.runs.rglob("manifest.json")}
    out = finished.spin(*finished.arguments("whole")).stdout
    assert "done " not in out
    assert out.count("reused") >= len(before) - 3  # weights are published by their training, not by a task
    assert finished.digests("whole") == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_verify_finds_the_lineage_whole(finished):
    assert "are whole" in finished.spin("verify", "whole").stdout


def test_another_configuration_is_refused_before_any_compute(finished):
    done = finished.spin(*finished.arguments("whole", "--set=train.beta=0.7"), check=False)
    assert done.returncode == 2
    assert "train.beta" in done.stderr
    assert "choose a new name" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_untrained_and_the_sft_model_are_shared_by_lineages(finished):
    shared = [path.parent.name for path in (finished.runs / ".sft").rglob("manifest.json")]
    assert sorted(shared) == ["init", "model", "train"]
    out = finished.spin(*finished.arguments("another", "--iterations=1", "--set=controls={}")).stdout
    assert sum(line.startswith("reused") for line in out.splitlines()) == 2
    assert finished.digests("another")["iter_00/model"] == finished.digests("whole")["iter_00/model"]


@pytest.mark.parametrize(
    "moment",
    ["iter_00/.generations.partial/shard-00001.parquet", "iter_01/generations/manifest.json", "iter_01/.train.partial"],
)
def test_a_killed_run_resumes_repeats_no_finished_phase_and_ends_with_the_same_digests(finished, moment):
    lineage = "killed-" + str(abs(hash(moment)) % 10**6)
    root = finished.runs / lineage
    process = subprocess.Popen(
        finished.play(lineage), env=finished.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (root / moment).exists():
        assert process.poll() is None, "the run ended before the moment to kill it"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    built = {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}
    finished.spin(*finished.arguments(lineage))
    assert {path: path.stat().st_mtime_ns for path in built} == built
    assert finished.digests(lineage) == finished.digests("whole")


def test_a_lineage_in_use_is_refused_naming_the_holder(finished):
    process = subprocess.Popen(
        finished.play("busy"), env=finished.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 100
        while not (finished.runs / "busy" / "base").exists() and not list((finished.runs / "busy").glob("iter_00")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = finished.spin(*finished.arguments("busy"), check=False)
    finally:
        process.kill()
        process.wait()
    assert done.returncode == 2
    assert f"process {process.pid}" in done.stderr
