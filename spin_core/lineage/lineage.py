"""A lineage on disk: θ_0, θ_1, …, what made them, and what comes next.

Writes the job of every phase of every iteration, so that the flow reads as the algorithm. Knows where things lie:

    runs/<lineage>/lineage.json                                   configuration
    runs/<lineage>/base/{model,eval/<suite>}                      θ_0
    runs/<lineage>/iter_00/{prompts,generations,pairs,scores,train,model,eval/<suite>,record.json}
    runs/<lineage>/controls/<name>/{train,model,eval/<suite>}
    runs/.sft/<identity>/                                         θ_0 of recipes that train their own, shared
    runs/.scores/<identity>/                                      what each task of lm-eval gave each model, shared
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from spin_core.config.base import at, resolved
from spin_core.config.controls import ControlsConfig
from spin_core.config.resolve import merge, validate
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.runtime import interpreter
from spin_core.store import artifacts, files
from spin_core.store import identity as store_identity
from spin_core.store.files import dump, load
from spin_core.store.jobs import BaseJob, GenerateJob, Job, PairsJob, PromptsJob, ScoreJob, TrainJob
from spin_core.store.records import (
    EvalReport,
    GenerationBatch,
    IterationRecord,
    ModelVersion,
    PairDataset,
    PromptSet,
    ScoredPairs,
    moved,
)

J = TypeVar("J", bound=Job)

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

SHARED = ".sft"
"""Below the runs folder: models that recipes train for themselves, by identity."""


@dataclass(frozen=True)
class Lineage:
    """One chain of model versions under `runs`."""

    runs: Path
    name: str
    config: RunConfig

    @cached_property
    def root(self) -> Path:
        """The lineage's folder."""
        return self.runs / self.name

    def iteration(self, t: int) -> Path:
        """The folder of iteration t, in which θ_t answers and θ_{t+1} is trained."""
        return self.root / f"iter_{t:02d}"

    def eval_folder(self, t: int) -> Path:
        """Where the evaluations of θ_t lie."""
        return (self.root / "base" if t == 0 else self.iteration(t - 1)) / "eval"

    # Jobs, in the order in which they are done.

    def base_job(self) -> BaseJob:
        """θ_0 brought in; or, if the recipe trains its own, the untrained model."""
        own = not self.config.model.path
        job = BaseJob(
            output=self.root / "base" / "model",
            seed=self.config.seed,
            model=self.config.model,
            sft=self.config.sft if own else None,
            chat=self.config.chat,
        )
        return self._shared(job, "init") if own else job

    def prompts_job(self, tokenizer: ModelVersion) -> PromptsJob:
        """The SFT data."""
        return PromptsJob(
            output=self.iteration(0) / "prompts",
            seed=self.config.seed,
            config=self.config.prompts,
            chat=self.config.chat,
            tokenizer=tokenizer,
            max_new_tokens=self.config.generate.max_new_tokens,
            trust_remote_code=self.config.model.trust_remote_code,
        )

    def sft_job(self, untrained: ModelVersion, prompts: PromptSet) -> TrainJob:
        """θ_0 of a recipe that trains its own. Lineages with the same data and settings share it."""
        job = TrainJob(
            output=Path(),
            weights=Path(),
            seed=self.config.seed,
            t=-1,
            config=resolved(self.config.sft.train, 0),
            model=self.config.model,
            start=untrained,
            prompts=prompts,
        )
        shared: TrainJob = self._shared(job, "train")
        return shared.model_copy(update={"weights": shared.output.parent / "model"})

    def generate_job(
        self, t: int, opponent: ModelVersion, prompts: PromptSet, answerers: Sequence[ModelVersion] = ()
    ) -> GenerateJob:
        """The opponent answers, or whoever answers in its place."""
        output = self.iteration(t) / "generations"
        engine = interpreter.chosen(self.config.generate, self.config.model, output)
        return GenerateJob(
            output=output,
            seed=self.config.game_seed,
            t=t,
            config=resolved(self.config.generate, t).model_copy(update={"engine": engine}),
            model=self.config.model,
            opponent=opponent,
            prompts=prompts,
            answerers=tuple(answerers),
        )

    def pairs_job(
        self,
        t: int,
        prompts: PromptSet,
        generations: GenerationBatch,
        previous: GenerationBatch | None,
        initial: GenerationBatch | None = None,
    ) -> PairsJob:
        """D_t, joined with D_{t-1} if the configuration mixes, and with θ_0's answers if the objective reads them."""
        config = resolved(self.config.pairs, t)
        return PairsJob(
            output=self.iteration(t) / "pairs",
            seed=self.config.game_seed,
            t=t,
            config=config,
            prompts=prompts,
            generations=generations,
            previous=previous if at(config.mix_previous, t) else None,
            initial=initial if self.config.train.history_weight_in(t) else None,
        )

    def score_job(
        self, t: int, opponent: ModelVersion, pairs: PairDataset, base: ModelVersion | None = None
    ) -> ScoreJob:
        """The opponent's log-probabilities, carried-over pairs included, and θ_0's if the reference is anchored."""
        return ScoreJob(
            output=self.iteration(t) / "scores",
            t=t,
            model=self.config.model,
            opponent=opponent,
            pairs=pairs,
            micro_batch_tokens=self.config.train.micro_batch_tokens,
            speed=self.config.train.speed,
            base=base if self.config.train.anchor_in(t) else None,
        )

    def train_job(self, t: int, opponent: ModelVersion, pairs: PairDataset, scores: ScoredPairs) -> TrainJob:
        """θ_{t+1} from θ_t."""
        return TrainJob(
            output=self.iteration(t) / "train",
            weights=self.iteration(t) / "model",
            seed=self.config.game_seed + t,
            held_out_seed=self.config.seed,
            t=t,
            config=resolved(self.config.train, t),
            model=self.config.model,
            start=opponent,
            pairs=pairs,
            scores=scores,
        )

    def control(self, name: str) -> Path:
        """The folder of a control."""
        return self.root / "controls" / name

    # What is there.

    def records(self) -> list[IterationRecord]:
        """The records of all finished iterations, in order. Paths are where the files lie now, had `runs` moved."""
        found: list[IterationRecord] = []
        while (record := self.record(len(found))) is not None:
            found.append(record)
        return found

    def record(self, t: int) -> IterationRecord | None:
        """The record of iteration t; None if that is not finished."""
        path = self.iteration(t) / "record.json"
        if not path.exists():
            return None
        record = load(IterationRecord, path)
        was = record.player.path.parents[2]
        return IterationRecord.model_validate(moved(dump(record), was, self.runs))

    def page(self, t: int) -> Path:
        """What a person reads of iteration t."""
        return self.iteration(t) / "report.md"

    def reports(self, t: int) -> list[EvalReport]:
        """The evaluations of θ_t that are published."""
        return reports_in(self.eval_folder(t))

    def player(self, t: int) -> ModelVersion:
        """θ_{t+1}, which iteration t has trained."""
        return trained(self.iteration(t) / "model")

    def sft_model(self, untrained: ModelVersion, prompts: PromptSet) -> ModelVersion:
        """θ_0 of a recipe that trains its own."""
        return trained(self.sft_job(untrained, prompts).weights)

    def changed(self, changes: Sequence[Mapping[str, Any]]) -> "Lineage":
        """The lineage with these settings laid over its own, one after the other. `ConfigError` if one cannot be."""
        values = dump(self.config)
        for change in changes:
            values = merge(values, change)
        return replace(self, config=validate(values)) if changes else self

    def one_more(self) -> RunConfig:
        """The configuration that plays one iteration after the head. Controls stay as they were.

        Raises `ConfigError` if the gate has stopped the game.
        """
        records = self.records()
        if ended := self.ended_by_gate():
            raise ConfigError(
                f"the gate ended lineage {self.name} ({ended}): to go on all the same, use spin run "
                f"{self.config.recipe} --lineage {self.name} --iterations {len(records) + 1} --set gate.rule=best"
            )
        return self.config.model_copy(update={"iterations": len(records) + 1, "controls": ControlsConfig()})

    def ended_by_gate(self) -> str | None:
        """Why the gate stopped the game at its head; None if it did not, or shall do so no longer."""
        records = self.records()
        stopped = records and records[-1].gate.outcome == "stop" and self.config.gate.rule == "stop"
        return records[-1].gate.reason if stopped else None

    def published(self) -> list[Path]:
        """Every published folder of this lineage. A hidden one is not, even if a kill left a manifest in it."""
        folders = (path.parent for path in self.root.rglob(store_identity.MANIFEST))
        return sorted(folder for folder in folders if not folder.name.startswith("."))

    def save_record(self, record: IterationRecord) -> None:
        """Write an iteration's record."""
        files.write_json(self.iteration(record.t) / "record.json", record.model_dump(mode="json"))

    def _shared(self, job: J, name: str) -> J:
        identity = store_identity.digest_of(store_identity.identity_of(job.model_dump(mode="json")))
        return job.model_copy(update={"output": self.runs / SHARED / identity[:16] / name})


