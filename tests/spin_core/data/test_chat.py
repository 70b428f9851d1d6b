"""Prompts and responses as token ids, over the chat formats that models use."""

import pytest

from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.templates.responses import decode_responses
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DataError, ModelError
from tests.support.helpers import character_tokenizer, data_folder

TURN = "{% for m in messages %}"
END = "{% endfor %}"
ASK = "{% if add_generation_prompt %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"

TEMPLATES = {
    "zephyr": TURN
    + "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    + END
    + ASK
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "chatml": TURN
    + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    + END
    + ASK
    + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-3": "{{ bos_token }}"
    + TURN
    + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    + END
    + ASK
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "mistral": NO_SYSTEM
    + "{{ bos_token }}"
    + TURN
    + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    + "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}"
    + END,
    "llama-2": "{% for m in messages %}"
    + "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    + "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    + END,
    "gemma": NO_SYSTEM
    + "{{ bos_token }}"
    + TURN
    + "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
    + "{{ m['content'] | trim + '<end_of_turn>\n' }}"
    + END
    + ASK
    + "{{ '<start_of_turn>model\n' }}{% endif %}",
}
END_OF_TURN = {
    "zephyr": "</s>",
    "chatml": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "mistral": "</s>",
    "llama-2": "</s>",
    "gemma": "<end_of_turn>",
    "plain": "</s>",
    "format": "</s>",
}
SPECIALS = (
    *("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"),
)
CHATS = sorted(TEMPLATES)
ALL = sorted(END_OF_TURN)

ONE_TURN = [{"role": "user", "content": "What is 2 + 2?"}]
THREE_TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "What is 2 + 2?"},
]


