"""θ_0 and the SFT data."""

from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.store.jobs import BaseJob, PromptsJob, TrainJob
from spin_core.store.records import ModelVersion, PromptSet, TrainRun
from tasks.phase_task import phase_task


@phase_task(ModelVersion, "base model")
def base_model(lineage: Lineage) -> BaseJob:
    """Import the SFT model, or create an untrained one."""
    return phase_jobs.base_job(lineage)


@phase_task(PromptSet, "prepare prompts")
def prepare_prompts(lineage: Lineage, tokenizer: ModelVersion) -> PromptsJob:
    """Read, split and tokenise the SFT data."""
    return phase_jobs.prompts_job(lineage, tokenizer)


@phase_task(TrainRun, "train sft")
def train_sft(lineage: Lineage, untrained: ModelVersion, prompts: PromptSet) -> TrainJob:
    """Train θ_0 on the SFT data."""
    return phase_jobs.sft_job(lineage, untrained, prompts)
