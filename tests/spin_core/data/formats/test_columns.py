"""What columns mean by their names, which of them have no influence, and what is ambiguous."""

import json

import pytest

from spin_core.config.data import PromptsConfig
from spin_core.data.conversations import unused_columns
from spin_core.data.formats.columns import PROMPTS, RESPONSES, rename, wanted_columns
from spin_core.errors import DataError
from tests.support.lineages.built_prompts import rows_of


def chats(built):
    """The turns of each row, its response last."""
    rows = sorted(built.train + built.held_out, key=lambda row: row["response"])
    return [
        [(turn["role"], turn["content"]) for turn in json.loads(row["messages"])] + [row["response"]] for row in rows
    ]


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_common_names_are_known_in_any_combination(build, prompt, response):
    assert build([{prompt: f"{i}?", response: str(i)} for i in range(2)]).pairs == [("0?", "0"), ("1?", "1")]


@pytest.mark.parametrize("column", ["input", "context"])
@pytest.mark.parametrize("prompt", ["instruction", "question", "query"])
def test_an_input_follows_the_instruction(build, prompt, column):
    rows = [{prompt: "Add.", column: f"{i} + 1", "response": str(i + 1)} for i in range(2)]
    assert build(rows).pairs == [("Add.\n\n0 + 1", "1"), ("Add.\n\n1 + 1", "2")]


@pytest.mark.parametrize("input", ["", " ", "<noinput>", "<noInput>\n"])
def test_an_input_that_is_none_is_not_in_the_prompt(build, input):
    rows = [{"instruction": f"Sing {i}.", "input": input, "output": "La."} for i in range(2)]
    assert build(rows).pairs == [("Sing 0.", "La."), ("Sing 1.", "La.")]


def test_an_input_without_an_instruction_is_the_prompt(build):
    assert build([{"input": f"{i}?", "output": str(i)} for i in range(2)]).pairs == [("0?", "0"), ("1?", "1")]


def test_a_prompt_takes_an_input_unless_it_has_it_already(build):
    rows = [{"prompt": f"{i}?", "context": "Sums.", "response": str(i)} for i in range(2)]
    rows.append({"prompt": "Of Sums. 2?", "context": " Sums.\n", "response": "2"})
    built = build(rows)
    assert built.pairs == [("0?\n\nSums.", "0"), ("1?\n\nSums.", "1"), ("Of Sums. 2?", "2")]
    assert built.fields["unused_columns"] == []
    with pytest.raises(DataError, match=r"row 1: context is list .* fix that row, or leave the column out in prompts"):
        build([{**rows[0], "context": ["Sums."]}])


# Context


def test_a_system_prompt_and_earlier_turns_are_context(build, chat_model):
    row = {"instruction": "And now?", "output": "Bye.", "history": [["Hi", "Hello."]]}
    rows = [{**row, "system": "Be brief."}, {**row, "output": "Go.", "history": None, "system_prompt": "Be kind."}]
    built = build(rows, model=chat_model, chat="tokenizer")
    assert chats(built) == [
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "And now?"), "Bye."],
        [("system", "Be kind."), ("user", "And now?"), "Go."],
    ]
    assert built.fields["unused_columns"] == []


