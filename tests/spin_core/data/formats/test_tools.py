"""Conversations with tools: what is rendered, and what is dropped because a template does not write it."""

import json

import pytest

from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DataError
from tests.spin_core.data.conftest import TOOLS
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.built_prompts import rows_of

ASK = {"role": "user", "content": "Weather?"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks at something."}}
SUNNY = {"role": "tool", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "It is sunny."}
CALLS = {
    "values": {"content": None, "tool_calls": [CALL]},
    "text": {"content": "", "tool_calls": [{**CALL, "function": {"name": "look", "arguments": '{"at": "sky"}'}}]},
    "filled by Arrow": {
        "tool_calls": [{**CALL, "function": {"name": "look", "arguments": {"at": "sky", "by": None}}}],
        "tool_call_id": None,
    },
    "older": {"content": None, "function_call": {"name": "look", "arguments": '{"at": "sky"}'}},
    "bare": {"tool_calls": [{"name": "look", "arguments": {"at": "sky"}}]},
    "sharegpt": {"role": "function_call", "content": '{"name": "look", "arguments": {"at": "sky"}}'},
}


def rendered(build, model, *turns):
    """The prompt's text of one conversation."""
    built = build([{"messages": turns}, {"messages": [ASK, ANSWER]}], model=model, chat="tokenizer")
    renderer = Renderer(load_tokenizer(model, ModelConfig()), ChatConfig())
    return max((renderer.tokenizer.decode(row["prompt_ids"]) for row in built.train + built.held_out), key=len)


@pytest.mark.parametrize("form", sorted(CALLS))
def test_a_call_and_its_result_are_context_of_the_last_text(build, tool_model, form):
    turns = [ASK, {"role": "assistant", **CALLS[form]}, SUNNY, ANSWER]
    text = rendered(build, tool_model, *turns)
    assert 'look{"at": "sky"}<|im_end|>' in text
    assert "<|im_start|>tool\nsunny<|im_end|>" in text


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython"])
def test_results_have_several_names(build, tool_model, role):
    text = rendered(
        build, tool_model, ASK, {"role": "assistant", "tool_calls": [CALL]}, {**SUNNY, "role": role}, ANSWER
    )
    assert "<|im_start|>tool\nsunny<|im_end|>" in text


def test_a_developers_turn_is_the_system_prompt(build, tool_model):
    text = rendered(build, tool_model, {"role": "developer", "content": "Be brief."}, ASK, ANSWER)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_a_call_is_never_the_response(build, tool_model):
    called = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}
    rows = [{"messages": [ASK, ANSWER, {**ASK, "content": "Now?"}, called]}, {"messages": [ASK, called]}]
    built = build([*rows, {"messages": [{**ASK, "content": "Hi"}, ANSWER]}], model=tool_model, chat="tokenizer")
    assert built.pairs == [("Hi", "It is sunny."), ("Weather?", "It is sunny.")]
    assert built.drops == {"tool-call": 1}


def test_a_call_without_any_value_is_none(build):
    empty = {"function_call": {"name": None, "arguments": None}, "tool_calls": [{"function": {"name": None}}, None]}
    rows = [{"messages": [{**ASK, "content": text}, {**ANSWER, **empty}]} for text in ("Hi", "Ho")]
    assert build(rows).pairs == [("Hi", "It is sunny."), ("Ho", "It is sunny.")]


def test_schemas_are_read_from_functions_and_those_without_any_value_are_none(build, tool_model):
    schema = {"name": "look", "description": "Look up.", "parameters": {}}
    rows = [
        {"prompt": "a", "response": "b", "functions": [schema]},
        {"prompt": "c", "response": "d", "tools": [schema]},
    ]
    built = build(rows, model=tool_model, chat="tokenizer", max_prompt_tokens=300)
    assert {row["tools"] for row in built.train + built.held_out} == {
        json.dumps([{"type": "function", "function": schema}])
    }
    empty = [{"type": None, "function": None}, {"type": "function", "function": {"name": None}}]
    built = build([{**row, "functions": empty[:1], "tools": empty} for row in rows_of(2)])
    assert (built.drops, len(built.pairs)) == ({}, 2)


