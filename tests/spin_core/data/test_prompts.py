"""The SFT data on its way from rows to token ids."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import character_tokenizer, data_folder, save_tiny_model

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.data import demo
from spin_core.data.chat import Renderer
from spin_core.data.sources import _commit_of, read_rows
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DataError
from spin_core.phases import prompts
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import ModelVersion

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A tiny model whose tokenizer has ChatML's template."""
    specials = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
    return save_tiny_model(tmp_path_factory.mktemp("chat"), character_tokenizer(specials, chat_template=CHATML))


def rows_of(count):
    return [{"prompt": f"Count to {i}", "response": f"{i}!"} for i in range(count)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def job_of(model, source, *, chat="plain", max_new_tokens=50, seed=0, held_out_source=None, **config):
    sources = {"source": SourceConfig(path=str(source))}
    if held_out_source:
        sources["held_out_source"] = SourceConfig(path=str(held_out_source))
    return PromptsJob(
        output=model / "unused",
        seed=seed,
        config=PromptsConfig(**{"held_out": 1, "max_prompt_tokens": 100, **sources, **config}),
        chat=ChatConfig(template=chat),
        tokenizer=ModelVersion(path=model, digest="0" * 64, t=0, parent=None),
        max_new_tokens=max_new_tokens,
    )


class Built:
    """What the phase made of some rows."""

    def __init__(self, model, folder, source, **kwargs):
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        if isinstance(source, list):
            source = write_jsonl(folder / "rows.jsonl", source)
        self.fields = prompts.run(job_of(model, source, **kwargs), scratch, Progress())
        self.train = pq.read_table(scratch / "train.parquet").to_pylist()
        self.held_out = pq.read_table(scratch / "held_out.parquet").to_pylist()
        self.drops = self.fields["drops"]
        self.bytes = [(scratch / name).read_bytes() for name in ("train.parquet", "held_out.parquet")]

    @property
    def pairs(self):
        """Prompts and responses of all rows, without order."""
        return sorted((row["prompt"], row["response"]) for row in self.train + self.held_out)


@pytest.fixture
def build(tiny_model, tmp_path):
    return lambda source, model=tiny_model, **kwargs: Built(model, tmp_path, source, **kwargs)


# Formats


def test_prompt_and_response_columns_become_token_ids(build, tiny_model):
    built = build([{"prompt": "Say hi", "response": "hi"}, {"prompt": "Say ho", "response": "ho"}])
    tokenizer = load_tokenizer(tiny_model, ModelConfig())
    for row in built.train + built.held_out:
        assert tokenizer.decode(row["prompt_ids"]) == "<s>" + row["prompt"]
        assert tokenizer.decode(row["response_ids"]) == row["response"] + "</s>"
        assert row["finish_reason"] == "stop"
        assert len(row["id"]) == 16
    assert built.pairs == [("Say hi", "hi"), ("Say ho", "ho")]
    assert (built.fields["rows"], built.fields["held_out"], built.drops) == (1, 1, {})
    assert built.fields["stop_ids"] == (2,)


FORMATS = {
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "spin": lambda q, a: {
        "real": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
        "generated": [{"role": "user", "content": q}, {"role": "assistant", "content": "other"}],
    },
    "prompt-response": lambda q, a: {"prompt": q, "response": a},
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


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv", "folder", "folder-on-disk", "json-lines"])
def test_every_kind_of_source_holds_the_same_rows(build, tmp_path, suffix):
    import datasets

    rows = rows_of(4)
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "json-lines":
        path = write_jsonl(tmp_path / "lines.json", rows)
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        path.write_text("prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows))
    elif suffix == "folder":
        path.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), path / "train-00000-of-00001.parquet")
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(path))
    assert build(path).pairs == sorted((row["prompt"], row["response"]) for row in rows)


def test_a_csv_keeps_numbers_as_they_are_written(build, tmp_path):
    path = tmp_path / "sums.csv"
    path.write_text('prompt,response\n"1,5+2=",3.50\n4+4=,08\n')
    assert build(path).pairs == [("1,5+2=", "3.50"), ("4+4=", "08")]


