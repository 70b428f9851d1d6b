"""The phase `frontier`, on a tiny real model that answers the demo's prompts."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spin_core.config.evaluate import EvaluateConfig
from spin_core.config.generate import GenerateConfig
from spin_core.data import demo
from spin_core.evaluation import exact
from spin_core.evaluation.frontier.axes import EXACT
from spin_core.phases import evaluate, frontier
from spin_core.runtime import phase, progress
from spin_core.store import artifacts
from spin_core.store.evaluation_jobs import EvaluateJob, FrontierConfig, FrontierJob, FrontierSpeed
from spin_core.store.records import EvalReport
from tests.support.helpers import save_tiny_model
from tests.support.lineages.demo_prompts import prompt_set
from tests.support.lineages.small_jobs import CPU, version_of

TEMPERATURES = (0.3, 0.5, 1.0)
ROWS = 6


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return prompt_set(tmp_path_factory.mktemp("prompts") / "prompts", demo.prompts(ROWS)[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), demo.build_tokenizer())


def frontier_job(output: Path, model, prompts, temperatures=TEMPERATURES, scores: Path | None = None) -> FrontierJob:
    return FrontierJob(
        output=output,
        config=FrontierConfig(temperatures=temperatures),
        model=CPU,
        player=version_of(model),
        prompts=prompts,
        speed=FrontierSpeed(batch_size=4, scores=scores),
    )


def do(job: FrontierJob) -> EvalReport:
    return phase.execute(job, EvalReport, frontier.run, progress.Progress())


def values(report: EvalReport) -> dict[tuple[float, str, str], float]:
    """Value by temperature, metric and item."""
    rows = pq.read_table(report.path / "frontier.parquet").to_pylist()
    return {(row["temperature"], row["task"], row["item"]): row["value"] for row in rows}


def test_the_axes_are_exact_distances():
    assert EXACT == (exact.TOTAL_VARIATION, exact.INVALID_MASS)


def test_every_item_has_both_axes_at_every_temperature(tmp_path, model, prompts):
    report = do(frontier_job(tmp_path / "frontier", model, prompts))
    assert (report.suite, report.scores) == ("frontier", {}), "no score, so no column of the leaderboard"
    measured = values(report)
    assert len(measured) == len(TEMPERATURES) * len(EXACT) * ROWS
    assert {(temperature, task) for temperature, task, _ in measured} == {(t, x) for t in TEMPERATURES for x in EXACT}


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_values_are_those_of_the_diagnostics_at_that_temperature(tmp_path, model, prompts, temperature):
    measured = values(do(frontier_job(tmp_path / "frontier", model, prompts)))
    job = EvaluateJob(
        output=tmp_path / "self-play",
        config=EvaluateConfig(self_play=False, exact=True),
        generate=GenerateConfig(temperature=temperature),
        model=CPU,
        player=version_of(model),
        prompts=prompts,
        opponent=None,
    )
    report = phase.execute(job, EvalReport, evaluate.run, progress.Progress())
    for row in pq.read_table(report.path / "items.parquet").to_pylist():
        if row["task"] in EXACT:
            assert measured[temperature, row["task"], row["item"]] == pytest.approx(row["value"], rel=1e-5)


def test_lineages_share_the_report_on_their_first_model(tmp_path, model, prompts, monkeypatch):
    scores = tmp_path / "scores"
    first = do(frontier_job(tmp_path / "one" / "frontier", model, prompts, scores=scores))
    monkeypatch.setattr(frontier, "measure", lambda *_: pytest.fail("measured again"))
    second = do(frontier_job(tmp_path / "two" / "frontier", model, prompts, scores=scores))
    assert first.digest == second.digest
    assert artifacts.verify(second.path) == []
    for other in ({"temperatures": (0.3, 0.5, 0.7), "scores": scores}, {"scores": None}):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            do(frontier_job(tmp_path / "three" / "frontier", model, prompts, **other))