def test_a_system_prompt_next_to_turns_is_context(build, chat_model):
    turns = [{"from": "human", "value": "Ahoy"}, {"from": "gpt", "value": "Arr"}]
    own = [
        {"from": "system", "value": "Be a pirate."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Har"},
    ]
    rows = [
        {"conversations": turns, "system": "Be a pirate.", "tools": ""},
        {"conversations": own, "system": "Be a pirate."},
    ]
    assert chats(build(rows, model=chat_model, chat="tokenizer")) == [
        [("system", "Be a pirate."), ("user", "Ahoy"), "Arr"],
        [("system", "Be a pirate."), ("user", "Hi"), "Har"],
    ]
    rows.append({"conversations": own, "system": "Be a nurse."})
    assert build(rows, model=chat_model, chat="tokenizer").drops == {"several-system-prompts": 1}


@pytest.mark.parametrize(
    "history",
    [
        '[["Hi", "Hello."]]',
        [{"role": "user", "content": "Hi"}, {"from": "gpt", "value": "Hello."}],
        [None, ["Hi", "Hello."]],
        [["user", "Hi"], ["assistant", "Hello."]],
        [["Human", "Hi"], None, ["gpt", "Hello."]],
    ],
)
def test_earlier_turns_have_several_forms(build, chat_model, history):
    rows = [{"prompt": f"{i}?", "response": str(i), "history": history} for i in range(2)]
    built = build(rows, model=chat_model, chat="tokenizer")
    assert chats(built)[0] == [("user", "Hi"), ("assistant", "Hello."), ("user", "0?"), "0"]


def test_pairs_whose_questions_are_not_all_roles_are_questions_and_answers(build, chat_model):
    rows = [{"prompt": f"{i}?", "response": str(i), "history": [["user", "A"], ["Hi", "B"]]} for i in range(2)]
    built = build(rows, model=chat_model, chat="tokenizer")
    earlier = [("user", "user"), ("assistant", "A"), ("user", "Hi"), ("assistant", "B")]
    assert chats(built)[0] == [*earlier, ("user", "0?"), "0"]


def test_tools_of_a_row_are_rendered(build, tool_model):
    tools = [{"name": "look", "description": "Look up.", "parameters": {"type": "object", "properties": {}}}]
    rows = [
        {"prompt": f"{i}?", "response": str(i), "tools": value} for i, value in enumerate([tools, json.dumps(tools)])
    ]
    built = build(rows, model=tool_model, chat="tokenizer", max_prompt_tokens=300)
    lengths = [len(row["prompt_ids"]) for row in built.train + built.held_out]
    assert lengths[0] == lengths[1] > len("look Look up.")
    assert build(rows_of(2) + rows).drops == {"tools-not-in-template": 2}


@pytest.mark.parametrize(
    ("column", "value"),
    [("system", 5), ("history", "yesterday"), ("history", [["one"]]), ("tools", "hammer"), ("tools", ["hammer"])],
)
def test_context_of_another_kind_is_named_by_its_row_and_can_be_left_out(build, column, value):
    rows = [*rows_of(2), {"prompt": "x", "response": "y", column: value}]
    with pytest.raises(
        DataError, match=rf"rows.jsonl, row 3: {column} .*leave the column out in prompts.columns, .*unused"
    ):
        build(rows)
    assert build(rows, columns={column: "unused"}).fields["unused_columns"] == [column]


def test_columns_without_influence_are_listed_by_their_own_names():
    rows = [{"id": 1, "ask": "a", "answer": "b", "note": None}, {"id": 2, "ask": "c", "answer": "d", "source": "x"}]
    assert unused_columns(rows, PromptsConfig(columns={"ask": "prompt"}), "rows") == ["id", "source"]
    turns = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert unused_columns([turns, {"conversations": turns["messages"]}], PromptsConfig(), "rows") == []
    assert unused_columns([{**turns, "conversations": turns["messages"]}], PromptsConfig(), "rows") == ["conversations"]
    assert unused_columns([{"real": [], "generated": [1], "messages": None}], PromptsConfig(), "rows") == ["generated"]


# Rows that are not to be learned


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": "0.0"}, {"train": False}, {"train": "no"}, {"label": False}]
)
def test_a_row_that_is_not_to_be_learned_is_left_out(build, flag):
    (column,) = flag
    rows = [{**row, column: True} for row in rows_of(2)]
    built = build([*rows, {"prompt": "x", "response": "y", **flag}])
    assert built.drops == {"not-to-be-learned": 1}
    assert built.fields["unused_columns"] == []
    assert build([*rows, {"prompt": "x", "response": "y", **flag}], columns={column: "unused"}).drops == {}


@pytest.mark.parametrize("other", [{"weight": "3 kg"}, {"train": "test"}, {"label": 0}, {"label": "no"}, {"loss": 0.0}])
def test_a_column_of_such_a_name_with_another_meaning_has_no_influence(build, other):
    built = build([{**row, **other} for row in rows_of(2)])
    assert built.drops == {}
    assert built.fields["unused_columns"] == [*other]


