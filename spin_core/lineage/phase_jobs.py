"""The job of each phase of a lineage: inputs, settings and output folder, in the order of the phases.
The jobs that score a version are in `suite_jobs`, those of controls in `control_jobs`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from spin_core.config.base import at, at_iteration
from spin_core.lineage.lineage import SHARED, Lineage, trained_model
from spin_core.runtime import interpreter
from spin_core.store import artifacts
from spin_core.store.identity import MANIFEST, digest_of, identity_of
from spin_core.store.jobs import BaseJob, GenerateJob, Job, PairsJob, PromptsJob, ScoreJob, TrainJob
from spin_core.store.records import GenerationBatch, ModelVersion, PairDataset, PromptSet, ScoredPairs

_J = TypeVar("_J", bound=Job)


def base_job(lineage: Lineage) -> BaseJob:
    """Bring in θ_0, or make the untrained model of a recipe that trains its own θ_0."""
    own = not lineage.config.model.path
    job = BaseJob(
        output=lineage.root / "base" / "model",
        seed=lineage.config.seed,
        model=lineage.config.model,
        sft=lineage.config.sft if own else None,
        chat=lineage.config.chat,
    )
    return _shared(lineage, job, "init") if own else job


def prompts_job(lineage: Lineage, tokenizer: ModelVersion) -> PromptsJob:
    """Read the SFT data."""
    return PromptsJob(
        output=lineage.iteration(0) / "prompts",
        seed=lineage.config.seed,
        config=lineage.config.prompts,
        chat=lineage.config.chat,
        tokenizer=tokenizer,
        max_new_tokens=lineage.config.generate.max_new_tokens,
        trust_remote_code=lineage.config.model.trust_remote_code,
    )


def sft_job(lineage: Lineage, untrained: ModelVersion, prompts: PromptSet) -> TrainJob:
    """Train θ_0 from a new or a given model. Lineages with the same data and settings share it."""
    job = TrainJob(
        output=Path(),
        weights=Path(),
        seed=lineage.config.seed,
        t=-1,
        config=at_iteration(lineage.config.sft.train, 0),
        model=lineage.config.model,
        start=untrained,
        prompts=prompts,
    )
    shared: TrainJob = _shared(lineage, job, "train")
    return shared.model_copy(update={"weights": shared.output.parent / "model"})


def sft_model(lineage: Lineage, untrained: ModelVersion, prompts: PromptSet) -> ModelVersion:
    """The model that `sft_job` has trained."""
    return trained_model(sft_job(lineage, untrained, prompts).weights)


def is_base_built(lineage: Lineage) -> bool:
    """Whether θ_0 is published."""
    base = artifacts.read_record(base_job(lineage).output, ModelVersion)
    if base is None or not lineage.config.trains_base:
        return base is not None
    prompts = artifacts.read_record(prompts_job(lineage, base).output, PromptSet)
    return prompts is not None and (sft_job(lineage, base, prompts).weights / MANIFEST).exists()


def generate_job(
    lineage: Lineage, t: int, opponent: ModelVersion, prompts: PromptSet, answerers: Sequence[ModelVersion] = ()
) -> GenerateJob:
    """Let the opponent answer the training prompts, or the models in `answerers` instead of it."""
    output = lineage.iteration(t) / "generations"
    engine = interpreter.choose_engine(lineage.config.generate, lineage.config.model, output)
    return GenerateJob(
        output=output,
        seed=lineage.config.run_seed,
        t=t,
        config=at_iteration(lineage.config.generate, t).model_copy(update={"engine": engine}),
        model=lineage.config.model,
        opponent=opponent,
        prompts=prompts,
        answerers=tuple(answerers),
    )


def pairs_job(
    lineage: Lineage,
    t: int,
    prompts: PromptSet,
    generations: GenerationBatch,
    previous: GenerationBatch | None,
    initial: GenerationBatch | None = None,
) -> PairsJob:
    """Build D_t from the opponent's answers.

    Args:
        lineage: The lineage.
        t: The iteration.
        prompts: The SFT data.
        generations: The answers of iteration t.
        previous: The answers of iteration t - 1, whose pairs are added if `pairs.mix_previous` is on.
        initial: The answers of iteration 0, which are added if the objective reads them.
    """
    config = at_iteration(lineage.config.pairs, t)
    if lineage.config.train.needs_identical_pairs(t):
        config = config.model_copy(update={"drop_identical": False})
    return PairsJob(
        output=lineage.iteration(t) / "pairs",
        seed=lineage.config.run_seed,
        t=t,
        config=config,
        prompts=prompts,
        generations=generations,
        previous=previous if at(config.mix_previous, t) else None,
        initial=initial if lineage.config.train.history_weight_in(t) else None,
    )


def score_job(
    lineage: Lineage, t: int, opponent: ModelVersion, pairs: PairDataset, base: ModelVersion | None = None
) -> ScoreJob:
    """Take the opponent's log-probabilities of all pairs, and those of θ_0 if the reference is anchored to it."""
    return ScoreJob(
        output=lineage.iteration(t) / "scores",
        t=t,
        model=lineage.config.model,
        opponent=opponent,
        pairs=pairs,
        micro_batch_tokens=lineage.config.train.micro_batch_tokens,
        speed=lineage.config.train.speed,
        base=base if lineage.config.train.anchor_in(t) else None,
    )


def train_job(lineage: Lineage, t: int, opponent: ModelVersion, pairs: PairDataset, scores: ScoredPairs) -> TrainJob:
    """Train θ_{t+1}, starting from the opponent θ_t."""
    return TrainJob(
        output=lineage.iteration(t) / "train",
        weights=lineage.iteration(t) / "model",
        seed=lineage.config.run_seed + t,
        held_out_seed=lineage.config.seed,
        t=t,
        config=at_iteration(lineage.config.train, t),
        model=lineage.config.model,
        start=opponent,
        pairs=pairs,
        scores=scores,
    )


def _shared(lineage: Lineage, job: _J, name: str) -> _J:
    """The job with its output among the models that lineages share, below its own identity."""
    identity = digest_of(identity_of(job))
    return job.model_copy(update={"output": lineage.runs / SHARED / identity[:16] / name})
