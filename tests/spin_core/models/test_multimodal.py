"""A multimodal model plays on text: its language model is read, answers and is trained; its other parts stay."""

import json
import sys
from pathlib import Path

import pytest
import torch

from spin_core.config.model import ModelConfig
from spin_core.config.resolve import resolve
from spin_core.data.tokenizer import context_length, load_config
from spin_core.errors import ConfigError
from spin_core.lineage import phase_jobs, suite_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.models import probe
from spin_core.models.loading import load_model
from spin_core.phases import base, evaluate, generate, pairs, prompts, score, train
from spin_core.preflight.check import check_run
from spin_core.preflight.times import measure
from spin_core.runtime import phase
from spin_core.runtime.progress import Progress
from spin_core.store.records import (
    EvalReport,
    GenerationBatch,
    ModelVersion,
    PairDataset,
    PromptSet,
    ScoredPairs,
    TrainRun,
)
from tests.support.helpers import character_tokenizer

CPU = ModelConfig(device="cpu")
CONTEXT = 128


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory) -> Path:
    """A tiny Gemma 3 with a vision tower, whose language model has settings of its own."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer, folder = character_tokenizer(), tmp_path_factory.mktemp("multimodal")
    vocabulary = len(tokenizer)
    settings = Gemma3Config(
        text_config={
            "vocab_size": vocabulary + 3, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": CONTEXT,
            "sliding_window": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4, boi_token_index=vocabulary, eoi_token_index=vocabulary + 1,
        image_token_index=vocabulary + 2,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def configured(multimodal, tmp_path, monkeypatch):
    """A small run's configuration; settings may be changed."""
    monkeypatch.setattr(measure, "TRIED_SECONDS", 0.002)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps({'prompt': f'{i} + 1 =', 'response': f'{i + 1}.'})}\n" for i in range(16)))

    def configure(*sets):
        own = (f"model.path={multimodal}", "model.device=cpu", f"prompts.source.path={rows}", "prompts.held_out=4")
        sizes = ("prompts.sample=null", "prompts.max_prompt_tokens=50", "generate.max_new_tokens=12", "iterations=1")
        off = ("evaluate.exact=false", "evaluate.main_metric=heldout_nll", "controls={sft_continued: false}")
        return resolve("demo", sets=[*own, *sizes, *off, "train.batch_size=4", "train.epochs=1", *sets])

    return configure


def execute(job, record, module):
    """Run a phase in this process."""
    stdout = sys.stdout
    try:
        return phase.execute(job, record, module.run, Progress())
    finally:
        sys.stdout = stdout  # Progress redirects it


def test_sizes_are_read_from_the_language_model(multimodal):
    settings = load_config(multimodal, CPU)
    assert context_length(multimodal, CPU) == CONTEXT
    tiny = probe.tiny_model(settings).config
    assert tiny.get_text_config().num_hidden_layers == 2
    assert (probe.why_not_packed(settings), probe.why_not_on_text(settings)) == ("", None)


def test_check_knows_its_context(configured, tmp_path):
    result = check_run(configured(), tmp_path)
    assert [finding.text for finding in result.findings if finding.level != "ok"] == []
    assert any("only its language model is used" in finding.text for finding in result.findings)
    result = check_run(configured("prompts.max_prompt_tokens=120"), tmp_path)
    wrong = [finding.text for finding in result.findings if finding.level == "wrong"]
    assert wrong == [
        f"prompts of 120 tokens and responses of 12 exceed the model's context of {CONTEXT}: "
        "lower prompts.max_prompt_tokens to 116"
    ]


def test_a_model_that_does_not_train_on_text_alone_is_rejected(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "why_not_on_text", lambda *_: "pixel_values are missing")
    wrong = [finding.text for finding in check_run(configured(), tmp_path).findings if finding.level == "wrong"]
    assert len(wrong) == 1
    assert wrong[0].endswith("does not train on text alone (pixel_values are missing): set model.path to a text model")


@pytest.mark.slow
@pytest.mark.parametrize("sets", [(), ("train.lora={rank: 2}",)], ids=["weights", "adapter"])
def test_it_answers_trains_and_is_scored(configured, multimodal, tmp_path, sets):
    lineage = Lineage(tmp_path / "runs", "tale", configured(*sets))
    version = execute(phase_jobs.base_job(lineage), ModelVersion, base)
    rows = execute(phase_jobs.prompts_job(lineage, version), PromptSet, prompts)
    answers = execute(phase_jobs.generate_job(lineage, 0, version, rows), GenerationBatch, generate)
    made = execute(phase_jobs.pairs_job(lineage, 0, rows, answers, None), PairDataset, pairs)
    scores = execute(phase_jobs.score_job(lineage, 0, version, made), ScoredPairs, score)
    assert execute(phase_jobs.train_job(lineage, 0, version, made, scores), TrainRun, train).steps > 0
    player = lineage.player(0)
    report = suite_jobs.self_play_job(lineage, player, rows, None, tmp_path / "report", None)
    assert execute(report, EvalReport, evaluate).scores["heldout_nll"].value > 0
    before, after = (load_model(folder, CPU).state_dict() for folder in (multimodal, player.path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "language_model" not in name and "lm_head" not in name]


@pytest.mark.slow
def test_prompts_beyond_its_context_end_before_any_compute(configured, tmp_path):
    lineage = Lineage(tmp_path / "runs", "tale", configured("prompts.max_prompt_tokens=120"))
    version = execute(phase_jobs.base_job(lineage), ModelVersion, base)
    with pytest.raises(ConfigError, match=r"exceed the model's context of 128"):
        execute(phase_jobs.prompts_job(lineage, version), PromptSet, prompts)