def test_columns_are_renamed_before_the_format_is_guessed(build):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(2)]
    assert build(rows, columns={"question": "prompt", "answer": "response"}).pairs == [("0?", "0"), ("1?", "1")]


def test_the_input_stands_below_the_instruction(build):
    rows = [{"instruction": "Add.", "input": f"{i} + 1", "output": str(i + 1)} for i in range(2)]
    assert build(rows).pairs == [("Add.\n\n0 + 1", "1"), ("Add.\n\n1 + 1", "2")]


def test_a_text_is_cut_between_words_and_loses_nothing(build):
    texts = ["Once upon a time there was a cat.", "The dog ran\n\nhome and slept."]
    built = build([{"text": text} for text in texts], text_prompt_chars=13)
    assert built.pairs == [("Once upon a", " time there was a cat."), ("The dog ran", "\n\nhome and slept.")]


def test_a_text_without_room_for_a_response_is_dropped(build):
    texts = ["A short one", "Nospacesuntilthebordercomes here", "Ann went home again", "Bob went home again"]
    built = build([{"text": text} for text in texts], text_prompt_chars=12)
    assert built.drops == {"text-too-short": 1, "empty-prompt": 1}


# Conversations


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


def test_the_first_round_alone_can_be_answered(build):
    other = [{"role": "user", "content": "Hey"}, *CONVERSATION[1:]]
    built = build([{"messages": CONVERSATION}, {"messages": other}], rounds="first")
    assert built.pairs == [("Hey", "Hello."), ("Hi", "Hello.")]


def test_chat_rows_hold_what_the_renderer_makes(build, chat_model):
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
        {"messages": [{"role": "tool", "content": "42"}, *CONVERSATION]},
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


# Filters


def test_every_row_is_kept_or_counted(build):
    rows = [
        *rows_of(20),
        *rows_of(3),
        {"prompt": "x" * 200, "response": "long"},
        {"prompt": "p", "response": "caf\u00e9"},
    ]
    built = build(rows, held_out=4, sample=10)
    assert built.drops == {"duplicate": 3, "prompt-too-long": 1, "unknown-character": 1, "not-sampled": 6}
    assert built.fields["rows"] + built.fields["held_out"] + sum(built.drops.values()) == len(rows)


def test_a_long_response_is_cut_and_not_ended(build):
    rows = [{"prompt": "a", "response": "x" * 60}, {"prompt": "b", "response": "x" * 49}]
    built = build(rows, max_new_tokens=50)
    cut, whole = sorted(built.train + built.held_out, key=lambda row: row["prompt"])
    assert (cut["finish_reason"], len(cut["response_ids"]), cut["response"]) == ("length", 50, "x" * 50)
    assert 2 not in cut["response_ids"]
    assert (whole["finish_reason"], len(whole["response_ids"]), whole["response_ids"][-1]) == ("stop", 50, 2)


def test_control_tokens_in_texts_drop_the_row_but_not_at_the_end(build):
    rows = [*rows_of(2), {"prompt": "a</s>b", "response": "c"}, {"prompt": "a", "response": "b</s>c"}]
    rows.append({"prompt": "ends", "response": "well</s>"})
    built = build(rows)
    assert built.drops == {"control-token": 2}
    assert ("ends", "well") in built.pairs


def test_a_long_prompt_can_be_refused(build):
    with pytest.raises(DataError, match=r"a prompt has 201 tokens, more than prompts.max_prompt_tokens = 100"):
        build([{"prompt": "x" * 200, "response": "y"}, *rows_of(3)], too_long="refuse")


# Split


def test_no_prompt_is_in_both_parts_and_none_is_held_out_twice(build):
    rows = [{"prompt": f"Q{i}", "response": answer} for i in range(30) for answer in ("yes", "no")]
    built = build(rows, held_out=10)
    held_out, train = [row["id"] for row in built.held_out], [row["id"] for row in built.train]
    assert not set(held_out) & set(train)
    assert len(set(held_out)) == len(held_out) == 10
    assert built.drops == {"other-response-held-out": 10}


