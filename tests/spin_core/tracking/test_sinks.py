"""A lineage's points and their sinks: TensorBoard's files, W&B's SDK offline, MLflow's client on a file."""

import contextlib
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from spin_core.config import metrics
from spin_core.config.metrics import MetricsConfig
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from spin_core.runtime.phase import scratch_of
from spin_core.store import files as store_files
from spin_core.tracking.points import STEP, VERSION, Last, points
from spin_core.tracking.sinks import last_events
from spin_core.tracking.wandb_log import read_history, read_records
from tests.support.lineages.small_lineage import build_lineage, json_lines

OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": ""}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("built")
    build_lineage(runs)
    return runs


@pytest.fixture
def lineage(built: Path, tmp_path: Path) -> Lineage:
    """A lineage of two iterations of two steps each."""
    shutil.copytree(built, tmp_path / "runs")
    return find_lineage(tmp_path / "runs", "tale")


def order_of(lineage: Lineage, last: Last = Last()) -> list[tuple[str, int, int]]:  # noqa: B008 (frozen)
    return [(point.kind, point.at, point.order) for point in points(lineage, last)]


def begin_training(lineage: Lineage, steps: int) -> Path:
    """Let iteration 2 be in training, with so many finished steps."""
    folder = scratch_of(lineage.iteration(2) / "train")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "loss": 0.7 - step / 100, "grad_norm": None} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_bytes(json_lines(rows) + b'{"step": ')
    return folder


def test_steps_are_counted_through_the_iterations_and_versions_stand_between_them(lineage):
    whole = order_of(lineage)
    kinds = [VERSION, STEP, STEP, VERSION, STEP, STEP, VERSION]
    assert whole == list(zip(kinds, (0, 1, 2, 1, 3, 4, 2), range(7), strict=True))
    for known in range(8):
        before = whole[:known]
        last = Last(
            max((at for kind, at, _ in before if kind == STEP), default=0),
            max((at for kind, at, _ in before if kind == VERSION), default=-1),
        )
        assert order_of(lineage, last) == whole[known:]


def test_points_hold_what_was_measured_scored_and_spent(lineage):
    found = {(point.kind, point.at): point.values for point in points(lineage, Last())}
    assert found[STEP, 4]["train/rewards/accuracies"] == 0.9
    assert found[STEP, 3]["train/tokens/s"] == 7 / 0.5
    assert found[STEP, 4]["train/iteration"] == 1
    assert found[VERSION, 0] == {"scores/heldout_nll": 3.5}
    second = found[VERSION, 2]
    assert (second["scores/heldout_nll"], second["scores/reward_accuracy"]) == (pytest.approx(2.9), 0.75)
    assert (second["pairs/kept"], second["pairs/dropped/empty"], second["gate/promoted"]) == (1, 1, 1)
    assert (second["answers/cut"], second["cost/tokens/generate"]) == (0.5, 20)
    # generate, score, train and one evaluation hold a device; pairs do not.
    assert second["cost/seconds"] == 5 * 1.5
    assert second["cost/device_hours"] == pytest.approx(4 * 1.5 / 3600, abs=1e-6)


def test_of_a_training_that_goes_on_all_steps_but_the_last_are_reported(lineage):
    begin_training(lineage, 3)
    *_, before, last = points(lineage, Last())
    assert (before.at, last.at, last.order) == (5, 6, 8)
    assert math.isnan(last.values["train/grad_norm"])
    shutil.rmtree(lineage.iteration(0) / "generations")
    assert order_of(lineage) == []


