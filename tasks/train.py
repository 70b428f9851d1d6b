"""Training: the player of an iteration, and the continued fine-tuning it is compared with."""

from spin_core.jobs import TrainJob
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
