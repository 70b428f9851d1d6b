"""The SFT data on its way from rows to token ids."""

import io
import json
import shutil

import pytest

from spin_core.config.data import SourceConfig
from spin_core.config.model import ModelConfig
from spin_core.data import demo
from spin_core.data.sources import read_rows
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DataError
from spin_core.phases import prompts
from spin_core.runtime.progress import Progress
from tests.support.helpers import data_folder, save_tiny_model
from tests.support.lineages.built_prompts import job_of, rows_of, write_jsonl


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


def test_prompts_with_the_same_tokens_are_one_prompt(build):
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


def test_a_single_row_cannot_be_split(build):
    with pytest.raises(DataError, match=r"held_out is 1, but the data have only 1 different prompt: give more rows"):
        build(rows_of(1))


def test_more_held_out_than_there_is_names_the_most(build):
    with pytest.raises(
        DataError, match=r"held_out is 8, but the data have only 8 different prompts: lower it to at most 7"
    ):
        build(rows_of(8), held_out=8)


def test_too_few_prompts_name_what_was_left_out(build):
    long = [{"prompt": f"Count to {i}" + " and on" * 99, "response": "!"} for i in range(5)]
    message = r"only 3 different prompts \(rows left out: 5 as prompt-too-long\): lower it to at most 2"
    with pytest.raises(DataError, match=message):
        build([*rows_of(3), *long], held_out=3)


def test_prompts_of_which_all_are_too_long_say_what_to_raise(build):
    with pytest.raises(DataError, match=r"dropped as prompt-too-long\): raise prompts.max_prompt_tokens"):
        build([{"prompt": "x" * 200 + str(i), "response": "y"} for i in range(3)])


@pytest.mark.parametrize(
    ("prompt", "response", "fix"),
    [
        (1000, 25, r"lower prompts.max_prompt_tokens to 999"),
        (25, 1024, r"lower generate.max_new_tokens below 1024, and both together to at most 1024"),
    ],
)
def test_a_budget_beyond_the_models_context_says_what_to_lower(build, prompt, response, fix):
    with pytest.raises(ConfigError, match=fix):
        build(rows_of(3), max_prompt_tokens=prompt, max_new_tokens=response)


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
    """A tiny model with the demo's tokenizer, which has only digits, plus and equals."""
    return save_tiny_model(tmp_path_factory.mktemp("demo"), demo.build_tokenizer())


def test_the_demo_keeps_its_frequencies_and_its_own_split(build, demo_model):
    built = build("demo", model=demo_model, held_out=99, sample=2100, seed=3)
    drawn = demo.demonstrations(2100, 3, 99)
    assert [(row["prompt"], row["response"]) for row in built.train] == drawn
    assert len(set(drawn)) < 2100
    assert sorted(row["prompt"] for row in built.held_out) == sorted(demo.prompts(99)[1])
    assert not {row["id"] for row in built.train} & {row["id"] for row in built.held_out}
    assert built.drops == {}


def test_the_demo_has_every_prompt_once_by_default(build, demo_model):
    assert build("demo", model=demo_model, held_out=99).fields["rows"] == 799 - 99


def test_data_beyond_a_small_vocabulary_are_rejected(build, demo_model):
    with pytest.raises(DataError, match=r"is left \(3 of 3 dropped as unknown-character\): use a tokenizer whose voc"):
        build(rows_of(3), model=demo_model)


def test_data_beyond_a_vocabulary_that_has_no_unknown_token_are_rejected(build, demo_model, tmp_path):
    folder = shutil.copytree(demo_model, tmp_path / "model")
    tokenizer_json = json.loads((folder / "tokenizer.json").read_text())
    tokenizer_json["model"]["unk_token"] = "<none>"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json))
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


def test_a_whole_batch_of_control_tokens_is_dropped(build, monkeypatch):
    monkeypatch.setattr("spin_core.data.prompts.BATCH", 2)
    rows = [{"prompt": f"a</s>{i}", "response": "b"} for i in range(2)]
    assert build([*rows, *rows_of(2)]).drops == {"control-token": 2}


def test_rows_in_several_parts_give_the_bytes_of_rows_in_one(build, monkeypatch):
    rows = [*rows_of(40), *rows_of(5), {"prompt": "x", "response": None}, *rows_of(50)[40:]]
    whole = build(rows, held_out=10, sample=20, seed=3)
    monkeypatch.setattr("spin_core.data.files.reading.PART", 7)
    parts = build(rows, held_out=10, sample=20, seed=3)
    assert parts.bytes == whole.bytes
    assert parts.fields == whole.fields
    assert parts.drops == {"duplicate": 5, "empty-response": 1, "not-sampled": 20}


@pytest.mark.parametrize("held_out", [None, 3])
def test_the_last_progress_is_about_all_rows_that_were_read(tiny_model, tmp_path, held_out):
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of(8))
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(20)[20 - held_out :]) if held_out else None
    last = last_message(job_of(tiny_model, source, held_out_source=other), tmp_path)
    assert (last["done"], last["total"], last["unit"]) == (8 + (held_out or 0), 8 + (held_out or 0), "row")


def test_the_last_progress_of_the_demo_is_about_all_rows(demo_model, tmp_path):
    job = job_of(demo_model, "demo", sample=64, held_out=16, max_prompt_tokens=8)
    assert last_message(job, tmp_path)["done"] == 64 + 16


def last_message(job, scratch):
    """The last message of the phase."""
    out = io.StringIO()
    prompts.run(job, scratch, Progress(out=out))
    return json.loads(out.getvalue().splitlines()[-1])


def test_a_held_out_source_is_read_in_parts_too(build, tmp_path, monkeypatch):
    monkeypatch.setattr("spin_core.data.files.reading.PART", 3)
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(12)[5:])
    built = build(rows_of(10), held_out=7, held_out_source=other)
    assert [row["response"] for row in built.train] == ["0!", "1!", "2!", "3!", "4!"]
    assert len(built.held_out) == 7
    with pytest.raises(DataError, match="holds no rows"):
        build(rows_of(10), held_out_source=write_jsonl(tmp_path / "none.jsonl", []))
