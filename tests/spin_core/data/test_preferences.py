"""Preference data on their way into DPO."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.data import SourceConfig
from spin_core.config.model import ChatConfig
from spin_core.data import pairs
from spin_core.data.chat import Renderer
from spin_core.data.files.example_files import SCHEMA as PROMPTS
from spin_core.data.preferences import PreferenceReader, preference_of
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DataError
from spin_core.phases import preferences
from spin_core.runtime.phase import execute
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PreferencesJob
from spin_core.store.records import ModelVersion, PairDataset, PromptSet
from spin_core.training.losses import LOG_2
from tests.support.helpers import data_folder, save_tiny_model
from tests.support.lineages.small_jobs import CPU, run_job, score_job, train_job, version_of
from tests.support.models.chat_tokenizers import chat_tokenizer

FORMAT = ChatConfig(template="format", format="Q: {prompt} A: ")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def job_of(folder, model, source, held_out=(), **fields):
    (folder / "prompts").mkdir(exist_ok=True)
    table = pa.Table.from_pylist([{"id": id} for id in held_out], PROMPTS)
    pq.write_table(table, folder / "prompts" / "held_out.parquet")
    given = {"columns": {}, "sample": None, "chat": FORMAT, "max_prompt_tokens": 100, "max_new_tokens": 50, **fields}
    return PreferencesJob(
        output=folder / "pairs",
        source=SourceConfig(path=str(source)),
        tokenizer=ModelVersion(path=model, digest="0" * 64, t=0, parent=None),
        prompts=PromptSet(
            path=folder / "prompts", digest="p" * 64, source="test", revision=None, rows=1, held_out=1, drops={}
        ),
        **given,
    )


@pytest.fixture
def build(tiny_model, tmp_path):
    """The record's fields and the rows that the phase makes of some rows or of a file."""

    def make(source, model=tiny_model, **fields):
        if isinstance(source, list):
            path = tmp_path / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in source), "utf-8")
            source = path
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        results = preferences.run(job_of(tmp_path, model, source, **fields), scratch, Progress())
        table = pq.read_table(scratch / "pairs.parquet")
        assert table.schema == pairs.SCHEMA
        return results, table.to_pylist()

    return make


def test_both_sides_follow_one_prompt_with_their_thoughts(build, tmp_path):
    tokenizer = chat_tokenizer("thinking")
    model = save_tiny_model(tmp_path / "model", tokenizer)

    def side(text, **extra):
        return [{**assistant(text), **extra}]

    both = {"prompt": "2 + 2?", "chosen": side("4", reasoning="Two."), "rejected": side("5", reasoning_content="Tree.")}
    rows = [both, {**both, "rejected": side("5")}, {**both, "chosen": side("4."), "rejected": side("5.")}]
    fields, (thoughts, none) = build(rows, model=model, chat=ChatConfig())
    assert fields["drops"] == {"prompts-differ": 1}
    texts = [tokenizer.decode(thoughts["prompt_ids"] + thoughts[f"{name}_ids"]) for name in ("real", "generated")]
    assert [text.partition("assistant\n")[2] for text in texts] == [
        "<think>\nTwo.\n</think>\n\n4<|im_end|>",
        "<think>\nTree.\n</think>\n\n5<|im_end|>",
    ]
    assert tokenizer.decode(none["prompt_ids"]).endswith("<think>\n\n</think>\n\n")
    assert (none["real"], none["generated"]) == ("4.", "5.")