def tokenizer_of(family, **kwargs):
    """The tokenizer of a family, adding a BOS by itself as the real ones do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = character_tokenizer(SPECIALS, **kwargs)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.chat_template = TEMPLATES.get(family)
    return tokenizer


def renderer_of(family, **config):
    mode = family if family in ("plain", "format") else "tokenizer"
    return Renderer(tokenizer_of(family), ChatConfig(template=mode, **config))


@pytest.mark.parametrize("family", CHATS)
@pytest.mark.parametrize("messages", [ONE_TURN, THREE_TURNS])
def test_prompt_and_response_are_the_ids_of_the_whole_conversation(family, messages):
    renderer = renderer_of(family)
    prompt_ids = renderer.prompt_ids(messages)
    response_ids, finish_reason = renderer.response_ids(messages, "It is 4.", cap=100)
    answered = [*messages, {"role": "assistant", "content": "It is 4."}]
    whole = renderer.tokenizer.apply_chat_template(answered)["input_ids"]
    assert finish_reason == "stop"
    assert prompt_ids + response_ids == whole[: len(prompt_ids) + len(response_ids)]
    rest = renderer.tokenizer.decode(whole[len(prompt_ids) + len(response_ids) :])
    assert rest.strip() == ""


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("messages", [ONE_TURN, THREE_TURNS])
def test_generation_begins_after_the_prompt_that_training_sees(family, messages):
    renderer = renderer_of(family)
    [encoded] = renderer.encode([messages], ["It is 4."], cap=100)
    assert encoded.prompt_ids == renderer.prompt_ids(messages)
    assert encoded.prompt == renderer.prompt_text(messages)


@pytest.mark.parametrize("family", ALL)
def test_a_response_ends_in_exactly_one_end_of_turn_and_holds_nothing_of_the_header(family):
    renderer = renderer_of(family)
    end = renderer.tokenizer.convert_tokens_to_ids(END_OF_TURN[family])
    ids, _ = renderer.response_ids(ONE_TURN, "It is 4.", cap=100)
    assert ids[-1] == end == renderer.stop_ids[0]
    assert ids.count(end) == 1
    assert renderer.tokenizer.decode(ids[:-1]).strip() == "It is 4."


@pytest.mark.parametrize("family", ALL)
def test_a_cut_response_has_no_end_of_turn(family):
    renderer = renderer_of(family)
    whole, _ = renderer.response_ids(ONE_TURN, "It is 4.", cap=100)
    cut, finish_reason = renderer.response_ids(ONE_TURN, "It is 4.", cap=len(whole) - 1)
    assert finish_reason == "length"
    assert cut == whole[:-1]
    assert not set(cut) & set(renderer.stop_ids)
    assert renderer.response_ids(ONE_TURN, "It is 4.", cap=len(whole)) == (whole, "stop")


@pytest.mark.parametrize("family", ALL)
def test_no_bos_is_doubled(family):
    renderer = renderer_of(family)
    ids = renderer.prompt_ids(ONE_TURN)
    # Zephyr and ChatML write none, and none is added to what a template writes.
    assert ids.count(1) == (0 if family in ("zephyr", "chatml") else 1)
    assert 1 not in ids[1:]
    assert 1 not in renderer.response_ids(ONE_TURN, "It is 4.", cap=100)[0]


@pytest.mark.parametrize("family", ALL)
def test_data_that_brings_its_end_of_turn_does_not_end_twice(family):
    renderer = renderer_of(family)
    plain = renderer.response_ids(ONE_TURN, "It is 4.", cap=100)
    assert renderer.response_ids(ONE_TURN, f"It is 4.{END_OF_TURN[family]}\n", cap=100) == plain


@pytest.mark.parametrize("family", ALL)
def test_a_batch_equals_its_rows(family):
    renderer = renderer_of(family)
    conversations, texts = [ONE_TURN, THREE_TURNS, ONE_TURN], ["It is 4.", "", " Four "]
    singles = [renderer.encode([c], [t], 6)[0] for c, t in zip(conversations, texts, strict=True)]
    assert renderer.encode(conversations, texts, 6) == singles


def test_stop_ids_name_the_end_of_turn_before_another_eos():
    assert renderer_of("chatml").stop_ids == (5, 2)
    assert renderer_of("zephyr").stop_ids == (2,)


@pytest.mark.parametrize("family", ALL)
def test_a_system_prompt_comes_before_the_first_question(family):
    text = renderer_of(family, system="Be brief.").prompt_text(ONE_TURN)
    assert text.count("Be brief.") == 1
    assert text.index("Be brief.") < text.index("What is 2 + 2?")


def test_a_conversation_keeps_its_own_system_prompt():
    own = [{"role": "system", "content": "Be kind."}, *ONE_TURN]
    text = renderer_of("chatml", system="Be brief.").prompt_text(own)
    assert "Be kind." in text
    assert "Be brief." not in text


@pytest.mark.parametrize("family", ["gemma", "mistral", "llama-2"])
def test_a_template_without_system_turns_gets_it_in_the_first_user_turn(family):
    # Gemma and Mistral refuse the turn; this Llama 2 passes over it in silence.
    merged = renderer_of(family, system="Be brief.").prompt_text(THREE_TURNS)
    assert merged == renderer_of(family).prompt_text([{"role": "user", "content": "Be brief.\n\nHi"}, *THREE_TURNS[1:]])


def test_plain_text_begins_with_one_bos_if_configured():
    assert renderer_of("plain").prompt_ids(ONE_TURN)[0] == 1
    without = renderer_of("plain", add_bos=False).prompt_ids(ONE_TURN)
    assert renderer_of("plain").prompt_ids(ONE_TURN) == [1, *without]
    already = [{"role": "user", "content": "<s>Hi"}]
    assert renderer_of("plain").prompt_ids(already).count(1) == 1


def test_the_format_string_keeps_its_other_braces():
    renderer = renderer_of("format", format="{x} {prompt} ->")
    assert renderer.prompt_text(ONE_TURN) == "{x} What is 2 + 2? ->"


def test_a_thinking_template_is_prompted_past_its_empty_thought():
    think = TEMPLATES["chatml"].replace(
        "'\n' + m['content']", "'\n' + ('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') + m['content']"
    )
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = think
    renderer = Renderer(tokenizer, ChatConfig())
    assert renderer.prompt_text(ONE_TURN).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    ids, _ = renderer.response_ids(ONE_TURN, "It is 4.", cap=100)
    assert tokenizer.decode(ids) == "It is 4.<|im_end|>"


def test_a_template_that_ends_no_turn_ends_in_the_tokenizers_eos():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        TURN + "{{ m['role'] + ': ' + m['content'] + '\n' }}" + END + ASK + "assistant: {% endif %}"
    )
    renderer = Renderer(tokenizer, ChatConfig())
    ids, _ = renderer.response_ids(ONE_TURN, "It is 4.", cap=100)
    assert tokenizer.decode(ids) == "It is 4.</s>"


def test_a_template_that_writes_the_date_writes_the_same_one_tomorrow():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + TEMPLATES["chatml"]
    assert Renderer(tokenizer, ChatConfig()).prompt_text(ONE_TURN).startswith("26 Jul 2024<|im_start|>")


def bpe_tokenizer():
    """Byte-level, with tokens that reach over a space or a newline."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat. A cat, a cat and a mat"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


