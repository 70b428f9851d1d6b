"""Responses with thoughts: prompt and response are what the template writes, or the conversation is refused."""

import json
import logging
from datetime import date

import pytest

from spin_core.config.model import ChatConfig
from spin_core.config.resolve import resolve
from spin_core.data.chat import Renderer
from spin_core.errors import ConfigError, DataError
from spin_core.store.identity import identity_of
from tests.support.helpers import save_tiny_model
from tests.support.lineages.built_prompts import BuiltPrompts
from tests.support.models.chat_tokenizers import chat_tokenizer

ASK = [{"role": "user", "content": "What is 2 + 2?"}]
THOUGHT = "<think>\nTwo and two.\n</think>\n\nIt is 4."
EMPTY = "<think>\n\n</think>\n\n"
OPEN = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"


def renderer_of(family, **switches):
    return Renderer(chat_tokenizer(family), ChatConfig(template_kwargs=switches))


def encode(renderer, response):
    [row] = renderer.encode([ASK], [response], cap=200)
    return row


@pytest.mark.parametrize(
    "response",
    [
        THOUGHT,
        *({"content": "It is 4.", key: "Two and two."} for key in ("reasoning", "reasoning_content", "thinking")),
    ],
)
def test_a_response_with_a_thought_follows_the_prompt_as_the_template_writes_it(response):
    renderer = renderer_of("thinking")
    row = encode(renderer, response)
    assert row.prompt == OPEN
    assert row.response == THOUGHT
    assert renderer.tokenizer.decode(row.prompt_ids + row.response_ids) == f"{OPEN}{THOUGHT}<|im_end|>"
    assert not row.lacks_thought


def test_a_response_without_a_thought_follows_the_empty_one():
    renderer = renderer_of("thinking")
    for text in ("It is 4.", f"{EMPTY}It is 4."):
        row = encode(renderer, text)
        assert (row.prompt, row.response) == (OPEN + EMPTY, "It is 4.")
        assert renderer.tokenizer.decode(row.response_ids) == "It is 4.<|im_end|>"
    assert renderer.prompt_text(ASK) == OPEN + EMPTY


def test_white_space_that_the_template_drops_is_not_trained():
    row = encode(renderer_of("thinking"), "\n\nIt is 4. \n")
    assert row.response == "It is 4. \n"


def test_a_switch_changes_the_prompt_of_generation_and_training():
    quiet, loud = renderer_of("thinking", enable_thinking=False), renderer_of("thinking", enable_thinking=True)
    assert quiet.prompt_text(ASK) == encode(quiet, "It is 4.").prompt == OPEN + EMPTY
    assert encode(quiet, THOUGHT).refused == "template-differs"
    assert loud.prompt_text(ASK) == encode(loud, THOUGHT).prompt == OPEN


def test_a_prompt_that_opens_a_thought_takes_responses_with_one():
    renderer = renderer_of("always-thinking")
    row = encode(renderer, {"content": "It is 4.", "reasoning": "Two and two."})
    assert row.prompt == renderer.prompt_text(ASK) == OPEN + "<think>\n"
    assert row.response == "Two and two.\n</think>\n\nIt is 4."
    assert encode(renderer, "It is 4.").refused == "template-differs"


def test_a_template_whose_answers_never_have_the_thought_that_it_prompts_for_is_rejected():
    with pytest.raises(ConfigError, match="generation and training would see different prompts"):
        renderer_of("forgets-thoughts")


def test_thoughts_that_a_template_does_not_write_are_noticed():
    row = encode(renderer_of("chatml"), {"content": "It is 4.", "reasoning": "Two and two."})
    assert row.response == "It is 4."
    assert row.lacks_thought
    assert not encode(renderer_of("chatml"), THOUGHT).lacks_thought


@pytest.mark.parametrize(
    "text", ["<think>hm</think>A <think>again</think> B", "A0 </think> x", "A <think>hm</think> B", "</think>"]
)
def test_text_that_a_template_drops_or_takes_for_a_thought_is_refused(text):
    renderer = renderer_of("thinking")
    row = encode(renderer, text)
    assert row.refused == "template-drops-text"
    assert (row.prompt_ids, row.response_ids) == ([], [])
    [earlier] = renderer.encode([[*ASK, {"role": "assistant", "content": text}, *ASK]], ["It is 4."], cap=200)
    assert earlier.refused == "template-drops-text"
    [verbatim] = renderer_of("chatml").encode([ASK], [text], cap=200)
    assert (verbatim.refused, verbatim.response) == ("", text)


def test_a_second_thought_without_text_before_it_is_left_out_with_a_warning():
    row = encode(renderer_of("thinking"), "<think>hm</think><think>again</think> B")
    assert (row.refused, row.lacks_thought) == ("", True)


def test_earlier_turns_have_the_thoughts_that_the_template_keeps():
    turns = [*ASK, {"role": "assistant", "content": "4.", "reasoning": "Two and two."}, *ASK]
    assert "Two" not in renderer_of("thinking").prompt_text(turns)
    assert "<think>\nTwo and two.\n</think>\n\n4." in renderer_of("always-thinking").prompt_text(turns)


