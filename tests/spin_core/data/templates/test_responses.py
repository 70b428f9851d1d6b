"""What ends a response: which tokens or texts, in training, in generation, and in the texts that people read."""

import json
import logging

import pytest

from spin_core.config.model import ChatConfig
from spin_core.data.chat import Renderer
from spin_core.data.templates.responses import Ends, decode_responses
from spin_core.data.tokenizer import model_ends
from spin_core.errors import ModelError
from tests.support.helpers import save_tiny_model
from tests.support.lineages.built_prompts import BuiltPrompts, rows_of
from tests.support.models.chat_tokenizers import chat_tokenizer

ASK = [{"role": "user", "content": "What is 2 + 2?"}]
ORDINARY = ("<|im_start|>", "<|im_end|>")


def ids_of(tokenizer, *tokens):
    return tuple(tokenizer.convert_tokens_to_ids(list(tokens)))


def test_a_response_ends_in_the_end_of_turn_and_generation_in_all_of_the_models_ends():
    tokenizer = chat_tokenizer("chatml")
    end, eos, other = ids_of(tokenizer, "<|im_end|>", "</s>", "<|eot_id|>")
    renderer = Renderer(tokenizer, ChatConfig(), [other, eos, len(tokenizer)])
    assert renderer.ends == Ends((end, eos, other))
    [row] = renderer.encode([ASK], ["It is 4.<|eot_id|>\n</s>"], cap=100)
    assert tokenizer.decode(row.response_ids) == "It is 4.<|im_end|>"
    assert renderer.has_control_token("a<|eot_id|>b")


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config": {"eos_token_id": [7, 8, 9]}, "config": {"eos_token_id": 2}}, (7, 8, 9)),
        ({"generation_config": {"eos_token_id": 7}, "config": {"eos_token_id": 2}}, (7,)),
        ({"generation_config": {"temperature": 1}, "config": {"eos_token_id": [2, 3]}}, (2, 3)),
        ({"config": {"eos_token_id": None}}, ()),
        ({}, ()),
    ],
)
def test_the_ends_of_a_model_are_those_of_its_settings(files, ends, tmp_path):
    for name, values in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    assert model_ends(tmp_path) == ends


def test_settings_that_are_not_json_are_named(tmp_path):
    (tmp_path / "generation_config.json").write_text("[1")
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read as JSON"):
        model_ends(tmp_path)


def test_phase_prompts_names_all_ends(tmp_path):
    tokenizer = chat_tokenizer("chatml")
    model = save_tiny_model(tmp_path / "model", tokenizer)
    ends = ids_of(tokenizer, "<|im_end|>", "</s>", "<|eot_id|>")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends)}))
    fields = BuiltPrompts(model, tmp_path, rows_of(4), chat="tokenizer").fields
    assert (fields["stop_ids"], fields["stop_strings"]) == (ends, ())


def test_an_end_of_turn_that_is_an_ordinary_token_is_cut_from_texts_by_its_id():
    tokenizer = chat_tokenizer("chatml", not_special=ORDINARY)
    renderer = Renderer(tokenizer, ChatConfig())
    [row] = renderer.encode([ASK], ["It is 4."], cap=100)
    assert row.response == "It is 4."
    assert row.response_ids[-1] == renderer.ends.ids[0] == ids_of(tokenizer, "<|im_end|>")[0]
    generated = [row.response_ids, row.response_ids[:-1], []]
    texts = decode_responses(tokenizer, [row.prompt_ids] * 3, generated, renderer.ends)
    assert texts == ["It is 4.", "It is 4.", ""]
    assert renderer.has_control_token("a<|im_end|>b")


def test_an_end_of_turn_of_several_tokens_is_trained_and_cut_as_text(tmp_path, caplog):
    tokenizer = chat_tokenizer("text-markers")
    renderer = Renderer(tokenizer, ChatConfig())
    assert renderer.ends == Ends((tokenizer.eos_token_id,), ("[DONE]",))
    [row] = renderer.encode([ASK], ["It is 4."], cap=100)
    assert (row.response, row.finish_reason) == ("It is 4.", "stop")
    assert tokenizer.decode(row.response_ids) == "It is 4. [DONE]"
    longer = row.response_ids + tokenizer("\nand", add_special_tokens=False)["input_ids"]
    texts = decode_responses(tokenizer, [row.prompt_ids] * 2, [row.response_ids, longer], renderer.ends)
    assert texts == ["It is 4. "] * 2
    assert renderer.has_control_token("a[DONE]b")
    with caplog.at_level(logging.WARNING):
        built = BuiltPrompts(save_tiny_model(tmp_path / "model", tokenizer), tmp_path, rows_of(4), chat="tokenizer")
    assert (built.fields["stop_ids"], built.fields["stop_strings"]) == ((tokenizer.eos_token_id,), ("[DONE]",))
    assert "has no token for '[DONE]', the chat template's end of turn" in caplog.text
