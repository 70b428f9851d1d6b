"""From rows to conversations: formats, turns, and what is wrong with a row."""

import json
import math

import pytest

from spin_core.config.data import PromptsConfig
from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.conversations import conversations
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DataError
from tests.support.lineages.built_prompts import rows_of

FORMATS = {
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "spin": lambda q, a: {
        "real": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
        "generated": [{"role": "user", "content": q}, {"role": "assistant", "content": "other"}],
    },
    "prompt-response": lambda q, a: {"prompt": q, "response": a},
    "role and value": lambda q, a: {"messages": [{"role": "User ", "value": q}, {"role": "AI", "value": a}]},
    "from and content": lambda q, a: {
        "conversations": [{"from": "human", "content": q}, {"from": "gpt", "content": a}]
    },
    "JSON": lambda q, a: {
        "messages": json.dumps([{"role": "user", "content": q}, {"role": "assistant", "content": a}])
    },
    "lists": lambda q, a: {"messages": {"role": ["user", "assistant"], "content": [q, a], "name": None}},
    "turns": lambda q, a: {
        "prompt": [{"role": "user", "content": q}],
        "response": [{"role": "assistant", "content": a}],
    },
    "turn": lambda q, a: {"prompt": q, "response": {"from": "gpt", "value": a}},
    "repeated turns": lambda q, a: {
        "prompt": q,
        "response": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
    },
    "instruction": lambda q, a: {"instruction": q, "input": "", "output": a},
    "self-instruct": lambda q, a: {"instruction": q, "instances": [{"input": "", "output": a}]},
    "marked text": lambda q, a: {"text": f"### Human: {q}### Assistant: {a}"},
}


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_format_holds_the_same_conversations(build, kind):
    built = build([FORMATS[kind](f"Question {i}?", f"Answer {i}.") for i in range(3)])
    assert built.pairs == [(f"Question {i}?", f"Answer {i}.") for i in range(3)]


def test_columns_are_renamed_before_the_format_is_guessed(build):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(2)]
    assert build(rows, columns={"question": "prompt", "answer": "response"}).pairs == [("0?", "0"), ("1?", "1")]


def test_the_input_is_below_the_instruction(build):
    rows = [{"instruction": "Add.", "input": f"{i} + 1", "output": str(i + 1)} for i in range(2)]
    assert build(rows).pairs == [("Add.\n\n0 + 1", "1"), ("Add.\n\n1 + 1", "2")]


@pytest.mark.parametrize("missing", ["", " ", None])
def test_the_input_is_the_prompt_where_the_instruction_is_missing(build, missing):
    rows = [{"instruction": f"{i}?", "input": "", "output": str(i)} for i in range(2)]
    built = build([*rows, {"instruction": missing, "input": "Who?", "output": "I."}])
    assert built.pairs == [("0?", "0"), ("1?", "1"), ("Who?", "I.")]


def test_a_text_is_cut_between_words_and_loses_nothing(build):
    texts = ["Once upon a time there was a cat.", "The dog ran\n\nhome and slept."]
    built = build([{"text": text} for text in texts], text_prompt_chars=13)
    assert built.pairs == [("Once upon a", " time there was a cat."), ("The dog ran", "\n\nhome and slept.")]


def test_a_text_without_room_for_a_response_is_dropped(build):
    texts = ["A short one", "Nospacesuntilthebordercomes here", "Ann went home again", "Bob went home again"]
    built = build([{"text": text} for text in texts], text_prompt_chars=12)
    assert built.drops == {"text-too-short": 1, "empty-prompt": 1}


CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Bye."},
    {"role": "user", "content": "Thanks"},
]


def test_the_last_assistant_turn_is_the_response_and_what_follows_is_left(build, chat_model):
    rows = [{"messages": CONVERSATION}, {"messages": CONVERSATION[:2]}]
    built = build(rows, model=chat_model, chat="tokenizer")
    by_response = {row["response"]: row for row in built.train + built.held_out}
    assert set(by_response) == {"Bye.", "Hello."}
    assert json.loads(by_response["Bye."]["messages"]) == CONVERSATION[:3]
    assert by_response["Bye."]["prompt"] == "user: Hi\n\nassistant: Hello.\n\nuser: And now?"


