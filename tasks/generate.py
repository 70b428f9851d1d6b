"""The opponent answers."""

from spin_core.jobs import GenerateJob
from spin_core.lineage import Lineage
from spin_core.records import GenerationBatch, ModelVersion, PromptSet
from tasks.frame import phase_task


@phase_task(GenerationBatch, "generate t={t}")
def generate(game: Lineage, t: int, opponent: ModelVersion, prompts: PromptSet) -> GenerateJob:
    """y' ~ p_θt(.|x) for every training prompt."""
    return game.generate_job(t, opponent, prompts)
