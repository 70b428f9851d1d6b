"""Fixtures of the tests that run phase `prompts`."""

import pytest

from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.built_prompts import BuiltPrompts

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A tiny model whose tokenizer has ChatML's template."""
    specials = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
    return save_tiny_model(tmp_path_factory.mktemp("chat"), character_tokenizer(specials, chat_template=CHATML))


TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ '[' + (tool | tojson) + ']' }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory):
    """A tiny model whose template writes tools, calls and results."""
    specials = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
    return save_tiny_model(tmp_path_factory.mktemp("tools"), character_tokenizer(specials, chat_template=TOOLS))


@pytest.fixture
def build(tiny_model, tmp_path):
    return lambda source, model=tiny_model, **kwargs: BuiltPrompts(model, tmp_path, source, **kwargs)
