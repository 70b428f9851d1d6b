"""TensorBoard, W&B and MLflow: each takes points, and knows the last ones that it has.

What a sink holds is asked of the sink itself (its files, or its server), never of a note beside it. So a kill at any
moment neither loses a point nor tells one twice.
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
from spin_core.store import files as store_files
from spin_core.store.files import dump
from spin_core.tracking.points import STEP, VERSION, Last, Point, folder_of
from spin_core.tracking.wandb_log import read_history

PARAMETERS_AT_ONCE = 100

PARAMETER_CHARACTERS = 500
"""MLflow's bounds."""


class Sink(Protocol):
    """Where points go."""

    def last(self) -> Last:
        """The last points that it has."""

    def write(self, points: Iterable[Point]) -> None:
        """Take points, in their order."""

    def close(self) -> None:
        """See that all has arrived."""


def opened(name: SinkName, game: Lineage) -> Sink:
    """The sink of that name."""
    kinds: dict[SinkName, Callable[[Lineage], Sink]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "mlflow": Mlflow,
    }
    folder_of(game).mkdir(parents=True, exist_ok=True)
    return kinds[name](game)


class TensorBoard:
    """Event files. One event holds a whole point, so that a kill leaves no part of one."""

    def __init__(self, game: Lineage) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = folder_of(game) / "tensorboard"
        self.found = last_events(self.folder)
        self.writer = EventFileWriter(str(self.folder))

    def last(self) -> Last:
        return self.found

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
    """The last points in event files; what a kill cut short is none."""
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


class WeightsAndBiases:
    """One W&B run for the lineage, which every run of ours goes on with."""

    def __init__(self, game: Lineage) -> None:
        import wandb

        self.folder = folder_of(game)
        self.run = wandb.init(
            project=game.config.metrics.project,
            id=own_id(self.folder / "wandb.json", lambda: uuid.uuid4().hex[:12]),
            name=game.name,
            resume="allow",
            dir=str(self.folder),
            config=dump(game.config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self.run.define_metric("train/*", step_metric=STEP)
        for group in ("scores", "answers", "pairs", "gate", "cost"):
            self.run.define_metric(f"{group}/*", step_metric=VERSION)

    def last(self) -> Last:
        if not self.run.offline:
            found = [{name: self.run.summary.get(name) for name in (STEP, VERSION)}]
        else:
            files = sorted(self.folder.glob(f"wandb/offline-run-*-{self.run.id}/*.wandb"))
            found = [row for path in files for row in read_history(path)]
        steps, versions = ([int(row[name]) for row in found if row.get(name) is not None] for name in (STEP, VERSION))
        return Last(max(steps, default=0), max(versions, default=-1))

    def write(self, points: Iterable[Point]) -> None:
        for point in points:
            self.run.log({**point.values, point.kind: point.at}, step=point.order)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """One MLflow run for the lineage, at MLFLOW_TRACKING_URI or in a file that all lineages of the folder share."""

    def __init__(self, game: Lineage) -> None:
        from mlflow import MlflowClient

        self.client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{game.runs}/mlflow.db")
        self.run_id = own_id(folder_of(game) / "mlflow.json", lambda: self.begin(game))
        self.client.update_run(self.run_id, status="RUNNING")

    def begin(self, game: Lineage) -> str:
        """Make the run, with the configuration as its parameters."""
        from mlflow.entities import Param

        project = game.config.metrics.project
        experiment = self.client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(project)
        run_id: str = self.client.create_run(experiment_id, run_name=game.name).info.run_id
        settings = [Param(name, str(value)[:PARAMETER_CHARACTERS]) for name, value in flat(dump(game.config))]
        for first in range(0, len(settings), PARAMETERS_AT_ONCE):
            self.client.log_batch(run_id, params=settings[first : first + PARAMETERS_AT_ONCE])
        return run_id

    def last(self) -> Last:
        found = self.client.get_run(self.run_id).data.metrics
        return Last(int(found.get(STEP, 0)), int(found.get(VERSION, -1)))

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


def own_id(note: Path, make: Callable[[], str]) -> str:
    """The id of the lineage's run, made once. Remove the note to begin another run."""
    if note.exists():
        return str(json.loads(note.read_text("utf-8"))["run"])
    made = make()
    store_files.write_json(note, {"run": made})
    return made


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings by their dotted names."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found
