"""Pairs, and the opponent's log-probabilities of them."""

from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.store.jobs import PairsJob, ScoreJob
from spin_core.store.records import GenerationBatch, ModelVersion, PairDataset, PromptSet, ScoredPairs
from tasks.phase_task import phase_task


@phase_task(PairDataset, "build pairs t={t}")
def build_pairs(
    lineage: Lineage,
    t: int,
    prompts: PromptSet,
    generations: GenerationBatch,
    previous: GenerationBatch | None,
    initial: GenerationBatch | None,
) -> PairsJob:
    """D_t = filter(real, generated) ∪ D_{t-1}."""
    return phase_jobs.pairs_job(lineage, t, prompts, generations, previous, initial)


@phase_task(ScoredPairs, "score t={t}")
def score(lineage: Lineage, t: int, opponent: ModelVersion, pairs: PairDataset, base: ModelVersion) -> ScoreJob:
    """Compute log p_θt of every pair once, so that training needs only one model in memory."""
    return phase_jobs.score_job(lineage, t, opponent, pairs, base)
