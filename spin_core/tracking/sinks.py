"""TensorBoard, W&B and MLflow: each takes points, and knows the last ones that it has.

A sink finds these in its own files or on its server, not in a note next to them. So a kill at any moment neither loses
a point nor sends one twice.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from spin_core.config.metrics import SinkName
from spin_core.lineage.lineage import Lineage
from spin_core.store.files import json_values, write_json
from spin_core.tracking.points import STEP, VERSION, Last, Point, folder_of
from spin_core.tracking.wandb_log import read_history

_PARAMETERS_PER_BATCH = 100

_PARAMETER_CHARACTERS = 500
"""Limits of MLflow."""


class Sink(Protocol):
    """A place where points are shown as curves."""

    def last(self) -> Last:
        """The last points that the sink has."""

    def write(self, points: Iterable[Point]) -> None:
        """Write points, in order."""

    def close(self) -> None:
        """Wait until all points have arrived."""


def open_sink(name: SinkName, lineage: Lineage) -> Sink:
    """The sink of that name, which continues the lineage's curves."""
    kinds: dict[SinkName, Callable[[Lineage], Sink]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WeightsAndBiases,
        "mlflow": _Mlflow,
    }
    folder_of(lineage).mkdir(parents=True, exist_ok=True)
    return kinds[name](lineage)


class _TensorBoard:
    """Event files. One event holds a whole point, so that a kill leaves no half of one."""

    def __init__(self, lineage: Lineage) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = folder_of(lineage) / "tensorboard"
        self.last_found = last_events(self.folder)
        self.writer = EventFileWriter(str(self.folder))

    def last(self) -> Last:
        return self.last_found

    def write(self, points: Iterable[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self.writer.add_event(Event(wall_time=time.time(), step=point.at, summary=Summary(value=values)))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def last_events(folder: Path) -> Last:
    """The last points in event files. An event that a kill cut short does not count."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    step, version = Last()
    for path in sorted(folder.glob("events.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            tags = [value.tag for value in event.summary.value]
            if any(tag.startswith("train/") for tag in tags):
                step = max(step, event.step)
            elif tags:
                version = max(version, event.step)
    return Last(step, version)


class _WeightsAndBiases:
    """One W&B run for the lineage, which each of its runs continues."""

    def __init__(self, lineage: Lineage) -> None:
        import wandb

        self.folder = folder_of(lineage)
        self.run = wandb.init(
            project=lineage.config.metrics.project,
            id=_run_id(self.folder / "wandb.json", lambda: uuid.uuid4().hex[:12]),
            name=lineage.name,
            resume="allow",
            dir=str(self.folder),
            config=json_values(lineage.config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self.run.define_metric("train/*", step_metric=STEP)
        for group in ("scores", "answers", "pairs", "gate", "cost"):
            self.run.define_metric(f"{group}/*", step_metric=VERSION)

    def last(self) -> Last:
        if not self.run.offline:
            rows = [{name: self.run.summary.get(name) for name in (STEP, VERSION)}]
        else:
            files = sorted(self.folder.glob(f"wandb/offline-run-*-{self.run.id}/*.wandb"))
            rows = [row for path in files for row in read_history(path)]
        steps, versions = ([int(row[name]) for row in rows if row.get(name) is not None] for name in (STEP, VERSION))
        return Last(max(steps, default=0), max(versions, default=-1))

    def write(self, points: Iterable[Point]) -> None:
        for point in points:
            self.run.log({**point.values, point.kind: point.at}, step=point.order)

    def close(self) -> None:
        self.run.finish()


class _Mlflow:
    """One MLflow run for the lineage, at MLFLOW_TRACKING_URI or in a file that lineages of the runs folder share."""

    def __init__(self, lineage: Lineage) -> None:
        from mlflow import MlflowClient

        self.client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{lineage.runs}/mlflow.db")
        self.run_id = _run_id(folder_of(lineage) / "mlflow.json", lambda: self._begin(lineage))
        self.client.update_run(self.run_id, status="RUNNING")

    def _begin(self, lineage: Lineage) -> str:
        """Create the run, with the configuration as its parameters. Returns its id."""
        from mlflow.entities import Param

        project = lineage.config.metrics.project
        experiment = self.client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(project)
        run_id: str = self.client.create_run(experiment_id, run_name=lineage.name).info.run_id
        settings = [
            Param(name, str(value)[:_PARAMETER_CHARACTERS]) for name, value in _flat(json_values(lineage.config))
        ]
        for first in range(0, len(settings), _PARAMETERS_PER_BATCH):
            self.client.log_batch(run_id, params=settings[first : first + _PARAMETERS_PER_BATCH])
        return run_id

    def last(self) -> Last:
        metrics = self.client.get_run(self.run_id).data.metrics
        return Last(int(metrics.get(STEP, 0)), int(metrics.get(VERSION, -1)))

    def write(self, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        for point in points:
            values = {**point.values, point.kind: point.at}
            now = time.time_ns() // 1_000_000
            self.client.log_batch(
                self.run_id, metrics=[Metric(name, float(value), now, point.at) for name, value in values.items()]
            )

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def _run_id(note: Path, create: Callable[[], str]) -> str:
    """The id of the lineage's run, which is created once. If the note is removed, another run is created."""
    if note.exists():
        return str(json.loads(note.read_text("utf-8"))["run"])
    run_id = create()
    write_json(note, {"run": run_id})
    return run_id


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings by their dotted names."""
    settings: list[tuple[str, Any]] = []
    for name, value in values.items():
        settings += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return settings