ASKED = "What is two and two?"
SAME = {
    "explicit text": {"prompt": ASKED, "chosen": "Four.", "rejected": "Five."},
    "explicit turns": {"prompt": [user(ASKED)], "chosen": [assistant("Four.")], "rejected": [assistant("Five.")]},
    "implicit turns": {"chosen": [user(ASKED), assistant("Four.")], "rejected": [user(ASKED), assistant("Five.")]},
    "prompt repeated in the responses": {
        "prompt": ASKED,
        "chosen": [user(ASKED), assistant("Four.")],
        "rejected": [user(ASKED), assistant("Five.")],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": ASKED}],
        "chosen": {"from": "gpt", "value": "Four."},
        "rejected": {"from": "gpt", "value": "Five."},
    },
    "question": {"question": ASKED, "chosen": "Four.", "rejected": "Five."},
    "instruction and input": {"instruction": ASKED, "input": "", "chosen": "Four.", "rejected": "Five."},
    "input": {"input": ASKED, "chosen": "Four.", "rejected": "Five."},
    "messages": {"messages": [user(ASKED)], "chosen": assistant("Four."), "rejected": "Five."},
    "ChatML": {
        "chosen": f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n",
        "rejected": f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\nFive.<|im_end|>\n",
    },
    "marked text": {
        "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: Four.",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: Five.",
    },
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_of_a_preference_is_read_to_the_same_pair(form):
    assert preference_of(SAME[form]) == ([user(ASKED)], "Four.", "Five.", None, ({}, {}))


def test_texts_without_a_prompt_part_after_the_last_word_that_they_share():
    row = {"chosen": "The sky is blue today.", "rejected": "The sky is black today."}
    assert preference_of(row) == ([user("The sky is")], " blue today.", " black today.", None, ({}, {}))


def test_an_input_is_below_the_prompt():
    row = {"instruction": "Add.", "input": "2 + 2", "chosen": "Four.", "rejected": "Five."}
    assert preference_of(row).messages == [user("Add.\n\n2 + 2")]
    whole = {"prompt": "Add 2 + 2", "context": "2 + 2", "chosen": "Four.", "rejected": "Five."}
    assert preference_of(whole).messages == [user("Add 2 + 2")]


@pytest.mark.parametrize("missing", [{"prompt": None}, {"prompt": ""}, {}])
def test_a_prompt_that_is_missing_among_others_is_not_guessed(build, missing):
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    fields, rows = build([SAME["explicit text"], {**missing, **row}])
    assert (fields["drops"], len(rows)) == ({"empty-prompt": 1}, 1)


def test_columns_without_influence_are_noted():
    reader = PreferenceReader({"ask": "question"}, "x")
    reader.read([{"ask": "a", "messages": [user("a")], "chosen": "b", "rejected": "c", "score": 1, "note": None}])
    assert reader.unused == {"messages", "score"}


def test_several_rounds_and_system_prompts_are_kept():
    turns = [user("Hi"), assistant("Hello"), user("Two and two?")]
    row = {"system": "Be brief.", "prompt": turns, "chosen": "Four", "rejected": "Five"}
    system = {"role": "system", "content": "Be brief."}
    assert preference_of(row).messages == [system, *turns]
    assert preference_of({**row, "prompt": [system, *turns]}).messages == [system, *turns]
    marked = "\n\nHuman: Hi\n\nAssistant: Hello\n\nthere\n\nHuman: Two and two?\n\nAssistant: "
    preference = preference_of({"chosen": f"{marked}Four", "rejected": f"{marked}Five"})
    assert preference == (
        [user("Hi"), assistant("Hello\n\nthere"), user("Two and two?")],
        "Four",
        "Five",
        None,
        ({}, {}),
    )


def test_both_sides_are_tokenised_as_the_sft_data_are(build, tiny_model):
    fields, (row,) = build([SAME["explicit text"]])
    renderer = Renderer(load_tokenizer(tiny_model, CPU), FORMAT)
    assert row["prompt_ids"] == renderer.prompt_ids([user(ASKED)])
    assert row["real_ids"] == renderer.response_ids([user(ASKED)], "Four.", 50)[0]
    assert row["generated_ids"] == renderer.response_ids([user(ASKED)], "Five.", 50)[0]
    assert (row["prompt"], row["real"], row["generated"], row["real_finish"]) == (ASKED, "Four.", "Five.", "stop")
    assert fields == {"t": 0, "rows_in": 1, "rows": 1, "drops": {}, "mix": {}}


def test_both_sides_are_cut_in_the_same_way_and_a_cut_one_gets_no_end_token(build):
    _, (row,) = build([SAME["explicit text"]], max_new_tokens=3)
    assert (row["real"], row["generated"]) == ("Fou", "Fiv")
    assert row["real_finish"] == row["generated_finish"] == "length"
    assert len(row["real_ids"]) == 3


BAD = {
    "malformed": {"prompt": ASKED, "chosen": 4, "rejected": "Five."},
    "empty-response": {"prompt": ASKED, "chosen": " ", "rejected": "Five."},
    "empty-prompt": {"prompt": " ", "chosen": "Four.", "rejected": "Five."},
    "identical": {"prompt": ASKED, "chosen": "Four.", "rejected": "Four."},
    "duplicate": SAME["ShareGPT"],
    "prompts-differ": {"chosen": [user("A"), assistant("B")], "rejected": [user("C"), assistant("D")]},
    "no-response": {"chosen": [user("A")], "rejected": [user("A"), assistant("D")]},
    "unknown-role": {"prompt": [{"role": "judge", "content": "A"}], "chosen": "B", "rejected": "C"},
    "turns-out-of-order": {"prompt": [user("A"), user("A")], "chosen": "B", "rejected": "C"},
    "unknown-character": {"prompt": ASKED, "chosen": "Четыре", "rejected": "Five."},
    "control-token": {"prompt": ASKED, "chosen": "Fo</s>ur", "rejected": "Five."},
    "prompt-too-long": {"prompt": ASKED * 10, "chosen": "Four.", "rejected": "Five."},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_dropped_and_counted(build, reason):
    fields, rows = build([SAME["explicit text"], BAD[reason]])
    assert fields["drops"] == {reason: 1}
    assert len(rows) == fields["rows"] == 1
    assert fields["rows_in"] == 2


def test_preferences_about_held_out_prompts_are_left_out(build):
    _, rows = build([SAME["explicit text"]])
    with pytest.raises(DataError, match=r"\(1 of 1 dropped as in-held-out\): give preferences about other prompts"):
        build([SAME["explicit text"]], held_out=[rows[0]["id"]])


def test_a_sample_is_seeded_and_part_of_a_larger_one(build):
    source = [{"prompt": f"Count to {i}", "chosen": "Yes", "rejected": "No"} for i in range(30)]
    small, large = ([row["prompt"] for row in build(source, sample=size)[1]] for size in (5, 10))
    assert len(small) == 5
    assert set(small) < set(large)
    assert small != [row["prompt"] for row in build(source, sample=5, seed=1)[1]]
    assert build(source, sample=5)[0]["drops"] == {"not-sampled": 25}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            [{"prompt": "a", "response": "b"}],
            r"is not preference data, since it has no column chosen or rejected \(found: prompt, response\): give "
            r'other data, or name the column in controls.dpo.columns, {"its name": "chosen"}',
        ),
        (
            [BAD["malformed"]],
            r"no preference of .* is left \(1 of 1 dropped as malformed\): give prompts and responses",
        ),
        ([BAD["empty-response"]], r"or name its column in controls\.dpo\.columns$"),
    ],
)
def test_data_without_preferences_are_a_one_line_error(build, rows, line):
    with pytest.raises(DataError, match=line) as refused:
        build(rows)
    assert "\n" not in str(refused.value)


