"""The jobs of a control (`controls`): its preference data, their log-probabilities, its training."""

from spin_core.config.base import at_iteration
from spin_core.lineage import phase_jobs
from spin_core.lineage.controls import Control
from spin_core.lineage.lineage import Lineage
from spin_core.store.jobs import PreferencesJob, ScoreJob, TrainJob
from spin_core.store.records import ModelVersion, PairDataset, PromptSet, ScoredPairs


def preferences_job(lineage: Lineage, control: Control, base: ModelVersion, prompts: PromptSet) -> PreferencesJob:
    """Read the preference data as pairs, rendered and cut like the SFT data."""
    config, settings = lineage.config, lineage.config.controls.dpo
    assert settings is not None, "only DPO reads preferences"
    return PreferencesJob(
        output=lineage.control(control.name) / "pairs",
        seed=config.seed,
        source=settings.source,
        columns=settings.columns,
        sample=settings.sample,
        chat=config.chat,
        tokenizer=base,
        prompts=prompts,
        max_prompt_tokens=config.prompts.max_prompt_tokens,
        max_new_tokens=config.generate.max_new_tokens,
        trust_remote_code=config.model.trust_remote_code,
    )


def score_job(lineage: Lineage, control: Control, start: ModelVersion, pairs: PairDataset) -> ScoreJob:
    """Take the log-probabilities of the preferences under the version that DPO starts from: its reference."""
    # Scored as in iteration 0, without a second reference.
    job = phase_jobs.score_job(lineage, 0, start, pairs)
    return job.model_copy(update={"output": lineage.control(control.name) / "scores"})


def train_job(
    lineage: Lineage,
    control: Control,
    start: ModelVersion,
    prompts: PromptSet,
    pairs: PairDataset | None,
    scores: ScoredPairs | None,
) -> TrainJob:
    """Train a control, with the player's optimizer and batch.

    Args:
        lineage: The lineage.
        control: What to train.
        start: The version to start from.
        prompts: The SFT data, read by controls that learn from the prompts.
        pairs: The pairs or preferences that others learn from.
        scores: The reference's log-probabilities of `pairs`.
    """
    folder = lineage.control(control.name)
    return TrainJob(
        output=folder / "train",
        weights=folder / "model",
        seed=lineage.config.run_seed,
        held_out_seed=lineage.config.seed,
        t=control.after,
        config=at_iteration(lineage.config.train, 0).model_copy(update=dict(control.changes)),
        model=lineage.config.model,
        start=start,
        pairs=pairs,
        scores=scores,
        prompts=prompts if control.learns_from == "prompts" else None,
        steps=control.steps,
        tokens=control.tokens,
        share=control.share,
    )
