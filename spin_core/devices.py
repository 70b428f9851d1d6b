"""How many devices a job holds: what its seconds are counted for."""

from spin_core.config import GenerateConfig, VllmConfig
from spin_core.jobs import (
    BaseJob,
    BenchmarkJob,
    EvaluateJob,
    GenerateJob,
    Job,
    MtBenchJob,
    PairsJob,
    PreferencesJob,
    PromptsJob,
)


def devices_of(job: Job, ranks: int) -> int:
    """How many devices a job holds while it is done."""
    match job:
        case BaseJob() | PromptsJob() | PreferencesJob() | PairsJob():
            return 0
        case GenerateJob():
            speed = job.config.speed
            workers = speed.workers + (speed.ray.workers if speed.ray else 0)
            return max(1, workers) * share_of(job.config)
        case EvaluateJob():
            return 1
        case MtBenchJob():
            return share_of(job.generate)
        case BenchmarkJob():
            return parallel(job.config.vllm) if job.config.engine == "vllm" else 1
    return ranks


def share_of(config: GenerateConfig) -> int:
    """Devices of one worker."""
    return parallel(config.vllm) if config.engine == "vllm" else 1


def parallel(config: VllmConfig) -> int:
    """Devices over which vLLM lays one model."""
    return config.speed.tensor_parallel