def test_only_the_first_round_can_be_answered(build):
    other = [{"role": "user", "content": "Hey"}, *CONVERSATION[1:]]
    built = build([{"messages": CONVERSATION}, {"messages": other}], rounds="first")
    assert built.pairs == [("Hey", "Hello."), ("Hi", "Hello.")]


def test_chat_rows_have_the_tokens_of_the_renderer(build, chat_model):
    system = {"role": "system", "content": "Be brief."}
    rows = [{"messages": [system, *CONVERSATION]}, {"messages": CONVERSATION}, {"messages": CONVERSATION[2:4]}]
    built = build(rows, model=chat_model, chat="tokenizer", max_prompt_tokens=200)
    assert built.fields["rows"] == 2
    renderer = Renderer(load_tokenizer(chat_model, ModelConfig()), ChatConfig())
    for row in built.train + built.held_out:
        messages = json.loads(row["messages"])
        assert row["prompt_ids"] == renderer.prompt_ids(messages)
        assert (row["response_ids"], row["finish_reason"]) == renderer.response_ids(messages, row["response"], 50)
    assert built.fields["stop_ids"] == (5, 2)


def test_conversations_that_cannot_be_answered_are_counted(build):
    rows = [
        {"messages": CONVERSATION},
        {"messages": CONVERSATION[2:4]},
        {"messages": CONVERSATION[:1]},
        {"messages": CONVERSATION[1:2]},
        {"messages": [CONVERSATION[0], *CONVERSATION]},
        {"messages": [{"role": "narrator", "content": "42"}, *CONVERSATION]},
        {"messages": [{"role": "user", "content": " "}, CONVERSATION[1]]},
        {"messages": [CONVERSATION[0], {"role": "assistant", "content": "\n"}]},
    ]
    assert build(rows).drops == {
        "no-response": 1,
        "turns-out-of-order": 2,
        "unknown-role": 1,
        "empty-prompt": 1,
        "empty-response": 1,
    }


def test_missing_columns_name_what_was_found_and_what_is_needed(build):
    rows = [{"ask": "q", "answer": "a"}] * 2
    with pytest.raises(
        DataError,
        match=r"has the columns answer, ask, but needs one of: messages or conversations; real; a prompt \(pr",
    ):
        build(rows)
    for format, missing in (("prompt-response", "prompt"), ("instruction", "instruction"), ("messages", "messages")):
        with pytest.raises(DataError, match=rf"no column {missing}, which prompts.format = {format} needs"):
            build(rows, format=format)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": 5, "response": "x"}, "row 3: prompt is int 5, not text"),
        (
            {"prompt": [{"content": "x"}], "response": "x"},
            "row 3: prompt holds dict .*, not a turn with role and content",
        ),
        ({"prompt": "x", "response": {"from": "gpt", "value": 1}}, "row 3: value is int 1, not text"),
        ({"prompt": "\ud83d", "response": "x"}, "row 3: prompt holds half a character"),
    ],
)
def test_wrong_types_are_named_by_their_row(build, tmp_path, row, message):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in [*rows_of(2), row]))
    with pytest.raises(DataError, match=message):
        build(tmp_path / "rows.jsonl")


def test_messages_that_are_no_list_are_named_by_their_row(build):
    with pytest.raises(DataError, match="row 2: messages is str 'hi', not a list of turns"):
        build([{"messages": CONVERSATION}, {"messages": "hi"}])


def test_rows_of_which_none_has_a_response_are_rejected(build):
    with pytest.raises(
        DataError, match=r"no row of .* is left \(2 of 2 dropped as no-response\): give rows with an assist"
    ):
        build([{"messages": CONVERSATION[:1]}] * 2)


# Turns that are not to be learned


