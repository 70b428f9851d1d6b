"""The benchmark phase on a tiny real model, compared with log-likelihoods that are computed by hand."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from spin_core.data.templates import chat_template
from spin_core.errors import ConfigError
from spin_core.evaluation import harness
from spin_core.evaluation.task_scores import subset
from spin_core.store import artifacts
from tests.support.helpers import character_tokenizer, data_folder, save_tiny_model
from tests.support.lineages.benchmark_jobs import (
    ROWS,
    benchmark_job,
    by_hand,
    data,
    items,
    model,
    read,
    report,
    run_benchmark,
    write_rows,
)
from tests.support.lineages.small_jobs import version_of

__all__ = ["by_hand", "data", "model", "report"]


CONTEXTS = {
    "arc_easy": ("arc_easy_test", lambda question: f"Question: {question}\nAnswer:"),
    "openbookqa": ("openbookqa_test", lambda question: question),
    "hellaswag": ("hellaswag_val", lambda question: question.replace(". the man", ". The man")),
}


@pytest.mark.parametrize("task", CONTEXTS)
def test_accuracies_equal_a_hand_computation_item_by_item(task, report, data, by_hand):
    file, context = CONTEXTS[task]
    right = [
        by_hand.right(context(row["question"]), row["choices"], row["label"]) for row in read(data / f"{file}.jsonl")
    ]
    assert items(report, f"{task}/acc") == [acc for acc, _ in right]
    assert items(report, task) == [norm for _, norm in right]
    assert report.scores[task].value == pytest.approx(sum(norm for _, norm in right) / ROWS)
    assert report.scores[f"{task}/acc"].value == pytest.approx(sum(acc for acc, _ in right) / ROWS)


def test_the_hand_computation_is_not_right_by_chance(report):
    values = {tuple(items(report, name)) for name in report.scores if name.split("/")[0] in CONTEXTS}
    assert len([correct for correct in values if 2 <= sum(correct) <= ROWS - 2]) >= 4


def test_winogrande_scores_the_end_of_the_sentence_after_each_filling(report, data, by_hand):
    right = []
    for row in read(data / "winogrande_dev.jsonl"):
        before, _, after = row["question"].partition("_")
        logps = [by_hand.logp(before + filling, f" {after.strip()}") for filling in row["choices"]]
        right.append(float(logps.index(max(logps)) == row["label"]))
    assert items(report, "winogrande") == right
    assert report.scores["winogrande"].value == pytest.approx(sum(right) / ROWS)


def test_mmlu_averages_over_the_items_of_all_its_subjects(report, data, by_hand):
    right = []
    for row in read(data / "mmlu_test.jsonl"):
        lines = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
        head = f"The following are multiple choice questions (with answers) about {row['subject']}.\n\n"
        logps = [by_hand.logp(f"{head}{row['question']}{lines}\nAnswer:", f" {letter}") for letter in "ABCD"]
        right.append(float(logps.index(max(logps)) == row["label"]))
    assert items(report, "mmlu") == right
    assert report.scores["mmlu"].value == pytest.approx(sum(right) / ROWS)
    assert report.scores["mmlu"].n == ROWS
    names = [row["item"] for row in pq.read_table(report.path / "items.parquet").to_pylist() if row["task"] == "mmlu"]
    assert names == [f"mmlu_anatomy/{i}" for i in range(4)] + [f"mmlu_virology/{i}" for i in range(12)]


def test_truthfulqa_is_the_probability_of_the_true_answers(report):
    values = items(report, "truthfulqa_mc2")
    assert len(values) == ROWS
    assert all(0 <= value <= 1 for value in values)
    assert len([value for value in values if 0.01 < value < 0.99]) > 2  # weights, not hits
    assert report.scores["truthfulqa_mc2"].value == pytest.approx(sum(values) / ROWS)


def test_errors_are_standard_errors_of_the_mean(report):
    for name, score in report.scores.items():
        values = torch.tensor(items(report, name), dtype=torch.float64)
        assert score.n == len(values) == {"mmlu_anatomy": 4, "mmlu_virology": 12}.get(name, ROWS)
        if name != "mmlu":  # lm-eval pools its subjects' errors
            assert score.stderr == pytest.approx(values.std().item() / score.n**0.5)
        assert (score.stderr > 0) == (len(set(values.tolist())) > 1)
        assert score.higher_is_better


def test_the_report_names_the_model_and_the_harness(report, model):
    assert (report.suite, report.model) == ("lm-eval", version_of(model).digest)
    assert report.harness.startswith("lm-eval 0.")
    assert report.notes == ("mmlu: 2 of its 57 tasks have rows, and the score is theirs alone",)
    assert sorted(path.name for path in report.path.iterdir()) == ["items.parquet", "manifest.json", "samples.parquet"]
    assert artifacts.verify(report.path) == []


def test_the_same_job_gives_the_same_bytes(tmp_path, model, data):
    first, second = (
        run_benchmark(benchmark_job(tmp_path / name / "x", model, data, "arc_easy")) for name in ("one", "other")
    )
    assert first.digest == second.digest


def test_a_limit_takes_a_seeded_part_of_the_items(tmp_path, model, data, report):
    job = benchmark_job(tmp_path / "lm-eval", model, data, "arc_easy", limit=5)
    few = run_benchmark(job)
    rows = [row for row in pq.read_table(few.path / "items.parquet").to_pylist() if row["task"] == "arc_easy"]
    assert few.scores["arc_easy"].n == len(rows) == 5
    chosen = [int(row["item"]) for row in rows]
    assert chosen == subset(ROWS, 5, 0, "arc_easy")
    assert [row["value"] for row in rows] == [items(report, "arc_easy")[i] for i in chosen]


def test_samples_have_the_prompt_and_the_log_probability_of_each_choice(report, data, by_hand):
    samples = pq.read_table(report.path / "samples.parquet").to_pylist()
    by_task = {task: [row for row in samples if row["task"] == task] for task in ("arc_easy", "winogrande")}
    for row, question in zip(by_task["arc_easy"], read(data / "arc_easy_test.jsonl"), strict=True):
        assert row["prompt"] == f"Question: {question['question']}\nAnswer:"
        assert row["choices"] == [f" {choice}" for choice in question["choices"]]
        assert row["target"] == row["choices"][question["label"]]
        assert row["logps"] == pytest.approx(
            [by_hand.logp(row["prompt"], choice) for choice in row["choices"]], abs=1e-3
        )
        assert row["answer"] == row["choices"][row["logps"].index(max(row["logps"]))]
        assert json.loads(row["scores"])["acc"] == (row["answer"] == row["target"])
    # Here the choices are what comes before: each has the same end.
    for row, question in zip(by_task["winogrande"], read(data / "winogrande_dev.jsonl"), strict=True):
        filled = [question["question"].replace("_", choice) for choice in question["choices"]]
        assert [row["prompt"] + choice for choice in row["choices"]] == filled


def test_samples_have_the_answer_and_what_each_filter_extracted(tmp_path, model):
    write_rows(
        tmp_path, "gsm8k_test", [{"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in (3, 4)]
    )
    report = run_benchmark(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "gsm8k", num_fewshot=1))
    samples = pq.read_table(report.path / "samples.parquet").to_pylist()
    assert [row["item"] for row in samples] == ["0", "1"]
    for row in samples:
        assert row["prompt"].startswith("Question: What is")
        assert row["prompt"].endswith("?\nAnswer:")
        assert row["answer"]
        assert row["choices"] is None
        assert set(json.loads(row["extracted"])) == {"strict-match", "flexible-extract"}
        assert set(json.loads(row["scores"])) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert {"gsm8k", "gsm8k/flexible-extract"} <= set(report.scores)


def test_an_automatic_batch_size_gives_the_same_values(tmp_path, model, data, report):
    automatic = run_benchmark(benchmark_job(tmp_path / "lm-eval", model, data, "winogrande", batch_size="auto"))
    assert items(automatic, "winogrande") == items(report, "winogrande")


def test_a_real_small_model_runs_the_real_benchmarks(tmp_path):
    data, folder = data_folder("benchmarks"), data_folder("models", "babyllama-105")
    tasks = ("arc_easy", "arc_challenge", "openbookqa", "hellaswag", "winogrande")
    report = run_benchmark(benchmark_job(tmp_path / "lm-eval", folder, data, *tasks, limit=4, num_fewshot=1))
    assert {name for name in report.scores if "/" not in name} == set(tasks)
    assert all(score.n == 4 and 0 <= score.value <= 1 for score in report.scores.values())
    # One character is one token, and the context is 256.
    assert any("longer than the model's context of 256 tokens" in note for note in report.notes)


def test_a_chat_template_that_never_ends_is_stopped_before_lm_eval_runs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    tokenizer = character_tokenizer(
        chat_template="{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    model = save_tiny_model(tmp_path / "model", tokenizer)
    with pytest.raises(ConfigError, match="the chat template was stopped"):
        harness.load(benchmark_job(tmp_path / "eval", model, None, "arc_easy", apply_chat_template=True))
