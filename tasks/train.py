"""Training: the player of an iteration, and what it is compared with: continued fine-tuning, and DPO."""

from spin_core import controls
from spin_core.config import DpoConfig
from spin_core.jobs import PreferencesJob, ScoreJob, TrainJob
from spin_core.lineage import Lineage
from spin_core.records import ModelVersion, PairDataset, PromptSet, ScoredPairs, TrainRun
from tasks.frame import phase_task


@phase_task(TrainRun, "train t={t}")
def train(game: Lineage, t: int, opponent: ModelVersion, pairs: PairDataset, scores: ScoredPairs) -> TrainJob:
    """θ_{t+1}: started from θ_t, it learns to tell real from generated."""
    return game.train_job(t, opponent, pairs, scores)


@phase_task(TrainRun, "continue sft lr={learning_rate:g}")
def continue_sft(game: Lineage, base: ModelVersion, prompts: PromptSet, learning_rate: float, steps: int) -> TrainJob:
    """A control: fine-tune θ_0 on the same data for as many steps."""
    return game.sft_control_job(base, prompts, learning_rate, steps)


@phase_task(PairDataset, "read preferences")
def read_preferences(game: Lineage, dpo: DpoConfig, base: ModelVersion, prompts: PromptSet) -> PreferencesJob:
    """Preference data as pairs."""
    return controls.preferences_job(game, dpo, base, prompts)


@phase_task(ScoredPairs, "score preferences")
def score_preferences(game: Lineage, dpo: DpoConfig, base: ModelVersion, pairs: PairDataset) -> ScoreJob:
    """log p_θ0 of every preference."""
    return controls.dpo_score_job(game, dpo, base, pairs)


@phase_task(TrainRun, "train dpo")
def train_dpo(game: Lineage, dpo: DpoConfig, base: ModelVersion, pairs: PairDataset, scores: ScoredPairs) -> TrainJob:
    """A control: θ_0 learns from people's preferences in place of its own play."""
    return controls.dpo_train_job(game, dpo, base, pairs, scores)