ASK, SAY = {"role": "user", "content": "Again?"}, {"role": "assistant", "content": "Wrong."}


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"training": "false"}, {"loss": False}]
)
def test_a_turn_that_is_not_to_be_learned_is_never_the_response(build, mark):
    rows = [{"messages": [*CONVERSATION[:2], ASK, {**SAY, **mark}]}] * 2
    rows.append({"messages": [ASK, {**SAY, **mark}]})
    rows.append({"messages": [ASK, {**SAY, "weight": 1, "train": None, "loss": 0.0}]})
    rows.append({"messages": [{**ASK, "content": "And?"}, {**SAY, "weight": math.nan}]})
    built = build(rows)
    assert built.pairs == [("Again?", "Wrong."), ("And?", "Wrong."), ("Hi", "Hello.")]
    assert built.drops == {"duplicate": 1, "not-to-be-learned": 1}


def test_the_first_round_is_the_first_turn_that_may_be_learned(build, chat_model):
    rows = [{"messages": [{**turn, "weight": int(turn != CONVERSATION[1])} for turn in CONVERSATION]}]
    rows.append({"messages": CONVERSATION[:2]})
    built = build(rows, rounds="first", model=chat_model, chat="tokenizer")
    by_response = {row["response"]: json.loads(row["messages"]) for row in built.train + built.held_out}
    assert by_response == {"Bye.": CONVERSATION[:3], "Hello.": CONVERSATION[:1]}, "no mark reaches the messages"


def test_a_mark_that_is_neither_true_nor_false_is_named_by_its_row(build):
    rows = [*rows_of(2), {"messages": [ASK, {**SAY, "weight": "half"}]}]
    with pytest.raises(DataError, match="row 3: weight is str 'half', not a number, true or false"):
        build([{"messages": CONVERSATION}, {"messages": CONVERSATION}, rows[2]])


# Missing values


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "response": None}, "empty-response"),
        ({"prompt": "x", "response": ""}, "empty-response"),
        ({"prompt": "x"}, "empty-response"),
        ({"prompt": None, "response": "x"}, "empty-prompt"),
        ({"prompt": "", "response": "x"}, "empty-prompt"),
        ({"prompt": [{"role": "user"}], "response": "x"}, "empty-prompt"),
        ({"prompt": [{"role": "user", "content": None}], "response": "x"}, "empty-prompt"),
        ({"prompt": "x", "response": [{"role": "assistant", "content": None}]}, "empty-response"),
        ({"prompt": "x", "response": []}, "no-response"),
    ],
)
def test_a_missing_value_is_dropped_and_counted_as_an_empty_one(build, row, reason):
    assert build([*rows_of(2), row]).drops == {reason: 1}


def test_missing_turns_are_dropped_and_counted(build):
    rows = [{"messages": CONVERSATION}, {"messages": CONVERSATION[:2]}, {"messages": None}, {"messages": []}]
    assert build(rows).drops == {"no-response": 2}


