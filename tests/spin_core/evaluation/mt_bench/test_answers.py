"""The answers that a tiny real model gives to MT-Bench's questions."""

import json
import shutil
from pathlib import Path

import pytest

from spin_core.config.generate import GenerateConfig
from spin_core.data.seeds import seed_of
from spin_core.evaluation.mt_bench.answers import TEMPERATURES, Answerer, answers_folder, fit_prompt
from spin_core.inference.engine import Request
from spin_core.inference.factory import make_engine
from spin_core.runtime import launch
from spin_core.store.records import EvalReport
from tests.support.helpers import character_tokenizer
from tests.support.lineages.mt_bench_jobs import (
    QUESTIONS,
    data,
    grade_by_question,
    models,
    mt_bench_job,
    needs_vllm,
    rows_of,
    run_mt_bench,
    short_pauses,
)
from tests.support.lineages.small_jobs import CPU
from tests.support.servers.endpoint import serving

__all__ = ["data", "models", "short_pauses"]


def test_the_second_turn_sees_the_first_and_each_category_has_its_temperature(tmp_path, data, models):
    with serving(grade_by_question) as endpoint:
        job = mt_bench_job(
            tmp_path / "mt-bench", data, models[0], endpoint.url, generate={"temperature": 3.0, "top_k": 2}
        )
        report = run_mt_bench(job)
    tokenizer = character_tokenizer()
    rows = {(row["id"], row["turn"]): row for row in rows_of(report, "answers")}
    for (id, turn), row in rows.items():
        text = row["question"] if turn == 1 else f"Q{id}.1?\n{rows[id, 1]['answer']}\n{row['question']}"
        prompt = [1, *tokenizer(text)["input_ids"]]
        # Greedy at 1e-6: the engine's own settings do not take 0.
        sampled = GenerateConfig(temperature=TEMPERATURES[row["category"]] or 1e-6, max_new_tokens=12)
        engine = make_engine(models[0], CPU, (2,), sampled, 0)
        ((_, want),) = engine.answer([Request(prompt, seed_of(0, "mt-bench", id, turn))])
        assert row["response_ids"] == want.response_ids
        assert row["finish_reason"] == want.finish_reason
        assert row["answer"] == tokenizer.decode(want.response_ids, skip_special_tokens=True)
    cut = sum(row["finish_reason"] == "length" for row in rows.values())
    assert f"{cut} of {2 * QUESTIONS} answers were cut at the length limit" in report.notes


def test_a_long_prompt_loses_its_beginning_and_leaves_room_for_an_answer():
    assert fit_prompt([1, 2, 3], 1024, None) == [1, 2, 3]
    assert fit_prompt(list(range(100)), 1024, 100) == list(range(25, 100))
    assert fit_prompt(list(range(100)), 7, 100) == list(range(7, 100))
    assert fit_prompt(list(range(60)), 40, 100) == list(range(60))


def test_a_prompt_that_does_not_fit_is_noted(tmp_path, models):
    folder = tmp_path / "long"
    folder.mkdir()
    row = {"question_id": 1, "category": "writing", "turns": ["x" * 1500, "again"]}
    (folder / "question.jsonl").write_text(json.dumps(row))
    (folder / "reference_answer_gpt-4.jsonl").write_text("")
    with serving() as endpoint:
        report = run_mt_bench(mt_bench_job(tmp_path / "mt-bench", folder, models[0], endpoint.url))
    assert "2 of 2 prompts are too long for the model and lost their beginning" in report.notes


def kept_answers(job) -> list[dict]:
    return [json.loads(line) for line in (answers_folder(job) / "answers.jsonl").read_text().splitlines()]


@pytest.fixture
def answered(monkeypatch) -> list[tuple[str, int]]:
    """The turns that a model has answered: each question's id, and the turn."""
    turns = []
    answer = Answerer._answer_turn

    def count(self, engine, questions, turn, progress):
        turns.extend((question.id, turn) for question in questions)
        answer(self, engine, questions, turn, progress)

    monkeypatch.setattr(Answerer, "_answer_turn", count)
    return turns


