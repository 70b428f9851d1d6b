"""What `spin check` reports of data: counts, lengths, padding, rows on the hub."""

import http.server
import io
import json
import threading

import pytest
from huggingface_hub import constants

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.train import TrainConfig
from spin_core.errors import DataError
from spin_core.phases import prompts
from spin_core.preflight import data
from spin_core.preflight.check import check_run
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import ModelVersion
from tests.support.findings import only_error, texts_of


def test_padding_is_the_rows_size_relative_to_their_sequences():
    config = TrainConfig(batch_size=4, micro_batch_tokens=10**6, loss="sft")
    assert data.padding([(5, 5)] * 10, config) == 1
    assert data.padding([(1, 1), (1, 2), (1, 3), (1, 8)], config) == 4 * 9 / (2 + 3 + 4 + 9)
    # Of a prompt's two responses, both rows are as long as the longer one.
    pairs = TrainConfig(batch_size=1, micro_batch_tokens=10**6)
    assert data.padding([(1, 1), (1, 9)], pairs) == 4 * 10 / (2 + 10 + 2 + 10)
    alike = TrainConfig(batch_size=64, micro_batch_tokens=100, loss="sft")
    assert 1 < data.padding([(1, n) for n in range(1, 200)], alike) < 1.2, "rows of similar lengths are together"


@pytest.fixture
def preferred(tmp_path):
    """A JSONL file of 10 preferences and one invalid row."""
    file = tmp_path / "preferences.jsonl"
    made = [{"prompt": f"question {i}?", "chosen": "yes", "rejected": "no"} for i in range(10)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in [*made, {"prompt": 1, "chosen": 2, "rejected": 3}]))
    return file


def test_preferences_for_dpo_are_read_and_add_to_time_and_disk(configured, preferred, tmp_path):
    without = check_run(configured(), tmp_path)
    result = check_run(configured(f"controls.dpo.source.path={preferred}", "controls.dpo.epochs=9"), tmp_path)
    assert f"{preferred} has 11 rows, 10 with a preference for DPO" in texts_of(result, "data")
    assert "SFT and controls" in texts_of(result, "time")[0]
    assert texts_of(result, "disk") != texts_of(without, "disk")


def test_data_that_are_not_preferences_are_an_error(configured, rows, tmp_path):
    line = only_error(check_run(configured(f"controls.dpo.source.path={rows}"), tmp_path))
    assert line.startswith(f"data: {rows} is not preference data, since it has no column chosen or rejected")


def test_counts_of_prompts_equal_those_of_the_phase(configured, tiny_model, tmp_path):
    config = configured()
    job = PromptsJob(
        output=tmp_path / "prompts",
        seed=config.seed,
        config=config.prompts,
        chat=config.chat,
        tokenizer=ModelVersion(path=tiny_model, digest="", t=0, parent=None),
        max_new_tokens=config.generate.max_new_tokens,
    )
    record = prompts.run(job, tmp_path, Progress(out=io.StringIO()))
    result = check_run(config, tmp_path)
    left_out = ", ".join(f"{number} {reason}" for reason, number in record["drops"].items())
    assert texts_of(result, "prompts") == [
        f"{record['rows']} to train on and {record['held_out']} held out; left out: {left_out}"
    ]
    assert record["drops"] == {"duplicate": 1, "empty-response": 1, "prompt-too-long": 1}


def test_a_long_source_is_estimated_from_its_first_rows(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHARACTERS", 700)
    result = check_run(configured(), tmp_path)
    assert "judged by the first 24 rows" in texts_of(result, "prompts")[0]
    assert texts_of(result, "prompts")[0].startswith("52 to train on and 8 held out")


def test_responses_that_are_mostly_cut_are_a_warning(configured, tmp_path):
    result = check_run(configured("generate.max_new_tokens=6"), tmp_path)
    assert result.ok
    assert (
        "100% of the responses are cut: raise generate.max_new_tokens above 6" in texts_of(result, "lengths", "warn")[0]
    )


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set, which has 1,234 rows."""
    info = {"id": "some/data", "sha": "c" * 40, "siblings": [], "cardData": {}}
    info["cardData"]["dataset_info"] = {"splits": [{"name": "train", "num_examples": 1234}]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_known = self.path.split("?")[0] == "/api/datasets/some/data"
            self.send_response(200 if is_known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(info).encode() if is_known else b"{}")

        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_rows_on_the_hub_are_counted_from_their_card():
    assert data.rows_on_hub(SourceConfig(path="some/data")) == 1234
    assert data.rows_on_hub(SourceConfig(path="some/data", split="test")) is None
    with pytest.raises(DataError, match="some/other is not a file or folder here, and the hub did not answer for it"):
        data.rows_on_hub(SourceConfig(path="some/other"))


@pytest.mark.usefixtures("hub")
def test_rows_on_the_hub_are_assumed_to_have_the_greatest_length(configured, tmp_path):
    result = check_run(configured("prompts.source.path=some/data"), tmp_path)
    assert result.ok
    assert texts_of(result, "data") == ["some/data is on the hub and has 1,234 rows; they are read when the run begins"]
    assert texts_of(result, "lengths") == ["unknown: 1,234 prompts of 50 and responses of 24 tokens are assumed"]


def test_a_held_out_source_with_too_few_rows_is_an_error(configured, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHARACTERS", 700)
    other = configured(f"prompts.held_out_source={{path: {rows}}}", "prompts.held_out=100")
    assert isinstance(other.prompts, PromptsConfig)
    assert "has fewer rows than prompts.held_out: lower that" in only_error(check_run(other, tmp_path))


def test_each_of_several_sources_is_reported_and_its_rows_are_counted(configured, rows, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"ask": f"hi {i}", "reply": "ho", "id": i}) + "\n" for i in range(20)))
    source = f"{{path: {chats}, columns: {{ask: prompt, reply: response}}, rows: 10}}"
    result = check_run(configured(f"prompts.sources={{tasks: {rows}, chats: {source}}}"), tmp_path)
    assert f"prompts.sources are read, and prompts.source ({rows}) is not" in texts_of(result, "data")
    reported = texts_of(result, "data")
    assert f"{chats} has 20 rows, 20 with a prompt and a response" in reported
    assert any(text.startswith(f"{rows} has 60 rows") for text in reported)
    assert texts_of(result, "prompts")[0].startswith("59 to train on and 8 held out"), "57 + 10 usable rows"
    assert any(text.endswith("columns without influence: id") for text in reported)
    line = only_error(check_run(configured(f"prompts.sources={{chats: {chats}}}"), tmp_path))
    assert "Name them in prompts.sources.chats.columns" in line
