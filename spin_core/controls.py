"""Jobs of DPO on preference data, the control that stands in the same table as the game: a lineage's, like the others.

runs/<lineage>/controls/dpo-…/{pairs,scores,train,model,eval/<suite>}
"""

from pathlib import Path

from spin_core.config import DpoConfig, at
from spin_core.jobs import PreferencesJob, ScoreJob, TrainJob
from spin_core.lineage import Lineage, resolved
from spin_core.records import ModelVersion, PairDataset, PromptSet, ScoredPairs


def dpo_folder(game: Lineage, dpo: DpoConfig) -> Path:
    """Where this control lies."""
    return game.control(f"dpo-beta-{dpo.beta:g}-lr-{learning_rate(game, dpo):g}-epochs-{dpo.epochs}")


def learning_rate(game: Lineage, dpo: DpoConfig) -> float:
    """The peak learning rate: DPO's own, or the player's."""
    return dpo.learning_rate or at(game.config.train.learning_rate, 0)


def preferences_job(game: Lineage, dpo: DpoConfig, base: ModelVersion, prompts: PromptSet) -> PreferencesJob:
    """The preference data, as pairs, rendered and capped as the SFT data are."""
    config = game.config
    return PreferencesJob(
        output=dpo_folder(game, dpo) / "pairs",
        seed=config.seed,
        source=dpo.source,
        columns=dpo.columns,
        sample=dpo.sample,
        chat=config.chat,
        tokenizer=base,
        prompts=prompts,
        max_prompt_tokens=config.prompts.max_prompt_tokens,
        max_new_tokens=config.generate.max_new_tokens,
        trust_remote_code=config.model.trust_remote_code,
    )


def dpo_score_job(game: Lineage, dpo: DpoConfig, base: ModelVersion, pairs: PairDataset) -> ScoreJob:
    """θ_0's log-probabilities of the preferences: DPO's reference."""
    job = game.score_job(0, base, pairs)
    return job.model_copy(update={"output": dpo_folder(game, dpo) / "scores"})


def dpo_train_job(
    game: Lineage, dpo: DpoConfig, base: ModelVersion, pairs: PairDataset, scores: ScoredPairs
) -> TrainJob:
    """DPO of θ_0 (arXiv 2305.18290): the logistic loss on people's preferences, with θ_0 for opponent."""
    folder = dpo_folder(game, dpo)
    changes = {
        "loss": "logistic",
        "beta": dpo.beta,
        "learning_rate": learning_rate(game, dpo),
        "epochs": dpo.epochs,
        "nll_weight": 0.0,
        "anchor": 0.0,
    }
    return TrainJob(
        output=folder / "train",
        weights=folder / "model",
        seed=game.config.seed,
        t=0,
        config=resolved(game.config.train, 0).model_copy(update=changes),
        model=game.config.model,
        start=base,
        pairs=pairs,
        scores=scores,
    )
