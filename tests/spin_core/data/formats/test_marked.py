"""Texts with a mark before each turn."""

import pytest

from spin_core.config.data import PromptsConfig
from spin_core.data.conversations import conversations
from spin_core.data.formats.marked import divide
from spin_core.errors import DataError

FAMILIES = {
    "guanaco": "### Human: Q?### Assistant: A.### Human: And?### Assistant: So.",
    "lower case": "### human: Q?\n### assistant: A.\n### human: And?\n### assistant: So.",
    "no space": "###Human: Q?###Assistant: A.###Human: And?###Assistant: So.",
    "instructions": "### Instruction:\nQ?\n\n### Response:\nA.\n\n### Instruction:\nAnd?\n\n### Response:\nSo.",
    "headings": "### Instruction\nQ?\n\n### Response\nA.\n\n### Instruction\nAnd?\n\n### Response\nSo.</s>",
    "llama 2": "<s>[INST] Q? [/INST] A. </s><s>[INST] And? [/INST] So. </s>",
    "llama 3": "<|begin_of_text|>"
    + "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
        for role, text in [("user", "Q?"), ("assistant", "A."), ("user", "And?"), ("assistant", "So.")]
    ),
    "chatml": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\nA.<|im_end|>\n"
    "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
    "gemma": "<bos><start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\nA.<end_of_turn>\n"
    "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>\n",
    "zephyr": "<|user|>\nQ?</s>\n<|assistant|>\nA.</s>\n<|user|>\nAnd?</s>\n<|assistant|>\nSo.</s>",
    "vicuna": "USER: Q? ASSISTANT: A.</s>USER: And? ASSISTANT: So.</s>",
    "one line": "Human: Q? Assistant: A. Human: And? Assistant: So.",
    "paragraphs": "\n\nHuman: Q?\n\nAssistant: A.\n\nHuman: And?\n\nAssistant: So.",
    "questions": "Question: Q?\nAnswer: A.\nQuestion: And?\nAnswer: So.",
    "letters": "Q: Q?\nA: A.\nQ: And?\nA: So.",
}


def texts_of(text):
    return [(turn["role"], turn["content"]) for turn in divide(text)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_of_marks_divides_a_text(family):
    rows = [{"text": FAMILIES[family]}] * 3
    kept, drops = conversations(rows, PromptsConfig(), "x")
    assert [([turn["content"] for turn in item.messages], item.response) for item in kept] == [
        (["Q?", "A.", "And?"], "So.")
    ] * 3
    assert not drops


@pytest.mark.parametrize(
    "text",
    [
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nQ? [/INST] A. </s>",
        "<|system|>\nBe kind.</s>\n<|user|>\nQ?</s>\n<|assistant|>\nA.</s>",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\nA.<|im_end|>",
        "SYSTEM: Be kind. USER: Q? ASSISTANT: A.",
        "### System:\nBe kind.\n\n### Instruction:\nQ?\n\n### Response:\nA.",
    ],
)
def test_a_system_prompt_is_a_turn_of_its_own(text):
    assert texts_of(text) == [("system", "Be kind."), ("user", "Q?"), ("assistant", "A.")]


def test_a_system_prompt_without_a_mark_is_read_and_the_frame_of_instructions_left_out():
    vicuna = "A chat between a curious user and an assistant. USER: Q? ASSISTANT: A.</s>"
    assert texts_of(vicuna)[0] == ("system", "A chat between a curious user and an assistant.")
    alpaca = (
        "Below is an instruction that describes a task.\n\n### Instruction:\nQ?\n\n### Input:\nI\n\n### Response:\nA."
    )
    assert texts_of(alpaca) == [("user", "Q?\n\nI"), ("assistant", "A.")]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("### Human: Q?### Assistant: A form:\n### User: name\nend", "A form:\n### User: name\nend"),
        ("### Instruction:\nQ?\n\n### Response:\nA.\n### Input:\n3\n## Output:\n4", "A.\n### Input:\n3\n## Output:\n4"),
        ("Human: Q?\n\nAssistant: A.\nuser: root", "A.\nuser: root"),
        ("Question: Which?\nAnswer: It is\nA: this", "It is\nA: this"),
    ],
)
def test_what_looks_like_a_mark_but_is_written_differently_stays_in_the_answer(text, answer):
    assert texts_of(text)[-1] == ("assistant", answer)


def test_texts_in_which_turns_do_not_alternate_are_counted():
    texts = [FAMILIES["guanaco"]] * 4
    texts += ["### Human: Q?### Assistant: A form:\n### Assistant: B", "### Human: Hm", "Once there was a cat."]
    kept, drops = conversations([{"text": text} for text in texts], PromptsConfig(), "x")
    assert len(kept) == 4
    assert drops == {"marks-out-of-order": 1, "no-response": 1, "without-marks": 1}


@pytest.mark.parametrize(
    "text",
    [
        "<|speaker_1|>\nQ?\n<|speaker_2|>\nA.",
        "### Human: Q?\n### Human: And?",
        "### Kunde: Q?\n### Berater: A.",
        "USER: Q? BOSS: A.",
        "[INST] Q?",
    ],
)
def test_texts_that_look_marked_but_cannot_be_divided_are_refused(text):
    rows = [{"text": text + " And so on, until the text is long enough to be cut in two as plain text is."}] * 3
    with pytest.raises(DataError, match=r"x: most texts begin with a mark, .* set prompts\.format to text, which"):
        conversations(rows, PromptsConfig(), "x")
    kept, _ = conversations(rows, PromptsConfig(format="text"), "x")
    assert len(kept) == 3


@pytest.mark.parametrize("start", ["Title: ", "# Heading\n", "## Heading\n", "A: ", "[1] ", "<p>", ""])
def test_texts_of_other_kinds_stay_plain(start):
    rows = [{"text": f"{start}Once upon a time there was a cat that slept all day and was awake all night."}] * 3
    kept, drops = conversations(rows, PromptsConfig(), "x")
    assert (len(kept), drops) == (3, {})


def test_one_conversation_among_plain_texts_is_counted():
    rows = [{"text": "Once upon a time there was a cat that slept all day and was awake all night."}] * 3
    kept, drops = conversations([*rows, {"text": FAMILIES["vicuna"]}], PromptsConfig(), "x")
    assert (len(kept), drops) == (3, {"with-marks": 1})