# Through phase `prompts`.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model with each family's tokenizer, made when it is asked for."""
    made = {}

    def model(family):
        if family not in made:
            made[family] = save_tiny_model(tmp_path_factory.mktemp(family), chat_tokenizer(family))
        return made[family]

    return model


def turns_with(count, **response):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Count to {i}"},
                {"role": "assistant", "content": f"{i}", **response},
            ]
        }
        for i in range(count)
    ]


def test_rows_with_and_without_thoughts_have_prompts_of_their_own(models, tmp_path):
    rows = [*turns_with(3, reasoning="Easy."), *turns_with(6)[3:]]
    built = BuiltPrompts(models("thinking"), tmp_path, rows, chat="tokenizer")
    assert built.drops == {}
    assert sorted(row["response"] for row in built.train + built.held_out) == [
        *("3", "4", "5"),
        *(f"<think>\nEasy.\n</think>\n\n{i}" for i in range(3)),
    ]
    row = next(row for row in built.train if row["response"].startswith("<think>"))
    assert json.loads(row["messages"])[-1]["role"] == "user"


def test_rows_that_the_template_writes_otherwise_are_counted_with_a_warning(models, tmp_path, caplog):
    rows = [*turns_with(3, reasoning="Easy."), *turns_with(5)[3:]]
    with caplog.at_level(logging.WARNING):
        built = BuiltPrompts(models("always-thinking"), tmp_path, rows, chat="tokenizer")
    assert built.drops == {"template-differs": 2}
    assert (
        "2 of 5 conversations are dropped, because the chat template opens their answers in another way" in caplog.text
    )


def test_a_source_whose_rows_are_all_refused_says_how_to_fix_it(models, tmp_path):
    with pytest.raises(DataError, match=r"4 of 4 dropped as template-differs\): set chat\.template_kwargs"):
        BuiltPrompts(models("always-thinking"), tmp_path, turns_with(4), chat="tokenizer")


def test_thoughts_that_vanish_are_counted_in_a_warning(models, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        BuiltPrompts(
            models("chatml"), tmp_path, [*turns_with(3, reasoning="Easy."), *turns_with(5)[3:]], chat="tokenizer"
        )
    assert "the chat template leaves out the thoughts of 3 of 5 responses" in caplog.text


def test_rows_that_the_template_refuses_are_counted_with_what_it_says(tmp_path, caplog):
    model = save_tiny_model(tmp_path / "model", tokenizer := chat_tokenizer("chatml"))
    tokenizer.chat_template = (
        "{% if 'secret' in messages[0].content %}{{ raise_exception('no secrets') }}{% endif %}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(model)
    rows = [{"prompt": "a secret", "response": "Oh"}, *({"prompt": f"Say {i}", "response": "So"} for i in range(3))]
    with caplog.at_level(logging.WARNING):
        built = BuiltPrompts(model, tmp_path, rows, chat="tokenizer")
    assert built.drops == {"template-refuses": 1}
    assert "refuses 1 of 4 conversations, which are dropped (no secrets)" in caplog.text


def test_rows_whose_text_the_template_drops_are_counted_with_a_warning(models, tmp_path, caplog):
    rows = turns_with(5)
    for row in rows[:2]:
        row["messages"][1]["content"] = "<think>hm</think>A <think>again</think> B"
    with caplog.at_level(logging.WARNING):
        built = BuiltPrompts(models("thinking"), tmp_path, rows, chat="tokenizer")
    assert built.drops == {"template-drops-text": 2}
    assert "2 of 5 conversations are dropped, because the chat template leaves a part of their text out" in caplog.text


# The setting.


def test_template_kwargs_are_a_part_of_the_identity_only_when_they_are_set():
    assert "template_kwargs" not in identity_of(ChatConfig())
    assert "template_kwargs" not in ChatConfig().model_dump(mode="json")
    assert identity_of(ChatConfig(template_kwargs={"enable_thinking": False}))["template_kwargs"] == {
        "enable_thinking": False
    }
    config = resolve("smollm2-135m", sets=['chat.template_kwargs={"enable_thinking": false}'])
    assert config.chat.template_kwargs == {"enable_thinking": False}
    assert ChatConfig.model_validate(config.chat.model_dump(mode="json")) == config.chat


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"messages": []}, "template_kwargs cannot set messages"),
        ({"date_string": date(2024, 7, 26)}, "template_kwargs.date_string is a date, which JSON cannot hold: quote it"),
        ({"enable_thinking": True, "template": "plain"}, "chat.template is plain"),
    ],
)
def test_switches_that_cannot_be_set_are_rejected(setting, message):
    template = setting.pop("template", "tokenizer")
    with pytest.raises(ValueError, match=message):
        ChatConfig(template=template, template_kwargs=setting)


def test_a_switch_that_the_template_does_not_read_is_rejected():
    with pytest.raises(ConfigError, match="sets enable_thinkng, which the chat template does not read"):
        renderer_of("thinking", enable_thinkng=False)
