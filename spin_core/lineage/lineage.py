"""A lineage on disk: the chain θ_0, θ_1, … of model versions, its paths and its records.

    runs/<lineage>/lineage.json                                   configuration
    runs/<lineage>/base/{model,eval/<suite>}                      θ_0
    runs/<lineage>/iter_00/{prompts,generations,pairs,scores,train,model,eval/<suite>,record.json}
    runs/<lineage>/controls/<name>/{train,model,eval/<suite>}
    runs/.sft/<identity>/                                         θ_0 of recipes that train their own, shared
    runs/.scores/<identity>/                                      scores of lm-eval's tasks by model, shared

The jobs that fill these folders are written by `phase_jobs`, `suite_jobs` and `control_jobs`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from spin_core.config.run import RunConfig
from spin_core.errors import DamagedArtifact
from spin_core.store import artifacts
from spin_core.store.files import json_values, load, write_json
from spin_core.store.identity import MANIFEST
from spin_core.store.records import EvalReport, IterationRecord, ModelVersion, move_paths

CONFIGURATION = "lineage.json"
"""The file that makes a folder a lineage."""

SHARED = ".sft"
"""Below the runs folder: models that recipes train for themselves, by identity."""


@dataclass(frozen=True)
class Lineage:
    """One chain of model versions below the folder `runs`."""

    runs: Path
    name: str
    config: RunConfig

    # Paths.

    @cached_property
    def root(self) -> Path:
        """The lineage's folder."""
        return self.runs / self.name

    def iteration(self, t: int) -> Path:
        """The folder of iteration t, in which θ_t answers and θ_{t+1} is trained."""
        return self.root / f"iter_{t:02d}"

    def eval_folder(self, t: int) -> Path:
        """The folder of θ_t's evaluations, one subfolder a suite."""
        return (self.root / "base" if t == 0 else self.iteration(t - 1)) / "eval"

    def control(self, name: str) -> Path:
        """The folder of a control: a training that self-play is compared with."""
        return self.root / "controls" / name

    def page(self, t: int) -> Path:
        """The Markdown page about iteration t."""
        return self.iteration(t) / "report.md"

    def published(self) -> list[Path]:
        """All published folders of this lineage."""
        folders = (path.parent for path in self.root.rglob(MANIFEST))
        # A killed phase may leave a manifest in its hidden scratch folder, which is not published.
        return sorted(folder for folder in folders if not folder.name.startswith("."))

    # Records.

    def records(self) -> list[IterationRecord]:
        """The records of all finished iterations, in order, with the paths that files have now."""
        records: list[IterationRecord] = []
        while (record := self.record(len(records))) is not None:
            records.append(record)
        return records

    def record(self, t: int) -> IterationRecord | None:
        """The record of iteration t; None if the iteration is not finished."""
        path = self.iteration(t) / "record.json"
        if not path.exists():
            return None
        record = load(IterationRecord, path)
        # A record names absolute paths below the runs folder, which may have been moved since.
        runs_then = record.player.path.parents[2]
        return IterationRecord.model_validate(move_paths(json_values(record), runs_then, self.runs))

    def lost_records(self) -> list[Path]:
        """The records that are missing though their iterations are finished. `spin run` writes them again."""
        begun = [int(path.name[5:]) for path in self.root.glob("iter_*") if path.name[5:].isdigit()]
        lost = []
        for t in range(max(begun, default=-1) + 1):
            path = self.iteration(t) / "record.json"
            made = [self.iteration(t) / name / MANIFEST for name in ("train", "model")]
            is_finished = t < max(begun) or (all(map(Path.exists, made)) and bool(self.reports(t + 1)))
            if is_finished and not path.exists():
                lost.append(path)
        return lost

    def save_record(self, record: IterationRecord) -> None:
        """Write the record of an iteration."""
        write_json(self.iteration(record.t) / "record.json", record.model_dump(mode="json"))

    def reports(self, t: int) -> list[EvalReport]:
        """The published evaluations of θ_t, by suite."""
        return reports_in(self.eval_folder(t))

    def player(self, t: int) -> ModelVersion:
        """θ_{t+1}, the model that iteration t has trained."""
        return trained_model(self.iteration(t) / "model")

    def ended_by_gate(self) -> str | None:
        """Why the gate has stopped the run at its last version.

        None if it has not, or if the configuration no longer lets it (`gate.rule`).
        """
        records = self.records()
        stopped = records and records[-1].gate.outcome == "stop" and self.config.gate.rule == "stop"
        return records[-1].gate.reason if stopped else None


def trained_model(folder: Path) -> ModelVersion:
    """The model that a finished training has published in a folder.

    Raises:
        DamagedArtifact: The folder is gone.
    """
    model = artifacts.read_record(folder, ModelVersion)
    if model is None:
        raise DamagedArtifact(
            f"{folder} is gone, though its training is published: remove {folder.parent / 'train'} too"
        )
    return model


def reports_in(folder: Path) -> list[EvalReport]:
    """The evaluations published below a folder, by suite."""
    reports = (artifacts.read_record(path.parent, EvalReport) for path in sorted(folder.glob(f"[!.]*/{MANIFEST}")))
    return [report for report in reports if report is not None]
