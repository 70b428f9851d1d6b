"""`spin check`: whole runs are ready, and each error is one line before any compute."""

import sys

import pytest
import torch

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError
from spin_core.preflight.check import check_run
from spin_core.preflight.findings import Findings
from spin_core.runtime import interpreter
from tests.support.findings import only_error, texts_of
from tests.support.helpers import data_folder


def test_the_demo_is_ready_and_its_check_leaves_nothing_behind(tmp_path):
    result = check_run(resolve("demo"), tmp_path / "runs")
    assert result.ok
    subjects = {finding.subject for finding in result.findings}
    assert subjects == {
        "config",
        "data",
        "model",
        "engine",
        "tokenizer",
        "context",
        "prompts",
        "lengths",
        "metrics",
        "memory",
        "disk",
        "time",
    }
    assert texts_of(result, "prompts") == ["16,384 to train on and 300 held out"]
    assert "made here, and trained on the data for 12 epochs" in texts_of(result, "model")[0]
    assert list(tmp_path.iterdir()) == []
    assert Findings.model_validate_json(result.model_dump_json()) == result


def test_the_engine_is_reported_and_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreter, "sees_gpu", lambda: False)
    assert texts_of(check_run(resolve("demo"), tmp_path), "engine") == ["transformers answers: there is no GPU to use"]
    vllm = ["generate.engine=vllm", f"generate.vllm.python={sys.executable}"]
    result = check_run(resolve("demo", sets=vllm), tmp_path)
    assert "vLLM answers (set by generate.engine)" in texts_of(result, "engine")[0]
    assert not any("generation" in text for text in texts_of(result, "memory"))
    result = check_run(resolve("demo", sets=["generate.engine=vllm", "generate.vllm.python=/no/such"]), tmp_path)
    assert "run `make vllm`" in texts_of(result, "engine", "wrong")[0]


def test_a_length_that_leaves_vllm_no_room_for_answers_is_rejected():
    with pytest.raises(ConfigError, match=r"generate.vllm.max_length 100 is too short for prompts of 512 tokens"):
        resolve("zephyr-7b", sets=["generate.vllm.max_length=100", "prompts.max_prompt_tokens=512"])


def test_the_small_real_recipe_is_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIN_DATA", str(data_folder("tinystories").parent))
    result = check_run(resolve("tinystories"), tmp_path)
    assert result.ok
    assert texts_of(result, "model")[0].startswith("936,448 parameters, float32 on cpu: ")
    assert "7,215 rows" in texts_of(result, "data")[0]


def test_the_small_real_recipe_says_where_to_get_its_data(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIN_DATA", str(tmp_path / "none"))
    (line,) = texts_of(check_run(resolve("tinystories"), tmp_path), "data", "wrong")
    assert (
        f"{tmp_path}/none does not exist: set SPIN_DATA to a folder with BabyLlama's tok105 weights (EN10, MIT)" in line
    )
    assert "TinyStories (Eldan & Li, CDLA-Sharing-1.0); see docs/benchmarks.md" in line


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["model.path=/nowhere/model"], "model: /nowhere/model is not a folder"),
        (["prompts.source.path=/nowhere/rows.jsonl"], "data: /nowhere/rows.jsonl does not exist"),
        (["prompts.columns={prompt: ask}"], "data: "),
        (["prompts.held_out=500"], "data: prompts.held_out is 500, but the data have only"),
        (["prompts.max_prompt_tokens=1020"], "context: prompts of 1020 tokens and responses of 24 exceed"),
        (["chat.template=tokenizer"], ": the tokenizer has no chat template"),
        (["model.pad_token=<none>"], "tokenizer: model.pad_token '<none>' is not in the tokenizer's vocabulary"),
        (
            ["evaluate.main_metric=reward_margin"],
            "config: evaluate.main_metric 'reward_margin' is not a score",
        ),
        (["evaluate.exact=true"], "config: evaluate.exact needs data whose distribution is known"),
        (["evaluate.self_play=false"], "set evaluate.self_play, or name evaluate.lm_eval.tasks"),
        (["evaluate.lm_eval={tasks: [arc_easy], local_data: /nowhere}"], "benchmarks: evaluate.lm_eval.local_data"),
        (
            ["evaluate.suites=[big-bench]", "evaluate.lm_eval.tasks=[openbookqa]"],
            "benchmarks: big-bench and lm-eval both score openbookqa",
        ),
        (
            ["train.micro_batch_tokens=1000000000", "train.batch_size=10000000"],
            "memory: training with 740,000,000 tokens in a pass takes about",
        ),
        (["generate.batch_size=10000000"], "memory: generation with 10,000,000 answers at a time takes about"),
        (
            ["iterations=1000", "train.save_every=1", "train.keep_checkpoints=10000000", "train.epochs=1000000"],
            "disk: ",
        ),
    ],
)
def test_an_error_is_one_line_with_its_fix(configured, tmp_path, sets, says):
    line = only_error(check_run(configured(*sets), tmp_path))
    assert says in line
    assert ": " in line.split(": ", 1)[1], "the fix follows a colon"


def test_a_missing_device_is_a_one_line_error(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "set model.device to auto or cpu" in only_error(check_run(configured("model.device=cuda"), tmp_path))


def test_everything_that_does_not_depend_on_an_error_is_still_checked(configured, tmp_path):
    result = check_run(configured("model.path=/nowhere/model", "prompts.source.path=/nowhere.jsonl"), tmp_path / "x")
    assert [f.subject for f in result.findings if f.level == "wrong"] == ["data", "model"]
    assert not {"memory", "time", "tokenizer"} & {f.subject for f in result.findings}


def test_a_runs_folder_that_is_a_file_is_a_one_line_error(configured, tmp_path):
    (tmp_path / "runs").write_text("a file")
    assert "is a file, where a folder should be" in only_error(check_run(configured(), tmp_path / "runs" / "below"))


def test_an_unreachable_hub_is_one_line_for_each_source(tmp_path):
    result = check_run(resolve("zephyr-7b"), tmp_path)
    lines = {finding.subject: finding.text for finding in result.findings if finding.level == "wrong"}
    assert set(lines) == {"data", "model", "benchmarks"}
    assert lines["data"].startswith(
        "HuggingFaceH4/ultrachat_200k is not a file or folder here, and the hub did not answer"
    )
    assert lines["model"].startswith("alignment-handbook/zephyr-7b-sft-full is not a folder here, and the hub did not")
