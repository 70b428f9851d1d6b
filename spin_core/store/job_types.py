"""All classes of jobs, by phase."""

from spin_core.store.evaluation_jobs import BenchmarkJob, EvaluateJob, FrontierJob, MtBenchJob
from spin_core.store.jobs import (
    BaseJob,
    GenerateJob,
    Job,
    PairsJob,
    PreferencesJob,
    PromptsJob,
    ScoreJob,
    TrainJob,
)

JOB_TYPES: dict[str, type[Job]] = {
    kind.model_fields["phase"].default: kind
    for kind in (
        *(BaseJob, PromptsJob, GenerateJob, PairsJob, ScoreJob, TrainJob, PreferencesJob),
        *(EvaluateJob, BenchmarkJob, MtBenchJob, FrontierJob),
    )
}
"""The class of the jobs of each phase."""
