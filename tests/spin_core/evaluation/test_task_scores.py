"""The result of one task: examples in the prompt, items, and scores from those of lm-eval."""

from random import Random

import pytest

from spin_core.errors import DataError
from spin_core.evaluation.nltk_data import has_punkt
from spin_core.evaluation.task_scores import scores_and_items, subset
from tests.support.lineages.benchmark_jobs import (
    ROWS,
    benchmark_job,
    by_hand,
    data,
    items,
    model,
    read,
    run_benchmark,
    write_rows,
)

__all__ = ["by_hand", "data", "model"]


def test_examples_in_the_prompt_are_drawn_from_the_training_rows_as_lm_eval_does(tmp_path, model, data, by_hand):
    report = run_benchmark(benchmark_job(tmp_path / "lm-eval", model, data, "arc_challenge", num_fewshot=2))
    training, rng, right = read(data / "arc_challenge_train.jsonl"), Random(1234), []
    for row in read(data / "arc_challenge_test.jsonl"):
        examples = [
            f"Question: {example['question']}\nAnswer: {example['choices'][example['label']]}\n\n"
            for example in rng.sample(training, 2)
        ]
        context = "".join(examples) + f"Question: {row['question']}\nAnswer:"
        right.append(by_hand.right(context, row["choices"], row["label"])[0])
    assert items(report, "arc_challenge/acc") == right
    bare = run_benchmark(benchmark_job(tmp_path / "bare", model, data, "arc_challenge"))
    assert items(bare, "arc_challenge/acc") != right
    assert report.notes == ()


def test_examples_from_the_evaluated_rows_are_noted(tmp_path, model, data):
    report = run_benchmark(benchmark_job(tmp_path / "lm-eval", model, data, "winogrande", num_fewshot=2))
    assert report.notes == ("winogrande: examples in the prompt come from the rows that are evaluated",)


def test_a_smaller_limit_chooses_a_subset_of_a_larger_one_and_depends_on_the_seed():
    assert set(subset(1000, 20, 0, "arc_easy")) < set(subset(1000, 50, 0, "arc_easy"))
    assert subset(1000, 20, 0, "arc_easy") != subset(1000, 20, 1, "arc_easy")
    assert subset(1000, 20, 0, "arc_easy") == sorted(subset(1000, 20, 0, "arc_easy"))


def test_more_examples_than_rows_are_rejected(tmp_path, model, data):
    with pytest.raises(DataError, match="winogrande needs 16 examples in its prompt, and has 15 rows for them"):
        run_benchmark(benchmark_job(tmp_path / "lm-eval", model, data, "winogrande", num_fewshot=ROWS))


def test_a_standard_error_that_lm_eval_does_not_give_is_none():
    results = {"acc,none": 1.0, "acc_stderr,none": "N/A", "name": "x", "sample_len": 1}
    scores, rows = scores_and_items(results, [{"doc_id": 3, "filter": "none", "acc": 1.0}], {"acc": True})
    assert scores == {"acc,none": {"value": 1.0, "stderr": None, "n": 1, "higher_is_better": True}}
    assert rows == [("acc,none", "3", 1.0)]


def test_metrics_where_lower_is_better_and_with_several_values_an_item():
    results = {"perplexity,none": 2.0, "places,none": 0.5}
    samples = [{"doc_id": 0, "filter": "none", "perplexity": 2.0, "places": [True, False]}]
    scores, rows = scores_and_items(results, samples, {"perplexity": False, "places": True})
    assert not scores["perplexity,none"]["higher_is_better"]
    assert rows == [("perplexity,none", "0", 2.0)]


def test_ifeval_without_nltks_data_fails_before_it_computes(tmp_path, model):
    row = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_rows(tmp_path, "ifeval_train", [row, row])
    report = run_benchmark(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "ifeval"))
    assert set(report.scores) == {
        "ifeval", "ifeval/inst_level_strict_acc", "ifeval/prompt_level_loose_acc", "ifeval/inst_level_loose_acc"
    }  # fmt: skip
    if has_punkt():
        return
    counted = {"instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{"num_sentences": 2}]}
    write_rows(tmp_path, "ifeval_train", [row, {**row, **counted, "kwargs": [{"relation": "at least"}]}])
    with pytest.raises(DataError, match=r"counted in 1 row of ifeval, and NLTK.s punkt_tab is not installed: run"):
        run_benchmark(benchmark_job(tmp_path / "again", model, tmp_path, "ifeval"))
