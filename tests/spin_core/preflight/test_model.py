"""What a check reports of the model."""

import pytest

from spin_core.config.model import ModelConfig
from spin_core.errors import ModelError
from spin_core.models import logit_transform
from spin_core.models.loading import load_model
from spin_core.models.weights import count_weights, read_headers
from spin_core.preflight import check
from spin_core.preflight.check import check_run
from tests.support.findings import only_error, texts_of
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.models.chat_tokenizers import chat_tokenizer


def test_an_adapter_is_reported_with_its_size_and_its_layers_must_exist(configured, tmp_path):
    result = check_run(configured("train.lora={rank: 4, targets: [q_proj, down_proj]}"), tmp_path)
    text = "trains an adapter of rank 4, alpha 32 on 4 layers: 640 parameters"
    assert text in texts_of(result, "model"), "by hand: 2 layers x 4 x (16 + 16 + 32 + 16)"
    line = only_error(check_run(configured("train.lora={targets: [query]}"), tmp_path))
    assert line.startswith("model: train.lora.targets names 'query', and LlamaForCausalLM has no such linear layer: ")


def test_a_models_size_and_tokenizer_are_reported(configured, tiny_model, tmp_path):
    result = check_run(configured(), tmp_path)
    parameters = load_model(tiny_model, ModelConfig()).num_parameters()
    assert texts_of(result, "model")[0] == f"{parameters:,} parameters, float32 on cpu: {tiny_model}, stored as F32"
    assert "100 tokens; pad <pad>, responses end in </s>; prompts are written as bare text" in texts_of(
        result, "tokenizer"
    )


def test_an_incomplete_model_file_is_found_by_its_header(configured, tiny_model, tmp_path):
    save_tiny_model(tmp_path / "model", character_tokenizer())
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line = only_error(check_run(configured(f"model.path={tmp_path / 'model'}"), tmp_path))
    assert "is not a whole safetensors file" in line
    with pytest.raises(ModelError, match="copy or fetch it again"):
        read_headers([weights])
    assert count_weights(read_headers([tiny_model / "model.safetensors"]))[1] == "F32"


def test_an_end_of_turn_that_the_tokenizer_splits_is_a_warning(configured, tmp_path):
    folder = save_tiny_model(tmp_path / "model", chat_tokenizer("text-markers"))
    result = check_run(configured(f"model.path={folder}", "chat.template=tokenizer"), tmp_path)
    (warning,) = texts_of(result, "tokenizer", "warn")
    assert "has no token for '[DONE]', the template's end of turn" in warning


@pytest.fixture
def capped_model(tmp_path):
    """A Gemma 2 that caps its attention's logits, and has windows in every other layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer, folder = character_tokenizer(), tmp_path / "gemma2"
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, sliding_window=16, pad_token_id=0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_without_packed_rows_is_reported_with_the_reason_and_estimated_with_padding(
    configured, capped_model, tmp_path, monkeypatch
):
    used = []
    monkeypatch.setattr(check, "inspect_time", lambda _inspection, config, *_: used.append(config.train.speed.packing))
    result = check_run(configured(f"model.path={capped_model}"), tmp_path)
    assert result.ok
    assert texts_of(result, "model", "warn") == ["trains on padded rows, because Gemma2Attention asks for softcap"]
    assert texts_of(check_run(configured(), tmp_path), "model")[1:] == ["trains on packed rows"]
    off = check_run(configured(f"model.path={capped_model}", "train.speed.packing=false"), tmp_path)
    assert texts_of(off, "model", "warn") == [], "packed rows are off"
    assert used == [False, True, False]


def test_a_model_that_needs_all_logits_at_once_is_reported_and_estimated(
    configured, capped_model, tmp_path, monkeypatch
):
    used = []
    monkeypatch.setattr(
        check, "inspect_time", lambda _inspection, config, *_: used.append(config.train.speed.response_logits)
    )
    monkeypatch.setattr(logit_transform, "_CAP", "no such setting")
    capped = configured(f"model.path={capped_model}", "train.speed.packing=false")
    reason = "computes all logits at once, because it does more to them than scale or cap them"
    assert texts_of(check_run(capped, tmp_path), "model", "warn") == [reason]
    monkeypatch.setattr(logit_transform, "_CAP", "final_logit_softcapping")
    assert texts_of(check_run(capped, tmp_path), "model", "warn") == []
    assert used == [False, True]
