"""The text axes of the phase `frontier`, on tiny real models."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.generate import GenerateConfig
from spin_core.data.repetition import distinct_shares
from spin_core.evaluation.frontier import text
from spin_core.evaluation.frontier.text import measures, reference_nll
from spin_core.models.loading import load_model
from spin_core.phases import frontier
from spin_core.runtime import phase, progress
from spin_core.store.evaluation_jobs import FrontierConfig, FrontierJob, FrontierSpeed
from spin_core.store.records import EvalReport, PromptSet
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.small_jobs import CPU, version_of

TEMPERATURES = (0.3, 0.7, 1.5)
TASKS = {"distinct_2", "self_bleu", "faulty_share", "text_classifier"}
ROWS = 8


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> PromptSet:
    folder, tokenizer = tmp_path_factory.mktemp("prompts"), character_tokenizer()
    texts = [f"tell me about {number}" for number in range(ROWS)]
    columns = {
        "id": [str(number) for number in range(ROWS)],
        "prompt": texts,
        "response": ["it is a number"] * ROWS,
        "finish_reason": ["stop"] * ROWS,
        "prompt_ids": pa.array([[1, *tokenizer(text)["input_ids"]] for text in texts], pa.list_(pa.int32())),
        "response_ids": pa.array([[5, 2]] * ROWS, pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), folder / "held_out.parquet")
    return PromptSet(path=folder, digest="0" * 64, source="", revision=None, rows=0, held_out=ROWS, drops={})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [save_tiny_model(root / str(seed), character_tokenizer(), seed) for seed in range(2)]


def frontier_job(output: Path, model: Path, prompts: PromptSet, **config) -> FrontierJob:
    return FrontierJob(
        output=output,
        config=FrontierConfig(**{"temperatures": TEMPERATURES, **config}),
        model=CPU,
        player=version_of(model),
        prompts=prompts,
        generate=GenerateConfig(max_new_tokens=12, batch_size=4),
        speed=FrontierSpeed(batch_size=4),
    )


def do(job: FrontierJob) -> EvalReport:
    return phase.execute(job, EvalReport, frontier.run, progress.Progress())


def by_task(report: EvalReport) -> dict[tuple[float, str], list[float]]:
    """The values of a report by temperature and metric."""
    values: dict[tuple[float, str], list[float]] = {}
    for row in pq.read_table(report.path / "frontier.parquet").to_pylist():
        values.setdefault((row["temperature"], row["task"]), []).append(row["value"])
    return values


def table(*rows: tuple[str, list[int], str]) -> pa.Table:
    """Answers as the sweep keeps them."""
    columns = dict(
        zip(("generated", "generated_ids", "finish_reason"), map(list, zip(*rows, strict=True)), strict=True)
    )
    return pa.table({"id": [str(number) for number in range(len(rows))], **columns})


def test_every_temperature_has_every_metric_and_its_answers(tmp_path, models, prompts):
    report = do(frontier_job(tmp_path / "frontier", models[0], prompts))
    values = by_task(report)
    assert {task for _, task in values} <= TASKS
    assert {"self_bleu", "faulty_share", "text_classifier"} <= {task for _, task in values}
    for temperature in TEMPERATURES:
        answers = pq.read_table(report.path / f"answers-{temperature:g}.parquet")
        assert len(answers) == ROWS
        assert len(values[temperature, "faulty_share"]) == ROWS
        # The classifier is trained on half of the pairs, which do not count.
        assert len(values[temperature, "text_classifier"]) == ROWS // 2
        if (temperature, "distinct_2") in values:
            shares = distinct_shares(answers["generated"].to_pylist())
            assert np.mean(values[temperature, "distinct_2"]) == pytest.approx(shares[1])
    low, high = (pq.read_table(report.path / f"answers-{t:g}.parquet")["generated"].to_pylist() for t in (0.3, 1.5))
    assert low != high


def test_an_answer_is_faulty_if_it_loops_was_cut_is_empty_or_repeats_another():
    answers = table(
        ("fine", [7, 8, 2], "stop"),
        ("cut off", [7, 8, 9], "length"),
        (" ", [3, 2], "stop"),
        ("fine", [7, 8, 2], "stop"),
        ("na" * 40, [5, 6] * 40, "stop"),
        ("good", [9, 2], "stop"),
    )
    real = pa.table({"response": ["human"] * 6, "finish_reason": ["stop"] * 6})
    assert measures(answers, real)["faulty_share"].tolist() == [0, 1, 1, 1, 1, 0]
    cut = pa.table({"response": ["human"] * 6, "finish_reason": ["length"] * 6})
    assert measures(answers, cut)["faulty_share"].tolist() == [0, 0, 1, 1, 1, 0], "the human response was cut too"


def test_the_reference_scores_the_text_of_answers_in_its_own_tokens(models):
    model, tokenizer = load_model(models[1], CPU), character_tokenizer()
    answers = table(("abc", [1], "stop"), ("abc", [1], "length"), ("", [2], "stop"))
    nlls = reference_nll(model, tokenizer, ["tell"] * 3, answers, 4)

    def alone(prompt: list[int], response: list[int]) -> float:
        return -text.sequence_logps(model, [prompt], [response], 100).item() / len(response)

    prompt, response = [1, *tokenizer("tell")["input_ids"]], tokenizer("abc")["input_ids"]
    want = [alone(prompt, [*response, 2]), alone(prompt, response), alone(prompt, [2])]
    assert nlls.tolist() == pytest.approx(want, rel=1e-4)


def test_what_does_not_fit_into_the_reference_loses_the_beginning_of_its_prompt(models):
    model, tokenizer = load_model(models[1], CPU), character_tokenizer()
    model.config.max_position_embeddings = 8
    answers = table(("abcd", [1], "length"))
    long, short = (reference_nll(model, tokenizer, [prompt], answers, 4) for prompt in ("x" * 50 + "tell", "xtell"))
    assert long == pytest.approx(short)
    assert np.isfinite(reference_nll(model, tokenizer, ["x"], table(("y" * 30, [1], "length")), 4)).all()


def test_a_reference_adds_its_metric(tmp_path, models, prompts):
    report = do(frontier_job(tmp_path / "frontier", models[0], prompts, reference=models[1]))
    values = by_task(report)
    assert all(len(values[temperature, "reference_nll"]) == ROWS for temperature in TEMPERATURES)


def test_a_killed_sweep_continues_at_the_temperature_it_was_at(tmp_path, models, prompts, monkeypatch):
    whole = do(frontier_job(tmp_path / "whole", models[0], prompts))
    job, requests = frontier_job(tmp_path / "frontier", models[0], prompts), []
    answer = text.answer_requests

    def once(*arguments):
        requests.append(1)
        if len(requests) == 2:
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(text, "answer_requests", once)
    with pytest.raises(KeyboardInterrupt):
        do(job)
    assert do(job).digest == whole.digest
    assert len(requests) == 2 + len(TEMPERATURES) - 1