def test_a_source_that_is_not_there_is_named_by_its_own_setting(build, tmp_path):
    with pytest.raises(DataError, match=r"does not exist: set controls\.dpo\.source\.path"):
        build(tmp_path / "nowhere.jsonl")


def test_columns_can_be_renamed(build):
    row = {"question": ASKED, "good": "Four.", "bad": "Five."}
    names = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    assert [(row["prompt"], row["real"]) for row in build([row], columns=names)[1]] == [(ASKED, "Four.")]


def test_real_preferences_are_read_whole(build):
    fields, rows = build(data_folder("preferences", "dpo_en_demo.json"), max_prompt_tokens=2000, max_new_tokens=5000)
    assert fields["rows_in"] == 300
    assert fields["rows"] + sum(fields["drops"].values()) == 300
    # What was left out was left out for what a character vocabulary cannot hold, or because it is there twice, as five
    # rows are; not because it was misread.
    assert set(fields["drops"]) <= {"unknown-character", "prompt-too-long", "duplicate"}
    assert fields["drops"]["duplicate"] <= 5
    assert len(rows) > 100
    assert all(row["real"] != row["generated"] for row in rows)


def test_preferences_are_trained_by_the_same_phases_as_spin(tmp_path, tiny_model):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Count to {i}", "chosen": f"{i}!", "rejected": "No, I will not"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = execute(job_of(tmp_path, tiny_model, path), PairDataset, preferences.run, Progress())
    start = version_of(tiny_model)
    scores = run_job(score_job(tmp_path / "scores", start, made))
    trained = run_job(train_job(tmp_path, start, made, scores, epochs=4))
    assert trained.first_loss == pytest.approx(LOG_2, abs=1e-4)
    assert trained.metrics["loss"] < 0.6
