"""What `spin data` shows is what phase `prompts` publishes."""

import io
import json

import pyarrow.parquet as pq
import pytest

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.resolve import resolve
from spin_core.data.files.preview import read_beginning
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DataError
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.phases import prompts
from spin_core.reports import data_preview
from spin_core.reports.data_preview import preview_data
from spin_core.runtime.progress import Progress
from spin_core.store.records import ModelVersion
from tests.support.helpers import character_tokenizer, save_tiny_model


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A tiny model with a chat template."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    return save_tiny_model(tmp_path_factory.mktemp("model"), character_tokenizer(chat_template=template))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """20 good rows with an id, and one row for each of four reasons to leave it out."""
    made = [{"prompt": f"question {i:02d}?", "response": f"answer {i}.", "id": i} for i in range(20)]
    made += [made[0], {"prompt": "?", "response": " "}, {"prompt": "?" * 99, "response": "!"}]
    made += [{"prompt": "</s>", "response": "!"}]
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    return file


@pytest.fixture
def configured(chat_model, rows):
    def configure(*sets):
        own = (f"model.path={chat_model}", "model.device=cpu", f"prompts.source.path={rows}", "prompts.held_out=4")
        sizes = ("prompts.sample=null", "prompts.max_prompt_tokens=60", "generate.max_new_tokens=10")
        off = ("evaluate.exact=false", "evaluate.main_metric=heldout_nll", "chat.template=tokenizer")
        return resolve("demo", sets=[*own, *sizes, *off, *sets])

    return configure


def test_samples_and_numbers_are_those_of_the_phase(configured, chat_model, tmp_path):
    config = configured()
    version = ModelVersion(path=chat_model, digest="", t=0, parent=None)
    job = phase_jobs.prompts_job(Lineage(tmp_path, "tale", config), version)
    record = prompts.run(job, tmp_path, Progress(out=io.StringIO()))
    published = pq.read_table(tmp_path / "train.parquet").to_pylist()
    (preview,) = preview_data(config, 1000)
    tokenizer = load_tokenizer(chat_model, config.model)
    assert [(row.prompt, row.response) for row in preview.samples] == [
        (tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["response_ids"])) for row in published
    ]
    assert (preview.train, preview.held_out, dict(preview.left_out)) == (
        record["rows"],
        record["held_out"],
        record["drops"],
    )
    assert preview.unused_columns == record["unused_columns"] == ["id"]
    assert preview.prompt_tokens["max"] == max(len(row["prompt_ids"]) for row in published)
    assert preview.response_tokens["min"] == min(len(row["response_ids"]) for row in published)
    assert preview.fixes["empty-response"].startswith("give rows with a response")
    assert "duplicate" not in preview.fixes, "nothing is wrong with these"


def test_a_sample_holds_control_tokens_and_is_cut_where_the_training_is(configured):
    (preview,) = preview_data(configured(), 3)
    sample = preview.samples[0]
    assert sample.prompt.startswith("user: question ")
    assert sample.prompt.endswith("?</s>\nassistant: ")
    assert (sample.cut, sample.response, sample.response_tokens) == (False, f"{sample.response[:9]}</s>", 10)
    (preview,) = preview_data(configured("generate.max_new_tokens=4"), 1)
    assert (preview.cut, preview.samples[0].cut, preview.samples[0].response) == (1.0, True, "answ")


def test_a_held_out_source_is_shown_by_itself(configured, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(f'{{"prompt": "other {i}?", "response": "!"}}\n' for i in range(6)))
    train, held_out = preview_data(configured(f"prompts.held_out_source={{path: {other}}}"), 1)
    assert (train.use, train.train, train.held_out) == ("train", 20, 0)
    assert (held_out.use, held_out.name, held_out.rows, held_out.held_out) == ("held out", str(other), 6, 4)
    assert held_out.samples[0].prompt.startswith("user: other 0?")


def test_a_long_source_is_judged_by_its_beginning(configured, monkeypatch):
    monkeypatch.setattr(data_preview, "_CHARACTERS", 200)
    (preview,) = preview_data(configured(), 1)
    assert preview.read < preview.rows == 24
    assert preview.unused_columns == ["id"]


def test_the_demo_has_a_preview_before_its_model_exists():
    (preview,) = preview_data(resolve("demo", sets=["prompts.sample=32"]), 2)
    assert (preview.rows, preview.train, len(preview.samples)) == (32, 32, 2)
    assert preview.samples[0].response.endswith("<eos>")


def test_data_without_usable_rows_are_a_one_line_error(configured, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "?", "response": " "}\n')
    with pytest.raises(DataError, match=r"no row of .* is left \(1 of 1 dropped as empty-response\): give rows"):
        preview_data(configured(f"prompts.source.path={empty}"), 1)


@pytest.mark.parametrize("sets", [(), ("prompts.held_out_source.path={rows}",)])
def test_rows_are_shown_with_the_problem_where_too_few_can_be_held_out(configured, rows, sets):
    config = configured("prompts.held_out=500", *(text.format(rows=rows) for text in sets))
    preview, *_ = preview_data(config, 2)
    assert len(preview.samples) == 2
    assert preview.problem.startswith("prompts.held_out is 500, but the data have only ")
    assert preview_data(configured(), 1)[0].problem == ""


def test_each_of_several_sources_is_shown(configured, rows, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"ask": "Why?", "answer": "So."}\n' * 2)
    source = f"{{path: {other}, columns: {{ask: prompt}}}}"
    shown = preview_data(configured(f"prompts.sources={{own: {rows}, other: {source}}}", "chat.system=null"), 1)
    assert [(part.name, part.use, part.train + part.held_out, part.left_out.get("duplicate")) for part in shown] == [
        (f"own ({rows})", "train and held out", 20, 1),
        (f"other ({other})", "train and held out", 1, 1),
    ]
    assert "Why?" in shown[1].samples[0].prompt


def test_of_several_sources_the_rows_are_shown_that_the_mixture_takes(configured, rows, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(f'{{"prompt": "Why {i}?", "response": "So."}}\n' for i in range(8)))
    own, others = preview_data(
        configured(f"prompts.sources={{own: {{path: {rows}, weight: 1}}, other: {{path: {other}, weight: 1}}}}"), 1
    )
    assert (own.train + own.held_out, others.train + others.held_out) == (8, 8)
    assert (own.left_out["not-taken"], others.left_out) == (12, {})
    too_many = f"prompts.sources={{own: {{path: {rows}, rows: 99}}, other: {other}}}"
    assert preview_data(configured(too_many), 1)[0].problem.startswith("prompts.sources.own.rows is 99, but ")
    with pytest.raises(DataError, match=r"dropped as duplicate\): give rows that no other source has$"):
        preview_data(configured(f"prompts.sources={{own: {rows}, again: {rows}}}"), 1)


def test_preferences_are_shown_with_both_sides(configured, tmp_path):
    file = tmp_path / "preferences.jsonl"
    made = [{"prompt": f"which {i}?", "chosen": "yes", "rejected": "no way"} for i in range(5)]
    made += [{"prompt": "?", "chosen": "same", "rejected": "same"}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    shown = preview_data(configured(f"controls.dpo.source.path={file}", "controls.dpo.epochs=1"), 2)[1]
    assert (shown.use, shown.rows, shown.train, shown.left_out) == ("preferences for DPO", 6, 5, {"identical": 1})
    first = shown.samples[0]
    assert (first.response, first.rejected, first.rejected_tokens) == ("yes</s>", "no way</s>", 7)
    assert first.prompt.endswith("which 0?</s>\nassistant: ")


def test_all_rows_are_read_though_only_the_first_stay_in_memory(tmp_path):
    file = tmp_path / "long.jsonl"
    made = [{"prompt": f"question {i}?", "response": "yes", **({"late": 1} if i == 2999 else {})} for i in range(3000)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    config = PromptsConfig(source=SourceConfig(path=str(file)))
    source = read_beginning(config, 1000)
    assert (len(source.rows), source.number, source.conversations) == (1024, 3000, 3000)
    assert source.unused_columns == ["late"]
    assert len(read_beginning(config, 10**6).rows) == 3000
    file.write_text(file.read_text() + '{"prompt": 1, "response": "yes"}\n')
    with pytest.raises(DataError, match=r"row 3001: prompt is int 1"):
        read_beginning(config, 1000)