def follow(lineage: Lineage, *sinks: str, kill_after: float | None = None) -> str:
    """Send the lineage's points to sinks in the process that runs use. Returns its messages."""
    config = lineage.config.model_copy(update={"metrics": MetricsConfig(sinks=sinks)})
    store_files.write_json(lineage.root / "lineage.json", {"lineage": "tale", "config": config.model_dump(mode="json")})
    command = [sys.executable, "-m", "spin_core.tracking.follow", str(lineage.runs), "tale"]
    with subprocess.Popen(
        command, env={**os.environ, **OFFLINE}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if kill_after is not None:
            deadline = time.monotonic() + 60
            while last_events(lineage.root / "metrics" / "tensorboard").step < kill_after:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        messages, _ = process.communicate(timeout=120)
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
        return messages


def events(lineage: Lineage) -> Counter[tuple[str, int]]:
    """How often each value is in TensorBoard's files, by its own reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: Counter[tuple[str, int]] = Counter()
    for path in (lineage.root / "metrics" / "tensorboard").iterdir():
        found.update(
            (value.tag, event.step) for event in EventFileLoader(str(path)).Load() for value in event.summary.value
        )
    return found


def test_tensorboard_has_each_point_once_though_the_follower_and_the_training_were_killed(lineage):
    begin_training(lineage, 40)
    follow(lineage, "tensorboard", kill_after=43)
    (file,) = (lineage.root / "metrics" / "tensorboard").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])  # the kill came while the last event was written
    begin_training(lineage, 30)  # back to its checkpoint
    assert follow(lineage, "tensorboard") == ""
    begin_training(lineage, 60)
    follow(lineage, "tensorboard")
    found = events(lineage)
    assert set(found.values()) == {1}
    assert {step for tag, step in found if tag == "train/loss"} == set(range(1, 4 + 60))
    assert {version for tag, version in found if tag == "scores/heldout_nll"} == {0, 1, 2}


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_wandb_goes_on_in_the_same_run_and_logs_no_step_twice(lineage):
    begin_training(lineage, 20)
    assert follow(lineage, "wandb") == ""
    begin_training(lineage, 30)
    assert follow(lineage, "wandb") == ""
    files = sorted((lineage.root / "metrics" / "wandb").glob("offline-run-*/*.wandb"))
    identity = json.loads((lineage.root / "metrics" / "wandb.json").read_text())["run"]
    assert [path.name for path in files] == [f"run-{identity}.wandb"] * 2
    rows = [row for path in files for row in read_history(path)]
    assert [row[STEP] for row in rows if STEP in row] == list(range(1, 4 + 30))
    assert [row[VERSION] for row in rows if VERSION in row] == [0, 1, 2]
    assert [row["_step"] for row in rows] == list(range(len(rows)))


def test_a_wandb_file_that_a_kill_cut_short_is_read_up_to_there():
    def chunk(kind: int, data: bytes) -> bytes:
        return bytes(4) + len(data).to_bytes(2, "little") + bytes([kind]) + data

    head, filling = bytes(7), 2**15 - 7 - 7 - 5
    content = (
        head + chunk(1, b"a" * filling) + bytes(5) + chunk(2, b"b") + chunk(3, b"c") + chunk(4, b"d") + chunk(1, b"e")
    )
    assert list(read_records(content)) == [b"a" * filling, b"bcd", b"e"]
    assert list(read_records(content[:-1])) == [b"a" * filling, b"bcd"]
    assert list(read_records(b"")) == []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_mlflow_goes_on_in_the_same_run_though_another_sink_fails_and_logs_no_step_twice(lineage):
    begin_training(lineage, 5)
    assert follow(lineage, "mlflow") == ""
    begin_training(lineage, 8)
    (lineage.root / "metrics" / "tensorboard").write_text("a file stands in its way")
    (message,) = follow(lineage, "tensorboard", "mlflow").splitlines()
    assert message.startswith("metrics: tensorboard failed and gets no more points: ")
    with contextlib.closing(sqlite3.connect(lineage.runs / "mlflow.db")) as data:
        steps = [step for (step,) in data.execute("select step from metrics where key = 'train/loss' order by step")]
        runs = list(data.execute("select name, status from runs"))
        recipes = list(data.execute("select value from params where key = 'recipe'"))
    assert steps == list(range(1, 4 + 8))
    assert runs == [("tale", "FINISHED")]
    assert recipes == [("demo",)]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_of_a_server_that_is_away_its_password_is_not_reported(lineage, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setitem(OFFLINE, "MLFLOW_TRACKING_URI", "http://me:planted@127.0.0.1:9")
    message = follow(lineage, "mlflow")
    assert message.startswith("metrics: mlflow failed and gets no more points: ")
    assert "127.0.0.1" in message
    assert "planted" not in message


def test_a_sink_that_is_not_installed_is_rejected_and_an_unknown_one_too(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda _name: None)
    with pytest.raises(
        ConfigError, match="has wandb, which is not installed: install spin-loop with its extra `wandb`"
    ):
        metrics.check(MetricsConfig(sinks=("wandb",)))
    metrics.check(MetricsConfig(sinks=()))
    with pytest.raises(ConfigError, match=r"metrics\.sinks"):
        resolve("demo", sets=["metrics.sinks=[prometheus]"])


def test_nothing_that_only_trains_is_loaded_to_tell_points():
    heavy = "{'torch', 'transformers', 'wandb', 'mlflow'}"
    code = f"import sys, spin_core.tracking.follow; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