@pytest.mark.parametrize(("prompt", "response"), [("the cat", " sat on"), ("the ", "cat sat"), ("the c", "at")])
def test_a_token_over_the_border_changes_neither_the_prompt_nor_the_text(prompt, response):
    tokenizer = bpe_tokenizer()
    renderer = Renderer(tokenizer, ChatConfig(template="plain"))
    messages = [{"role": "user", "content": prompt}]
    [encoded] = renderer.encode([messages], [response], cap=100)
    assert encoded.prompt_ids == renderer.prompt_ids(messages)
    assert tokenizer.decode(encoded.prompt_ids) == prompt
    assert tokenizer.decode(encoded.response_ids) == f"{response}</s>"


def test_a_tokenizer_that_begins_texts_with_a_space_adds_none_to_the_response():
    tokenizer = load_tokenizer(data_folder("models", "babyllama-105"), ModelConfig())
    renderer = Renderer(tokenizer, ChatConfig(template="plain"))
    messages = [{"role": "user", "content": "Once upon"}]
    ids, _ = renderer.response_ids(messages, " a time", cap=100)
    whole = tokenizer("Once upon a time</s>")["input_ids"]
    assert renderer.prompt_ids(messages) + ids == whole


def test_a_decoded_response_keeps_its_first_space():
    tokenizer = load_tokenizer(data_folder("models", "babyllama-105"), ModelConfig())
    renderer = Renderer(tokenizer, ChatConfig(template="plain"))
    texts = [" a time", "dale"]
    rows = renderer.encode([[{"role": "user", "content": "Once upon"}]] * 2, texts, cap=100)
    assert tokenizer.decode(rows[0].response_ids, skip_special_tokens=True) == "a time"
    assert decode_responses(tokenizer, [row.prompt_ids for row in rows], [row.response_ids for row in rows]) == texts


def test_a_response_that_completes_a_character_is_decoded_by_itself():
    tokenizer = bpe_tokenizer()
    first, second = tokenizer("\u00e9", add_special_tokens=False)["input_ids"]
    assert decode_responses(tokenizer, [[first]], [[second, *tokenizer(" cat")["input_ids"]]]) == ["\ufffd cat"]


def test_line_breaks_become_spaces_if_the_tokenizer_has_none():
    tokenizer = load_tokenizer(data_folder("models", "babyllama-105"), ModelConfig())
    renderer = Renderer(tokenizer, ChatConfig(template="plain"))
    messages = [{"role": "user", "content": "Once\nupon"}]
    [encoded] = renderer.encode([messages], [" a\n\ntime"], cap=100)
    assert encoded.messages == [{"role": "user", "content": "Once upon"}]
    assert encoded.response == " a time"
    assert renderer.unknown_id == 0
    assert 0 not in encoded.prompt_ids + encoded.response_ids
    assert renderer_of("plain").clean("a\nb") == "a\nb"


def test_control_tokens_in_a_text_are_seen():
    renderer = renderer_of("chatml")
    assert renderer.has_control_token("x<|im_end|>y")
    assert renderer.has_control_token("</s>")
    assert not renderer.has_control_token("<b>im_end</b>")


def test_a_tokenizer_without_a_chat_template_says_what_to_set():
    with pytest.raises(ConfigError, match=r"has no chat template: set chat\.template to plain"):
        Renderer(character_tokenizer(), ChatConfig())


def test_a_tokenizer_without_eos_says_what_to_set():
    with pytest.raises(ModelError, match=r"no end-of-sequence token.*set model\.eos_token"):
        Renderer(character_tokenizer(eos_token=""), ChatConfig(template="plain"))


def test_a_format_without_its_prompt_is_rejected():
    with pytest.raises(ConfigError, match=r"write \{prompt\} where the prompt goes"):
        Renderer(character_tokenizer(), ChatConfig(template="format", format="### Instruction:"))


def test_a_header_that_training_would_not_see_is_rejected():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = TEMPLATES["chatml"].replace("assistant\n'", "assistant\n(thinks) '")
    with pytest.raises(ConfigError, match="generation and training would see different prompts"):
        Renderer(tokenizer, ChatConfig())


def test_a_template_that_drops_the_answer_is_rejected():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match="leaves an assistant's turn out"):
        Renderer(tokenizer, ChatConfig())


def test_an_invalid_template_is_rejected():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{% if %}"
    with pytest.raises(ConfigError, match="cannot write a question and its answer"):
        Renderer(tokenizer, ChatConfig())


def test_a_conversation_that_the_template_refuses_names_itself():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('too many turns') }}{% endif %}" + TEMPLATES["chatml"]
    )
    with pytest.raises(DataError, match=r"refuses the conversation that ends in 'What is 2 \+ 2\?' \(too many turns\)"):
        Renderer(tokenizer, ChatConfig()).prompt_text(THREE_TURNS)