def test_several_responses_to_one_prompt_stay_in_training(build):
    rows = [{"prompt": f"Q{i}", "response": answer} for i in range(3) for answer in ("yes", "no")]
    built = build(rows)
    assert sorted(row["response"] for row in built.train) == ["no", "no", "yes", "yes"]


def test_prompts_that_the_model_cannot_tell_apart_are_one_prompt(build):
    # The vocabulary has neither letter, so both are the unknown token.
    alike = [{"prompt": "caf\u00e9", "response": "a"}, {"prompt": "caf\u00e8", "response": "b"}]
    built = build([*alike, *rows_of(2)], held_out=2)
    assert len({row["id"] for row in built.train + built.held_out}) == 3
    assert len(built.train) + len(built.held_out) + built.drops.get("other-response-held-out", 0) == 4


def test_the_same_job_gives_the_same_bytes_and_another_seed_another_split(build):
    first, again, other = (build(rows_of(40), held_out=10, seed=seed) for seed in (0, 0, 1))
    assert first.bytes == again.bytes
    assert [row["id"] for row in first.held_out] != [row["id"] for row in other.held_out]


def test_rows_added_later_hardly_move_the_split(build):
    before = {row["id"] for row in build(rows_of(100), held_out=20).held_out}
    after = {row["id"] for row in build(rows_of(110), held_out=20).held_out}
    # Ten new prompts in a hundred displace about two of the twenty; chance alone would keep four.
    assert len(before & after) >= 15


def test_a_smaller_sample_is_part_of_a_larger_one(build):
    small = {row["id"] for row in build(rows_of(60), sample=10).train}
    large = {row["id"] for row in build(rows_of(60), sample=30).train}
    assert len(small) == 10
    assert len(large) == 30
    assert small < large
    assert build(rows_of(6), sample=30).fields["rows"] == 5


def test_rows_stay_in_the_order_of_their_source(build):
    built = build(rows_of(40), sample=20)
    places = [int(row["prompt"].split()[-1]) for row in built.train]
    assert places == sorted(places)


def test_held_out_prompts_can_come_from_elsewhere(build, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(12)[5:])
    built = build(rows_of(10), held_out=7, held_out_source=other)
    assert sorted(row["response"] for row in built.held_out) == ["10!", "11!", "5!", "6!", "7!", "8!", "9!"]
    assert [row["response"] for row in built.train] == ["0!", "1!", "2!", "3!", "4!"]
    assert built.drops == {"in-held-out": 5}


# Errors


def test_an_unknown_source_is_named(build):
    with pytest.raises(DataError, match=r"no/such/file.jsonl does not exist: set prompts.source.path"):
        build("no/such/file.jsonl")


def test_a_hub_name_that_cannot_be_reached_is_named(build):
    with pytest.raises(DataError, match=r"nobody/nothing is neither a file or folder here nor on the hub"):
        build("nobody/nothing")