def test_keys_that_arrow_fills_with_null_are_absent(build, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"from": "human", "value": "Hey"}, {"from": "gpt", "value": "Ho"}]
    rows = [{"messages": CONVERSATION[:2]}, {"messages": turns}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist()[0]["messages"][0]["from"] is None
    assert build(tmp_path / "rows.parquet").pairs == [("Hey", "Ho"), ("Hi", "Hello.")]


@pytest.mark.parametrize("content", [{}, {"text": "Hello."}, {"content": None}, {"content": " "}])
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_an_earlier_turn_without_text_drops_the_row(role, content):
    roles = ("system", "user", "assistant", "tool", "assistant", "user", "assistant")
    turns = [{"role": name, "content": "So."} for name in roles]
    turns[roles.index(role)] = {"role": role, **content}
    kept, drops = conversations([{"messages": turns}], PromptsConfig(), "x")
    says_nothing = content == {"content": " "} and role in ("system", "tool")
    assert (len(kept), drops) == ((1, {}) if says_nothing else (0, {"turn-without-content": 1}))


# Responses that are turns


def turns(*texts):
    """Turns of a user and the assistant in turn."""
    return [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"prompt": "Hi", "response": turns("Hi ", "Ho")}, ["Hi ", "Ho"]),
        ({"prompt": turns("Hi", "Ho"), "response": turns("And?", "So.")}, ["Hi", "Ho", "And?", "So."]),
        ({"prompt": "And?", "response": turns("Hi", "Ho", "And?", "So.")}, ["Hi", "Ho", "And?", "So."]),
        ({"prompt": [SYSTEM, *turns("Hi")], "response": turns("Hi", "Ho")}, ["Be brief.", "Hi", "Ho"]),
        ({"prompt": "Hi", "response": [SYSTEM, *turns("Hi", "Ho")]}, ["Be brief.", "Hi", "Ho"]),
        ({"prompt": "Hi", "response": [SYSTEM, turns("", "Ho")[1]]}, ["Be brief.", "Hi", "Ho"]),
        ({"prompt": None, "response": turns("Hi", "Ho")}, ["Hi", "Ho"]),
        ({"instruction": "Add.", "input": "1", "output": turns("Add.\n\n1", "2")}, ["Add.\n\n1", "2"]),
        ({"instruction": "Add.", "input": "1", "output": turns("1", "2")}, "two-prompts"),
        ({"instruction": "Add.", "output": turns("1", "2")}, "two-prompts"),
        ({"prompt": "Hi", "response": [SYSTEM]}, "no-response"),
        ({"prompt": [SYSTEM, *turns("Hi")], "response": [{**SYSTEM, "content": "No."}]}, "several-system-prompts"),
    ],
)
def test_turns_of_the_prompt_are_kept_where_the_response_has_turns_of_a_user(row, texts):
    kept, drops = conversations([row], PromptsConfig(), "x")
    if isinstance(texts, str):
        assert (kept, drops) == ([], {texts: 1})
    else:
        assert [*(turn["content"] for turn in kept[0].messages), kept[0].response] == texts


def test_lists_of_different_lengths_are_no_turns():
    with pytest.raises(DataError, match="row 1: messages has lists of different lengths: fix that row"):
        conversations([{"messages": {"role": ["user", "assistant"], "content": ["Hi"]}}], PromptsConfig(), "x")


@pytest.mark.parametrize("thought", ["<think>\nHm", "\n<think>Hm</thin"])
def test_a_response_whose_thought_does_not_end_is_left_out(thought):
    row = {"prompt": "Q?", "response": "<think>\nHm\n</think>\n\nA."}
    kept, drops = conversations([row, {**row, "response": thought}], PromptsConfig(), "x")
    assert ([item.response for item in kept], drops) == ([row["response"]], {"unclosed-thought": 1})


# Marked texts


def test_all_turns_of_a_marked_text_are_read(build, chat_model):
    text = "### Human: Hi### Assistant: Hello.\n### Human: And\nnow?### Assistant: Bye.### Human: Thanks"
    built = build([{"text": text}, {"text": "### Human: A### Assistant: B"}], model=chat_model, chat="tokenizer")
    by_response = {row["response"]: json.loads(row["messages"]) for row in built.train + built.held_out}
    assert set(by_response) == {"Bye.", "B"}
    assert [turn["content"] for turn in by_response["Bye."]] == ["Hi", "Hello.", "And\nnow?"]


def test_texts_without_marks_among_marked_ones_are_counted(build):
    texts = [f"### Human: {i}### Assistant: {i}!" for i in range(4)]
    built = build([{"text": text} for text in ["Once upon a time there was a cat. It slept.", *texts, "### Human: Hm"]])
    assert built.drops == {"without-marks": 1, "no-response": 1}


def test_a_renamed_column_that_no_row_has_is_rejected():
    config = PromptsConfig(columns={"chosn": "response"})
    with pytest.raises(
        DataError, match=r"prompts\.columns names chosn, which no row of x has \(did you mean chosen\?\)"
    ):
        conversations([{"prompt": "p", "response": "r", "chosen": "c"}], config, "x")
