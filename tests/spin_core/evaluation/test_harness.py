"""A model as lm-eval calls it: chat templates and long prompts."""

import pyarrow.parquet as pq
import pytest

from spin_core.errors import ConfigError
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.benchmark_jobs import (
    ByHand,
    benchmark_job,
    data,
    items,
    model,
    read,
    run_benchmark,
    write_rows,
)

__all__ = ["data", "model"]


def test_a_missing_chat_template_is_an_error(tmp_path, model, data):
    with pytest.raises(ConfigError, match="no chat template"):
        run_benchmark(benchmark_job(tmp_path / "lm-eval", model, data, "arc_easy", apply_chat_template=True))


def test_a_chat_template_wraps_each_item(tmp_path, data):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    )
    folder = save_tiny_model(tmp_path / "model", character_tokenizer(chat_template=template))
    report = run_benchmark(benchmark_job(tmp_path / "lm-eval", folder, data, "openbookqa", apply_chat_template=True))
    hand = ByHand(folder)
    right = []
    for row in read(data / "openbookqa_test.jsonl"):
        logps = [hand.logp(f"[user]{row['question']}[bot]", choice) for choice in row["choices"]]
        right.append(float(logps.index(max(logps)) == row["label"]))
    assert items(report, "openbookqa/acc") == right


def test_answers_get_half_the_context_and_longer_prompts_lose_their_beginning(tmp_path, model):
    rows = [{"task": "causal_judgement", "input": "Did it rain?", "target": "No"}] * 2
    write_rows(tmp_path, "bbh", rows)
    report = run_benchmark(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "bbh_cot_fewshot_causal_judgement"))
    task = "bbh_cot_fewshot_causal_judgement: "
    assert report.notes == (
        task + "2 of 2 prompts are longer than the model's context of 1,024 tokens, and lost their beginning",
        task + "answers have room for 512 tokens, not 1,024",
    )


@pytest.mark.parametrize("templated", [True, False])
def test_by_default_the_chat_template_is_used_if_the_model_has_one(tmp_path, templated):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" if templated else None
    folder = save_tiny_model(tmp_path / "model", character_tokenizer(chat_template=template))
    row = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_rows(tmp_path, "ifeval_train", [row])
    report = run_benchmark(benchmark_job(tmp_path / "instruct", folder, tmp_path, "ifeval", apply_chat_template=None))
    (sample,) = pq.read_table(report.path / "samples.parquet").to_pylist()
    assert sample["prompt"] == ("[user]Say it." if templated else "Say it.")
    assert ("the model has no chat template, and was asked without one" in report.notes) != templated