def test_a_file_of_another_kind_says_what_is_read(build, tmp_path):
    (tmp_path / "data.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"one of the suffixes .json, .jsonl, .parquet, .csv"):
        build(tmp_path / "data.xlsx")


def test_empty_data_are_refused(build):
    with pytest.raises(DataError, match="holds no rows"):
        build([])


def test_a_single_row_cannot_be_split(build):
    with pytest.raises(DataError, match=r"held_out is 1, but there are only 1 different prompts: give more rows"):
        build(rows_of(1))


def test_more_held_out_than_there_is_names_the_most(build):
    with pytest.raises(
        DataError, match=r"held_out is 8, but there are only 8 different prompts: lower it to at most 7"
    ):
        build(rows_of(8), held_out=8)


def test_missing_columns_name_what_was_found_and_what_is_needed(build):
    rows = [{"question": "q", "answer": "a"}] * 2
    with pytest.raises(
        DataError, match=r"has the columns answer, question, but needs one of: messages; real; prompt and"
    ):
        build(rows)
    with pytest.raises(DataError, match=r"no column prompt or response, which prompts.format = prompt-response needs"):
        build(rows, format="prompt-response")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": 5, "response": "x"}, "row 3: prompt is int 5, not text"),
        ({"prompt": "x", "response": None}, "row 3: response is missing, not text"),
        ({"prompt": "x"}, "row 3: response is missing"),
        (
            {"prompt": [{"role": "user"}], "response": "x"},
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


def test_rows_of_which_none_has_a_response_are_refused(build):
    with pytest.raises(
        DataError, match=r"no row of .* is left \(2 of 2 dropped as no-response\): give rows with an assist"
    ):
        build([{"messages": CONVERSATION[:1]}] * 2)


def test_prompts_of_which_all_are_too_long_say_what_to_raise(build):
    with pytest.raises(DataError, match=r"dropped as prompt-too-long\): raise prompts.max_prompt_tokens"):
        build([{"prompt": "x" * 200 + str(i), "response": "y"} for i in range(3)])


def test_bytes_that_are_not_utf8_are_named_by_their_line(build, tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "a", "response": "b"}\n{"prompt": "caf\u00e9", "response": "c"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl, line 2 is not UTF-8 \(byte 0xe9\): save the file as UTF-8"):
        build(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"prompt": "a", "response": "b"}\n\n{"prompt": \n',
            r"a.jsonl, line 3 is not JSON \(Expecting value",
        ),
        ("b.jsonl", '{"prompt": "a"}\n[1]\n', "b.jsonl, line 2 is list, not a JSON object"),
        ("c.json", '[{"prompt": "a"},\n{"prompt" "b"}]', r"c.json, line 2 is not JSON \(Expecting ':'"),
        ("d.json", '[{"prompt": "a"}, 7]', "d.json, row 2 is int, not a JSON object"),
        ("e.csv", "prompt,response\na,b\nc\n", "e.csv, line 3 has fewer or more fields than the first line"),
        ("f.csv", 'prompt,response\na,"b" c\n', "f.csv, line 2 is not CSV"),
        ("g.parquet", "not parquet", "g.parquet is not a Parquet file"),
    ],
)
def test_broken_files_are_named_by_their_line(build, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        build(tmp_path / name)


def test_an_unknown_split_names_the_ones_there_are(build, tmp_path):
    import datasets

    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows_of(2))}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"has no split 'train': set prompts.source.split to one of test"):
        build(tmp_path / "data")


def test_a_folder_without_data_is_refused(build, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty cannot be read as a data set"):
        build(tmp_path / "empty")


@pytest.mark.parametrize(
    ("prompt", "response", "cure"),
    [
        (1000, 25, r"lower prompts.max_prompt_tokens to 999"),
        (25, 1024, r"lower generate.max_new_tokens below 1024, and both together to at most 1024"),
    ],
)
def test_a_budget_beyond_the_models_context_says_what_to_lower(build, prompt, response, cure):
    with pytest.raises(ConfigError, match=cure):
        build(rows_of(3), max_prompt_tokens=prompt, max_new_tokens=response)


def test_the_hub_commit_is_read_from_the_files_that_were_fetched():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert _commit_of({f"hf://datasets/owner/name@{commit}/train.parquet": {}}) == commit
    assert _commit_of(None) is None


def test_the_text_of_a_cut_story_follows_its_prompt(build):
    built = build(
        data_folder("tinystories", "val.jsonl"), model=data_folder("models", "babyllama-105"), format="text", sample=20
    )
    assert {row["finish_reason"] for row in built.train} == {"length"}
    stories = [
        " ".join(row["text"].split())
        for row in read_rows(SourceConfig(path=str(data_folder("tinystories", "val.jsonl"))))[0]
    ]
    assert all(any(story.startswith(row["prompt"] + row["response"]) for story in stories) for row in built.train)


# The demo


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory):
    """A tiny model with the demo's tokenizer, which knows digits, plus and equals alone."""
    return save_tiny_model(tmp_path_factory.mktemp("demo"), demo.build_tokenizer())


