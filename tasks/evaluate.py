"""Scoring model versions."""

from pathlib import Path

from prefect.logging import get_run_logger

from spin_core import rescore, suites
from spin_core.jobs import BenchmarkJob, EvaluateJob, MtBenchJob
from spin_core.lineage import Lineage
from spin_core.records import EvalReport, ModelVersion, PromptSet
from tasks import display
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
    anew: bool = True,
) -> Reports:
    """Every suite that the configuration asks for, on one model. `against` are its opponent's reports.

    What was scored under other settings is scored `anew`, or else refused with `StaleArtifact`.
    """
    opponent = next((report for report in against if report.suite == "self-play"), None)
    model = folder.parent.name if folder else f"θ_{player.t}"
    jobs = suites.evaluate_jobs(game, player, prompts, opponent, folder, temperature, against)
    if not anew:
        rescore.check(jobs, game.name)
    for job in jobs:
        tell(rescore.make_way(job))
    return tuple(run_suite(model, job) for job in jobs)


def tell(note: str) -> None:
    """Tell a person, if there is something to tell."""
    if note:
        display.current.noted(note)
        get_run_logger().info(note)
