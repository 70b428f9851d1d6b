"""For any conversation and any template, prompt ids + response ids are what the template writes, or it is refused.

The templates are written in the style of those that models bring. transformers' own `apply_chat_template`, which the
code does not use, says what they write.
"""

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from spin_core.config.model import ChatConfig
from spin_core.data.chat import Renderer
from spin_core.errors import ConfigError
from tests.support.models.chat_tokenizers import TEMPLATES, chat_tokenizer

FAMILIES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
UNUSABLE = "forgets-thoughts"
"""The family whose answers never follow its prompts."""

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.text(st.sampled_from("ab \t\n\r\u00a0\u3000é😀<>|"), min_size=1, max_size=12),
    st.sampled_from(["\n", "</think>", "<think>", "4.\n\n", "\n\n4", " ", "[DONE", "### user:\n", "{{ bos_token }}"]),
)
THOUGHTS = st.builds("{}<think>{}{}{}</think>{}{}".format, *[st.sampled_from(["", "\n", " ", "\n\n"]), TEXTS] * 3)
USERS = st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS})
SYSTEMS = st.fixed_dictionaries({"role": st.just("system"), "content": TEXTS})
ASSISTANTS = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS | THOUGHTS},
    optional={"reasoning_content": TEXTS, "reasoning": TEXTS},
)


@st.composite
def conversations(draw):
    """Turns that begin with a user's, after a system's perhaps, and end in an assistant's."""
    system = draw(st.lists(SYSTEMS, max_size=1))
    return [*system, *(draw(turn) for _ in range(draw(st.integers(1, 3))) for turn in (USERS, ASSISTANTS))]


@cache
def renderer_of(family):
    return Renderer(chat_tokenizer(family), ChatConfig())


def visible(text):
    """A text without thoughts and white space."""
    return "".join(re.sub("<think>.*?</think>", "", text, flags=re.DOTALL).split())


def check(family, turns):
    """Compare with what transformers writes for the turns that the renderer says it has rendered."""
    renderer = renderer_of(family)
    tokenizer = renderer.tokenizer
    *messages, response = turns
    [row] = renderer.encode([messages], [response], cap=10**6)
    assert "".join(turn["content"] for turn in row.messages).replace("\n\n", "") == "".join(
        turn["content"] for turn in messages
    ).replace("\n\n", "")

    def written(turns, **options):
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)

    try:
        prompt, whole = written(row.messages, add_generation_prompt=True), written([*row.messages, response])
    except TemplateError:
        assert row.refused == "template-refuses"
        return
    if not whole.startswith(prompt):
        assert row.refused == "template-differs"
        assert (row.prompt_ids, row.response_ids) == ([], [])
        return
    if row.refused:
        assert row.refused == "template-drops-text"
        assert family == "thinking"
        assert any("</think>" in turn["content"] for turn in turns if turn["role"] == "assistant")
        return
    assert visible(response["content"]) in visible(whole[len(prompt.removesuffix("<think>\n")) :])
    assert row.finish_reason == "stop"

    def decoded(ids):
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    text = decoded(row.prompt_ids + row.response_ids)
    if not renderer.frame.is_written:
        assert row.response_ids[-1] == tokenizer.eos_token_id
        text = text.removesuffix(tokenizer.eos_token)
    assert whole.startswith(text)
    assert not whole.removeprefix(text).strip()
    assert row.prompt == decoded(row.prompt_ids)
    # What generation is given is the template's own prompt, and after it an empty thought at most.
    assert row.prompt.removeprefix(prompt) in ("", renderer.frame.header)
    assert (
        decoded(row.response_ids).removesuffix(renderer.frame.closing).removeprefix(renderer.frame.lead) == row.response
    )


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != UNUSABLE])
@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(turns=conversations())
def test_prompt_and_response_are_what_the_template_writes(family, turns):
    check(family, turns)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != UNUSABLE])
@settings(max_examples=1000, database=None, deadline=None)
@given(turns=conversations())
def test_prompt_and_response_are_what_the_template_writes_for_many_more(family, turns):
    check(family, turns)


def test_the_family_whose_answers_never_follow_its_prompts_is_refused():
    with pytest.raises(ConfigError, match="generation and training would see different prompts"):
        renderer_of(UNUSABLE)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != UNUSABLE])
def test_no_family_refuses_an_ordinary_conversation(family):
    thought = {"reasoning_content": "Two and two."} if family == "always-thinking" else {}
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}] * 2
    conversation = [{"role": "system", "content": "Be brief."}, *turns[:3]]
    [row] = renderer_of(family).encode([conversation], [{"content": "4.", **thought}], cap=100)
    assert not row.refused
    assert row.response.endswith("4.")