def test_a_restarted_phase_samples_only_the_missing_answers(tmp_path, data, models, answered):
    with serving(grade_by_question) as endpoint:
        whole = mt_bench_job(tmp_path / "whole", data, models[0], endpoint.url)
        run_mt_bench(whole)
        answered.clear()
        job = mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url, generate={"batch_size": 2})
        complete = {(row["id"], row["turn"]): row for row in kept_answers(whole)}
        rows = [complete[turn] for turn in (("81", 1), ("81", 2), ("83", 1))]
        lines = [json.dumps({**row, "answer": f"kept {row['id']}"}) + "\n" for row in rows]
        answers_folder(job).mkdir()
        (answers_folder(job) / "answers.jsonl").write_text("".join(lines) + '{"id": "84", "tu')
        report = run_mt_bench(job)
    assert len(answered) == len(set(answered)) == 2 * QUESTIONS - 3
    kept = [row["answer"] for row in rows_of(report, "answers") if row["answer"].startswith("kept")]
    assert kept == ["kept 81", "kept 81", "kept 83"]


def test_another_judge_gets_the_same_answers(tmp_path, data, models, answered):
    with serving(grade_by_question) as endpoint:
        first = run_mt_bench(mt_bench_job(tmp_path / "first", data, models[0], endpoint.url))
        answered.clear()
        other = run_mt_bench(mt_bench_job(tmp_path / "other", data, models[0], endpoint.url, judge={"model": "other"}))
        run_mt_bench(mt_bench_job(tmp_path / "few", data, models[0], endpoint.url, suite="mt-bench-quick"))
    assert answered == []
    assert rows_of(first, "answers") == rows_of(other, "answers")
    assert {row["model"] for row in rows_of(other, "verdicts")} == {"other"}


def test_answers_of_another_model_sampling_or_question_are_not_reused(tmp_path, data, models, answered):
    other = shutil.copytree(data, tmp_path / "data")
    text = (other / "question.jsonl").read_text()
    (other / "question.jsonl").write_text(text.replace("Q81.2?", "Q81.2 or not?").replace("Q82.2?", "Q82.2 or not?"))
    with serving(grade_by_question) as endpoint:

        def count_answers(name: str, folder: Path = data, model: Path = models[0], **more) -> int:
            answered.clear()
            run_mt_bench(mt_bench_job(tmp_path / name, folder, model, endpoint.url, suite="mt-bench-quick", **more))
            return len(answered)

        whole = count_answers("first")
        assert whole > 2
        assert count_answers("model", model=models[1]) == whole
        assert count_answers("length", config={"max_new_tokens": 5}) == whole
        assert count_answers("temperature", generate={"temperature": 2.0}) == whole
        assert 2 <= count_answers("question", other) <= 4, "one or both of the changed questions are in the quick suite"
        assert count_answers("again") == 0


@needs_vllm
@pytest.mark.slow
def test_vllm_answers_if_generate_selects_it(tmp_path, data):
    from transformers import LlamaConfig, LlamaForCausalLM

    # The heads have a width that vLLM's kernels support.
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with serving(grade_by_question) as endpoint:
        vllm = {"engine": "vllm", "vllm": {"speed": {"cache_gb": 0.0625}}}
        expected = run_mt_bench(mt_bench_job(tmp_path / "transformers", data, tmp_path / "model", endpoint.url))
        with_vllm = launch.run_phase(
            mt_bench_job(tmp_path / "vllm", data, tmp_path / "model", endpoint.url, generate=vllm), EvalReport
        )
    # At temperature 0 there is only one possible answer.
    math = [
        {(row["id"], row["turn"]): row["answer"] for row in rows_of(report, "answers") if row["category"] == "math"}
        for report in (expected, with_vllm)
    ]
    assert math[0] == math[1]
    assert with_vllm.scores == expected.scores
