"""A version's folder for other programs: they write the lineage's prompts and sample as it does."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from spin_core.config.resolve import resolve
from spin_core.data.chat import Renderer
from spin_core.data.templates.portable import differs, portable_template
from spin_core.lineage.model_folder import write_model_folder
from spin_core.store.records import ModelVersion
from tests.support.helpers import character_tokenizer, save_tiny_model

CHATML = (
    "{% if shouts %}{{ '!' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '[' + m['content'] + ']' }}{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
)

CONVERSATIONS = [
    [{"role": "user", "content": "a question"}],
    [
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "4"},
    ],
    [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a question"}],
]


@pytest.mark.parametrize("system", [None, "be 'brief'\nand \"clear\""])
@pytest.mark.parametrize(
    ("template", "sets"),
    [
        (None, ["chat.template=plain"]),
        (None, ["chat.template=plain", "chat.add_bos=false"]),
        (None, ["chat.template=format"]),
        (None, ["chat.template=format", "chat.format='Q: {prompt}\\nA:'"]),
        (CHATML, ["chat.template=tokenizer"]),
        (CHATML, ["chat.template=tokenizer", "chat.template_kwargs.shouts=true"]),
        (NO_SYSTEM, ["chat.template=tokenizer"]),
    ],
)
def test_one_template_writes_the_prompts_of_every_chat_format(template, sets, system):
    extra = {"chat_template": template} if template else {}
    tokenizer = character_tokenizer(**extra)
    chat = resolve("demo", sets=sets, overrides={"chat": {"system": system}}).chat
    renderer = Renderer(tokenizer, chat)
    written = portable_template(renderer)
    assert not differs(renderer, written)
    expected = [renderer.prompt_ids(turns) for turns in CONVERSATIONS]
    tokenizer.chat_template = written
    for turns, ids in zip(CONVERSATIONS, expected, strict=True):
        assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == ids


def test_a_template_that_writes_something_else_is_noticed():
    renderer = Renderer(character_tokenizer(), resolve("demo", sets=["chat.template=plain"]).chat)
    assert differs(renderer, "{{ messages[0]['content'] }}")


@pytest.mark.parametrize("link", [True, False])
def test_the_folder_has_the_weights_the_template_and_the_sampling(tmp_path, link):
    model = save_tiny_model(tmp_path / "model", character_tokenizer())
    version = ModelVersion(path=model, digest="0" * 64, t=1, parent=None)
    sets = ["chat.template=plain", "generate.temperature=[0.3,0.6]", "generate.min_p=0.1", "generate.max_new_tokens=9"]
    out = tmp_path / "out"
    assert write_model_folder(version, resolve("demo", sets=sets), out, link=link) == []
    assert (out / "model.safetensors").is_symlink() == link
    loaded, original = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, model))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(ids).logits, original(ids).logits)
    sampling = GenerationConfig.from_pretrained(out)
    assert (sampling.temperature, sampling.min_p, sampling.max_new_tokens, sampling.do_sample) == (0.6, 0.1, 9, True)
    assert sampling.eos_token_id == [2]
    turns = [{"role": "user", "content": "hi"}]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.apply_chat_template(turns, return_dict=False)) == "<s>hi"
