"""Scoring model versions."""

from pathlib import Path

from spin_core import suites
from spin_core.jobs import BenchmarkJob, EvaluateJob, MtBenchJob
from spin_core.lineage import Lineage
from spin_core.records import EvalReport, ModelVersion, PromptSet
from tasks.frame import phase_task

Reports = tuple[EvalReport, ...]
Suite = EvaluateJob | BenchmarkJob | MtBenchJob


@phase_task(EvalReport, "evaluate {model} {job.output.name}")
def run_suite(model: str, job: Suite) -> Suite:  # noqa: ARG001 (for its name)
    """One suite on one model."""
    return job


def evaluate(
    game: Lineage,
    player: ModelVersion,
    prompts: PromptSet | None,
    against: Reports = (),
    *,
    folder: Path | None = None,
    temperature: float | None = None,
) -> Reports:
    """Every suite that the configuration asks for, on one model. `against` are its opponent's reports."""
    opponent = next((report for report in against if report.suite == "self-play"), None)
    model = folder.parent.name if folder else f"θ_{player.t}"
    jobs = suites.evaluate_jobs(game, player, prompts, opponent, folder, temperature, against)
    return tuple(run_suite(model, job) for job in jobs)
