"""A lineage on disk: θ_0, θ_1, …, what made them, and what comes next.

Writes the job of every phase of every iteration, so that the flow reads as the algorithm. Knows where things lie:

    runs/<lineage>/lineage.json                                   configuration
    runs/<lineage>/base/{model,eval/<suite>}                      θ_0
    runs/<lineage>/iter_00/{prompts,generations,pairs,scores,train,model,eval/<suite>,record.json}
    runs/<lineage>/controls/<name>/{train,model,eval/<suite>}
    runs/.sft/<identity>/                                         θ_0 of recipes that train their own, shared
    runs/.scores/<identity>/                                      what each task of lm-eval gave each model, shared
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from spin_core import config_metrics, engines, store, suites
from spin_core.config import SCHEDULE, ControlsConfig, RunConfig, at
from spin_core.errors import ConfigError, DamagedArtifact, StaleArtifact
from spin_core.jobs import (
    BaseJob,
    GenerateJob,
    Job,
    PairsJob,
    PromptsJob,
    ScoreJob,
    TrainJob,
)
from spin_core.recipes import merge, validate
from spin_core.records import (
    EvalReport,
    GenerationBatch,
    IterationRecord,
    ModelVersion,
    PairDataset,
    PromptSet,
    ScoredPairs,
    moved,
)

M = TypeVar("M", bound=BaseModel)
J = TypeVar("J", bound=Job)

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SHARED = ".sft"
"""Below the runs folder: models that recipes train for themselves, by identity."""
FREE = ("iterations", "controls", "evaluate", "gate", "metrics", "nightly", "push")
"""Settings that may differ from the ones a lineage was started with: no version depends on them. What was scored under
others of `evaluate` is scored anew (`rescore`)."""


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
        engine = engines.chosen(self.config.generate, self.config.model, output)
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
        folders = (path.parent for path in self.root.rglob(store.MANIFEST))
        return sorted(folder for folder in folders if not folder.name.startswith("."))

    def save_record(self, record: IterationRecord) -> None:
        """Write an iteration's record."""
        store.write_json(self.iteration(record.t) / "record.json", record.model_dump(mode="json"))

    def _shared(self, job: J, name: str) -> J:
        identity = store.digest_of(store.identity_of(job.model_dump(mode="json")))
        return job.model_copy(update={"output": self.runs / SHARED / identity[:16] / name})


def start(runs: Path, name: str, config: RunConfig) -> Lineage:
    """Begin a lineage, or go on with the one of that name. Call it with the lineage's lock held.

    Raises `StaleArtifact`, naming the fields, if it was started with other settings that touch what is built: a
    schedule may change for iterations that have not begun. Raises `ConfigError` if an engine is not installed or suites
    do not go together.
    """
    if config.generate.engine == "vllm":
        engines.required_python(config.generate.vllm)
    suites.check(config)
    config_metrics.check(config.metrics)
    path = check_name(runs, name) / "lineage.json"
    lineage = Lineage(runs=runs, name=name, config=config)
    if path.exists():
        have = load(RunConfig, path, "config")
        begun = max(1, sum(1 for _ in lineage.root.glob("iter_*")))
        for t in range(begun):
            changed = [
                item
                for item in store.differences(dump(resolved(have, t)), dump(resolved(config, t)))
                if item[0].split(".")[0] not in FREE and store.WAYS.isdisjoint(item[0].split("."))
            ]
            if changed:
                listed = "; ".join(
                    f"{field} = {store.short(was)}, not {store.short(now)}" for field, was, now in changed[:3]
                )
                raise StaleArtifact(
                    f"lineage {name} was started with {listed}: choose a new name with --lineage, or set the value back"
                )
    store.write_json(path, {"lineage": name, "config": dump(config)})
    return lineage


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
    model = store.read_record(folder, ModelVersion)
    if model is None:
        raise DamagedArtifact(
            f"{folder} is gone, though its training is published: remove {folder.parent / 'train'} too"
        )
    return model


def reports_in(folder: Path) -> list[EvalReport]:
    """The evaluations published below a folder, by suite."""
    found = [store.read_record(path.parent, EvalReport) for path in sorted(folder.glob(f"[!.]*/{store.MANIFEST}"))]
    return [report for report in found if report is not None]


def resolved(config: M, t: int) -> M:
    """The configuration with every schedule at its value in iteration t."""
    values: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            values[name] = resolved(value, t)
        elif SCHEDULE in field.metadata:
            values[name] = at(value, t)
    return config.model_copy(update=values)


def dump(config: BaseModel) -> dict[str, Any]:
    """A record or configuration as JSON values."""
    return config.model_dump(mode="json")


def load(kind: type[M], path: Path, key: str | None = None) -> M:
    """A record from a JSON file, or from one key of it."""
    try:
        values = json.loads(path.read_text("utf-8"))
        return kind.model_validate(values[key] if key else values)
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedArtifact(
            f"{path} is damaged ({reason}): restore it, or remove {path.parent} to start over"
        ) from error
