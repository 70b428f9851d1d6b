"""Points in their sinks: TensorBoard's files, W&B's SDK offline, MLflow's client on a file."""

import contextlib
import json
import sqlite3
from collections import Counter
from importlib.util import find_spec

import pytest

from spin_core.lineage.lineage import Lineage
from spin_core.tracking.points import STEP, VERSION
from spin_core.tracking.wandb_log import read_history
from tests.support.lineages.metrics import begin_training, follow


def events(lineage: Lineage) -> Counter[tuple[str, int]]:
    """How often each value is in TensorBoard's files, by its own reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    counts: Counter[tuple[str, int]] = Counter()
    for path in (lineage.root / "metrics" / "tensorboard").iterdir():
        counts.update(
            (value.tag, event.step) for event in EventFileLoader(str(path)).Load() for value in event.summary.value
        )
    return counts


def test_tensorboard_has_each_point_once_after_kills_of_the_follower_and_of_the_training(lineage):
    begin_training(lineage, 40)
    follow(lineage, "tensorboard", kill_after=43)
    (file,) = (lineage.root / "metrics" / "tensorboard").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])  # the kill came while the last event was written
    begin_training(lineage, 30)  # back to its checkpoint
    assert follow(lineage, "tensorboard") == ""
    begin_training(lineage, 60)
    follow(lineage, "tensorboard")
    counts = events(lineage)
    assert set(counts.values()) == {1}
    assert {step for tag, step in counts if tag == "train/loss"} == set(range(1, 4 + 60))
    assert {version for tag, version in counts if tag == "scores/heldout_nll"} == {0, 1, 2}


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_wandb_continues_the_same_run_and_logs_no_step_twice(lineage):
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


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_mlflow_continues_the_same_run_and_logs_no_step_twice_while_another_sink_fails(lineage):
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