# Names that collide


def test_names_that_differ_in_case_alone_are_the_example():
    with pytest.raises(DataError, match=r'for instance \{" Response": "response", "Prompt": "prompt"\}'):
        unused_columns([{"Prompt": "a", " Response": "b", "id": "c"}], PromptsConfig(), "rows")
    with pytest.raises(DataError, match=r'for instance \{"ask": "prompt", "reply": "response"\}'):
        unused_columns([{"prompt": "a", "Prompt": "b", "id": "c"}], PromptsConfig(), "rows")


@pytest.mark.parametrize("flip", [False, True])
def test_a_new_name_that_another_column_has_is_rejected(build, flip):
    row = {"question": "q", "answer": "a", "prompt": "TEMPLATE"}
    row = dict(reversed(row.items())) if flip else row
    columns = {"question": "prompt", "answer": "response"}
    with pytest.raises(DataError, match=r"row 1: prompts.columns gives question the name prompt, but prompt has that"):
        build([row] * 2, columns=columns)
    rows = [{**row, "question": f"{i}?"} for i in range(2)]
    assert build(rows, columns={**columns, "prompt": "unused"}).pairs == [("0?", "a"), ("1?", "a")]


def test_names_can_be_exchanged_and_an_absent_column_gives_way():
    assert rename({"a": 1, "b": 2}, {"a": "b", "b": "a"}, "x") == {"b": 1, "a": 2}
    assert rename({"a": 1, "b": None}, {"a": "b"}, "x") == rename({"b": None, "a": 1}, {"a": "b"}, "x") == {"b": 1}
    with pytest.raises(DataError, match="x gives a the name c, but b has that name too"):
        rename({"a": 1, "b": 2}, {"a": "c", "b": "c"}, "x")


def test_two_columns_for_one_thing_are_rejected_unless_they_belong_together(build):
    rows = [{"question": f"{i}?", "query": "b", "answer": "c"} for i in range(2)]
    with pytest.raises(DataError, match="there are the columns question and query, which mean the same"):
        build(rows)
    assert build(rows, columns={"query": "unused"}).pairs == [("0?", "c"), ("1?", "c")]
    whole = [{"question": "a", "prompt": f"{i}?", "answer": "b", "response": "c"} for i in range(2)]
    assert build(whole).pairs == [("0?", "c"), ("1?", "c")]


def test_a_second_prompt_in_a_later_row_is_named_by_its_place(build):
    rows = [{"question": f"{i}?", "answer": "b"} for i in range(2000)] + [
        {"question": "x", "prompt": "y", "answer": "z"}
    ]
    with pytest.raises(DataError, match="there are the columns prompt and question, which mean the same"):
        build(rows)


# Rows of several layouts


def test_rows_of_two_layouts_are_named_by_their_place(build):
    turns = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    with pytest.raises(
        DataError, match=r"rows.jsonl, row 3: the row has prompt and response, while others have messages: put rows of"
    ):
        build([turns, turns, *rows_of(2)])
    assert build([turns, turns, *rows_of(2)], format="prompt-response").drops == {"empty-prompt": 2}


def test_columns_are_not_decided_by_the_first_row(build):
    assert build([{"prompt": "x"}, *rows_of(2)]).drops == {"empty-response": 1}
    assert build([{"id": 1}, *rows_of(2)]).drops == {"empty-prompt": 1}


def test_columns_without_any_value_are_columns(build):
    with pytest.raises(DataError, match=r"no row of .* is left \(2 of 2 dropped as empty-response\)"):
        build([{"prompt": "x", "response": None}] * 2)


def test_turns_may_be_under_either_name(build):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert len(build([{"messages": turns}, {"conversations": [{**turns[0], "content": "Ho"}, turns[1]]}]).pairs) == 2


def test_wanted_columns_are_those_with_a_meaning_under_their_own_names():
    assert wanted_columns({"a": "prompt", "b": "unused", "text": "response"}, {"prompt", "response", "text", "b"}) == {
        "a",
        "text",
        "prompt",
        "response",
    }