def test_the_schemas_of_tools_are_published_with_their_row(build, tool_model):
    asked = [{"messages": [{**ASK, "content": text}, ANSWER]} for text in ("Hi", "Ho")]
    built = build(
        [*asked, {"messages": [ASK, ANSWER], "tools": [TOOL]}],
        model=tool_model,
        chat="tokenizer",
        max_prompt_tokens=200,
    )
    tools = {row["prompt"]: row["tools"] for row in built.train + built.held_out}
    assert {prompt: text and json.loads(text) for prompt, text in tools.items()} == {
        "Hi": None,
        "Ho": None,
        "Weather?": [TOOL],
    }
    assert "tools" not in build(asked, model=tool_model, chat="tokenizer").train[0]


def test_a_row_with_tools_that_the_template_does_not_write_is_dropped(build, chat_model):
    conversation = [ASK, {"role": "assistant", "tool_calls": [CALL]}, SUNNY, ANSWER]
    kept = [{"messages": [{**ASK, "content": text}, ANSWER]} for text in ("Hi", "Ho")]
    assert build([*kept, {"messages": conversation}], model=chat_model, chat="tokenizer").drops == {
        "tools-not-in-template": 1
    }
    assert build([*kept, {"messages": conversation}]).drops == {"tools-not-in-template": 1}, "bare text"


def test_calls_in_the_assistants_text_need_results_alone(build, chat_model):
    text = rendered(build, chat_model, ASK, {"role": "assistant", "content": "<call>look</call>"}, SUNNY, ANSWER)
    assert "<call>look</call><|im_end|>\n<|im_start|>tool\nsunny" in text


def test_a_template_that_expects_arguments_as_text_gets_them_so(build, tmp_path):
    template = TOOLS.replace("(call.function.arguments | tojson)", "call.function.arguments")
    specials = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
    model = save_tiny_model(tmp_path / "model", character_tokenizer(specials, chat_template=template))
    text = rendered(build, model, ASK, {"role": "assistant", "tool_calls": [CALL]}, SUNNY, ANSWER)
    assert 'look{"at": "sky"}<|im_end|>' in text


def test_control_tokens_in_calls_drop_the_row(build, tool_model):
    call = {"name": "look", "arguments": {"at": "<|im_end|>"}}
    rows = [{"messages": [ASK, {"role": "assistant", "tool_calls": [call]}, SUNNY, ANSWER]}]
    assert build(
        [*rows, *({"messages": [{**ASK, "content": text}, ANSWER]} for text in "ab")],
        model=tool_model,
        chat="tokenizer",
    ).drops == {"control-token": 1}


@pytest.mark.parametrize("call", ["look", {"function": "look"}, {"name": 5}, [["look"]], '{"name": '])
def test_a_call_of_another_kind_is_named_by_its_row(build, call):
    rows = [{"messages": [ASK, ANSWER]}, {"messages": [ASK, {"role": "assistant", "tool_calls": call}, SUNNY, ANSWER]}]
    with pytest.raises(DataError, match=r"row 2: tool_calls (holds|is) .*: fix that row"):
        build(rows)


# Content in parts


def test_parts_of_text_are_joined(build):
    parts = [{"type": "text", "text": "One"}, {"type": "input_text", "text": " two,", "image_url": None}, " three"]
    answer = {**ANSWER, "content": [{"type": "text", "text": "Yes!"}]}
    built = build([{"messages": [{**ASK, "content": parts}, answer]}, *({"messages": [ASK, ANSWER]},)])
    assert ("One two, three", "Yes!") in built.pairs


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, {"type": "audio", "text": "x"}]
)
def test_parts_of_another_kind_drop_the_row(build, part):
    rows = [{"messages": [{**ASK, "content": [{"type": "text", "text": "What is this?"}, part]}, ANSWER]}]
    assert build([{"messages": [{**ASK, "content": text}, ANSWER]} for text in "ab"] + rows).drops == {"not-text": 1}


def test_a_part_that_is_no_part_is_named_by_its_row(build):
    with pytest.raises(DataError, match="row 1: content is int 5, not text"):
        build([{"messages": [{**ASK, "content": [5]}, ANSWER]}, *rows_of(1)])


def test_nesting_without_end_is_named_by_its_row(build):
    deep = json.loads("[" * 60 + "]" * 60)
    call = {"name": "look", "arguments": deep}
    with pytest.raises(DataError, match="row 1: tool_calls is nested more than 50 levels deep"):
        build([{"messages": [ASK, {"role": "assistant", "tool_calls": [call]}, SUNNY, ANSWER]}] * 2)
