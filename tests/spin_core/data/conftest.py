"""Fixtures of the tests that run phase `prompts`."""

import pytest

from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.built_prompts import BuiltPrompts

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ '[' + (tool | tojson) + ']' }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_model_with(template, folder):
    """A tiny model whose tokenizer has ChatML's control tokens and this template."""
    specials = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
    return save_tiny_model(folder, character_tokenizer(specials, chat_template=template))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A tiny model whose tokenizer has ChatML's template."""
    return save_model_with(CHATML, tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory):
    """A tiny model whose template writes tools, calls and results."""
    return save_model_with(TOOLS, tmp_path_factory.mktemp("tools"))


@pytest.fixture
def build(tiny_model, tmp_path):
    return lambda source, model=tiny_model, **kwargs: BuiltPrompts(model, tmp_path, source, **kwargs)
