"""Training the player of an iteration, and the controls that it is compared with."""

from spin_core.lineage import control_jobs, phase_jobs
from spin_core.lineage.controls import Control
from spin_core.lineage.lineage import Lineage
from spin_core.store.jobs import PreferencesJob, ScoreJob, TrainJob
from spin_core.store.records import ModelVersion, PairDataset, PromptSet, ScoredPairs, TrainRun
from tasks.phase_task import phase_task


@phase_task(TrainRun, "train t={t}")
def train(lineage: Lineage, t: int, opponent: ModelVersion, pairs: PairDataset, scores: ScoredPairs) -> TrainJob:
    """Train θ_{t+1}: it starts from θ_t and learns to tell real from generated responses."""
    return phase_jobs.train_job(lineage, t, opponent, pairs, scores)


@phase_task(PairDataset, "read preferences")
def read_preferences(lineage: Lineage, control: Control, base: ModelVersion, prompts: PromptSet) -> PreferencesJob:
    """Read preference data as pairs."""
    return control_jobs.preferences_job(lineage, control, base, prompts)


@phase_task(ScoredPairs, "score preferences")
def score_preferences(lineage: Lineage, control: Control, start: ModelVersion, pairs: PairDataset) -> ScoreJob:
    """Compute the reference's log-probability of every preference."""
    return control_jobs.score_job(lineage, control, start, pairs)


@phase_task(TrainRun, "train {control.name}")
def train_control(
    lineage: Lineage,
    control: Control,
    start: ModelVersion,
    prompts: PromptSet,
    pairs: PairDataset | None,
    scores: ScoredPairs | None,
) -> TrainJob:
    """Train a control."""
    return control_jobs.train_job(lineage, control, start, prompts, pairs, scores)