def find(runs: Path, name: str) -> Lineage:
    """The lineage of that name. `ConfigError` if there is none."""
    path = check_name(runs, name) / "lineage.json"
    if not path.exists():
        there = ", ".join(names(runs)) or "none yet"
        raise ConfigError(f"there is no lineage {name!r} in {runs} (there: {there}): start it with spin run")
    return Lineage(runs=runs, name=name, config=load(RunConfig, path, "config"))


def names(runs: Path) -> list[str]:
    """The names of all lineages in a folder."""
    return sorted(path.parent.name for path in runs.glob("*/lineage.json"))


def check_name(runs: Path, name: str) -> Path:
    """The lineage's folder, if the name can be one."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a lineage: use lower-case letters, digits and -, at most 63")
    return runs / name


def trained(folder: Path) -> ModelVersion:
    """The model that a finished training published."""
    model = artifacts.read_record(folder, ModelVersion)
    if model is None:
        raise DamagedArtifact(
            f"{folder} is gone, though its training is published: remove {folder.parent / 'train'} too"
        )
    return model


def reports_in(folder: Path) -> list[EvalReport]:
    """The evaluations published below a folder, by suite."""
    found = [
        artifacts.read_record(path.parent, EvalReport)
        for path in sorted(folder.glob(f"[!.]*/{store_identity.MANIFEST}"))
    ]
    return [report for report in found if report is not None]