def test_the_demo_keeps_its_frequencies_and_its_own_split(build, demo_model):
    built = build("demo", model=demo_model, held_out=99, sample=2100, seed=3)
    drawn = demo.demonstrations(2100, 3, 99)
    assert [(row["prompt"], row["response"]) for row in built.train] == drawn
    assert len(set(drawn)) < 2100
    assert sorted(row["prompt"] for row in built.held_out) == sorted(demo.prompts(99)[1])
    assert not {row["id"] for row in built.train} & {row["id"] for row in built.held_out}
    assert built.drops == {}


def test_the_demo_asks_every_prompt_once_unless_told(build, demo_model):
    assert build("demo", model=demo_model, held_out=99).fields["rows"] == 799 - 99


def test_data_beyond_a_small_vocabulary_are_refused(build, demo_model):
    with pytest.raises(DataError, match=r"is left \(3 of 3 dropped as unknown-character\): use a tokenizer whose voc"):
        build(rows_of(3), model=demo_model)


def test_data_beyond_a_vocabulary_that_has_no_unknown_token_are_refused(build, demo_model, tmp_path):
    folder = shutil.copytree(demo_model, tmp_path / "model")
    known = json.loads((folder / "tokenizer.json").read_text())
    known["model"]["unk_token"] = "<none>"
    (folder / "tokenizer.json").write_text(json.dumps(known))
    with pytest.raises(DataError, match="characters that the tokenizer does not know, and it has no token for unknown"):
        build(rows_of(3), model=folder)


# Real data


def test_stories_are_cut_for_a_tokenizer_without_line_breaks(build):
    built = build(
        data_folder("tinystories", "val.jsonl"),
        model=data_folder("models", "babyllama-105"),
        format="text",
        text_prompt_chars=64,
        max_new_tokens=144,
        held_out=100,
    )
    rows = built.train + built.held_out
    assert len(rows) + sum(built.drops.values()) == 1000
    assert len(rows) > 900
    assert all(0 not in row["prompt_ids"] + row["response_ids"] for row in rows)
    assert all(len(row["prompt"]) <= 64 and row["response"].startswith(" ") for row in rows)
    # A story that is cut has no end: none may be learned from it.
    assert {row["finish_reason"] for row in rows} == {"length"}
    assert all(len(row["response_ids"]) == 144 for row in rows)
    texts = [
        " ".join(story["text"].split())
        for story in read_rows(SourceConfig(path=str(data_folder("tinystories", "val.jsonl"))))[0]
    ]
    assert all(any(text.startswith(row["prompt"] + row["response"]) for text in texts) for row in rows[:20])


@pytest.mark.parametrize(
    ("file", "columns", "rows"),
    [
        ("gsm8k/test.jsonl", {"question": "prompt", "answer": "response"}, 1319),
        ("gsm8k_arith/test_unseen.jsonl", {}, 1366),
        ("instructions/seed_tasks.jsonl", {}, 175),
        ("instructions/user_oriented_instructions.jsonl", {}, 252),
        ("instructions/dolly_open_qa.jsonl", {}, 3742),
        ("preferences/dpo_en_demo.json", {"conversations": "prompt", "chosen": "response"}, 300),
    ],
)
def test_real_data_are_read_whole(build, chat_model, file, columns, rows):
    built = build(
        data_folder(file),
        model=chat_model,
        chat="tokenizer",
        columns=columns,
        max_prompt_tokens=900,
        max_new_tokens=100,
    )
    kept = built.fields["rows"] + built.fields["held_out"]
    assert kept + sum(built.drops.values()) == rows
    assert kept > rows / 3
    # What was left out was left out for what a character vocabulary cannot hold, not because it was misread.
    assert set(built.drops) <= {"unknown-character", "prompt-too-long", "duplicate", "other-response-held-out"}
