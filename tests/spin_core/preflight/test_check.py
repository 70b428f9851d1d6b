"""`spin check`: its numbers are those of the phases, and each error is one line before any compute."""

import http.server
import io
import json
import sys
import threading

import pytest
import torch
from huggingface_hub import constants

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.model import ModelConfig
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError, DataError, ModelError
from spin_core.leaderboard import gate
from spin_core.models import logit_transform
from spin_core.models.loading import load_model
from spin_core.models.weights import count_weights, read_headers
from spin_core.phases import prompts
from spin_core.preflight import check, data, measure
from spin_core.preflight.check import check_run
from spin_core.preflight.findings import Findings
from spin_core.runtime import interpreter
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import ModelVersion
from tests.support.helpers import character_tokenizer, data_folder, save_tiny_model
from tests.support.models.chat_tokenizers import chat_tokenizer


@pytest.fixture(autouse=True)
def quick_measurement(monkeypatch):
    """The device is measured in milliseconds: no test here depends on its speed."""
    monkeypatch.setattr(measure, "TRIED_SECONDS", 0.005)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A JSONL file of 60 rows, of which one is empty, one is a repetition, and one has a prompt of 100 tokens."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    made = [{"prompt": f"question {i:02d}?", "response": "answer " * (1 + i % 3) + f"{i:02d}."} for i in range(57)]
    made += [{"prompt": "empty?", "response": " "}, made[0], {"prompt": "x" * 99, "response": "long"}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    return file


@pytest.fixture
def configured(tiny_model, rows):
    """A small run's configuration; settings may be changed."""

    def configure(*sets):
        own = (f"model.path={tiny_model}", f"prompts.source.path={rows}", "prompts.held_out=8", "prompts.sample=null")
        sizes = ("prompts.max_prompt_tokens=50", "generate.max_new_tokens=24", "train.batch_size=4")
        off = ("evaluate.exact=false", "evaluate.main_metric=heldout_nll", "controls={sft_continued: false}")
        return resolve("demo", sets=[*own, *sizes, *off, *sets])

    return configure


def texts(found: Findings, subject: str, level: str = "ok") -> list[str]:
    return [finding.text for finding in found.findings if (finding.subject, finding.level) == (subject, level)]


def wrong(found: Findings) -> str:
    """The one thing that is wrong."""
    (line,) = [f"{finding.subject}: {finding.text}" for finding in found.findings if finding.level == "wrong"]
    assert not found.ok
    assert "\n" not in line
    return line


@pytest.fixture
def preferred(tmp_path):
    """A JSONL file of 10 preferences and a row that is none."""
    file = tmp_path / "preferences.jsonl"
    made = [{"prompt": f"question {i}?", "chosen": "yes", "rejected": "no"} for i in range(10)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in [*made, {"prompt": 1, "chosen": 2, "rejected": 3}]))
    return file


def test_preferences_for_dpo_are_read_and_their_model_and_time_are_counted(configured, preferred, tmp_path):
    without = check_run(configured(), tmp_path)
    found = check_run(configured(f"controls.dpo.source.path={preferred}", "controls.dpo.epochs=9"), tmp_path)
    assert f"{preferred} has 11 rows, of which 10 are preferences for DPO" in texts(found, "data")
    assert "SFT and controls" in texts(found, "time")[0]
    assert texts(found, "disk") != texts(without, "disk")


def test_data_that_are_no_preferences_are_wrong(configured, rows, tmp_path):
    line = wrong(check_run(configured(f"controls.dpo.source.path={rows}"), tmp_path))
    assert line.startswith(f"data: {rows} is not preference data, since it has no column chosen or rejected")


def test_an_adapter_is_reported_with_its_size_and_its_layers_must_be_there(configured, tmp_path):
    found = check_run(configured("train.lora={rank: 4, targets: [q_proj, down_proj]}"), tmp_path)
    text = "trains an adapter of rank 4, alpha 32 on 4 layers: 640 parameters"
    assert text in texts(found, "model"), "by hand: 2 layers x 4 x (16 + 16 + 32 + 16)"
    line = wrong(check_run(configured("train.lora={targets: [query]}"), tmp_path))
    assert line.startswith("model: train.lora.targets names 'query', and LlamaForCausalLM has no such linear layer: ")


def test_weights_are_chosen_by_what_is_measured(configured, tmp_path):
    line = wrong(check_run(configured("train.keep_best=loss"), tmp_path))
    assert line == (
        "config: train.keep_best loss is measured on held-out pairs, and none are held out: "
        "set train.held_out to 0.05, or train.keep_best to nothing"
    )


@pytest.mark.parametrize("loss", ["t-spin", "space"])
def test_a_beta_that_its_paper_does_not_take_is_a_warning(configured, loss, tmp_path):
    said = f"train.loss {loss} is made for train.beta 1, which its paper takes"
    assert said in texts(check_run(configured(f"train.loss={loss}", "train.beta=0.1"), tmp_path), "config", "warn")
    assert said not in texts(check_run(configured(f"train.loss={loss}", "train.beta=1"), tmp_path), "config", "warn")


def test_the_demo_is_ready_and_nothing_is_left_behind(tmp_path):
    found = check_run(resolve("demo"), tmp_path / "runs")
    assert found.ok
    subjects = {finding.subject for finding in found.findings}
    assert subjects == {
        "config",
        "data",
        "model",
        "engine",
        "tokenizer",
        "context",
        "prompts",
        "lengths",
        "metrics",
        "memory",
        "disk",
        "time",
    }
    assert texts(found, "prompts") == ["16,384 to train on and 300 held out"]
    assert "made here, and trained on the data for 12 epochs" in texts(found, "model")[0]
    assert list(tmp_path.iterdir()) == []
    assert Findings.model_validate_json(found.model_dump_json()) == found


def test_which_engine_answers_is_reported_and_that_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreter, "sees_gpu", lambda: False)
    assert texts(check_run(resolve("demo"), tmp_path), "engine") == ["transformers answers: there is no GPU to use"]
    vllm = ["generate.engine=vllm", f"generate.vllm.python={sys.executable}"]
    found = check_run(resolve("demo", sets=vllm), tmp_path)
    assert "vLLM answers (set by generate.engine)" in texts(found, "engine")[0]
    assert not any("generation" in text for text in texts(found, "memory"))
    found = check_run(resolve("demo", sets=["generate.engine=vllm", "generate.vllm.python=/no/such"]), tmp_path)
    assert "run `make vllm`" in texts(found, "engine", "wrong")[0]


def test_a_length_that_leaves_vllm_no_room_is_rejected():
    with pytest.raises(ConfigError, match=r"generate.vllm.max_length 100 is too short for prompts of 512 tokens"):
        resolve("zephyr-7b", sets=["generate.vllm.max_length=100", "prompts.max_prompt_tokens=512"])


def test_the_small_real_recipe_is_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIN_DATA", str(data_folder("tinystories").parent))
    found = check_run(resolve("tinystories"), tmp_path)
    assert found.ok
    assert texts(found, "model")[0].startswith("936,448 parameters, float32 on cpu: ")
    assert "7,215 rows" in texts(found, "data")[0]


def test_the_small_real_recipe_says_where_its_data_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIN_DATA", str(tmp_path / "none"))
    (line,) = texts(check_run(resolve("tinystories"), tmp_path), "data", "warn")
    assert (
        f"{tmp_path}/none does not exist: set SPIN_DATA to a folder with BabyLlama's tok105 weights (EN10, MIT)" in line
    )
    assert "TinyStories (Eldan & Li, CDLA-Sharing-1.0); see docs/benchmarks.md" in line


def test_a_models_size_is_its_own(configured, tiny_model, tmp_path):
    found = check_run(configured(), tmp_path)
    parameters = load_model(tiny_model, ModelConfig()).num_parameters()
    assert texts(found, "model")[0] == f"{parameters:,} parameters, float32 on cpu: {tiny_model}, stored as F32"
    assert "100 tokens; pad <pad>, responses end in </s>; prompts are written as bare text" in texts(found, "tokenizer")


def test_the_counts_are_those_of_the_phase(configured, tiny_model, tmp_path):
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
    found = check_run(config, tmp_path)
    left_out = ", ".join(f"{number} {reason}" for reason, number in record["drops"].items())
    assert texts(found, "prompts") == [
        f"{record['rows']} to train on and {record['held_out']} held out; left out: {left_out}"
    ]
    assert record["drops"] == {"duplicate": 1, "empty-response": 1, "prompt-too-long": 1}


def test_a_long_source_is_judged_by_its_beginning(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHARACTERS", 700)
    found = check_run(configured(), tmp_path)
    assert "judged by the first 24 rows" in texts(found, "prompts")[0]
    assert texts(found, "prompts")[0].startswith("52 to train on and 8 held out")


def test_responses_that_are_mostly_cut_are_a_warning(configured, tmp_path):
    found = check_run(configured("generate.max_new_tokens=6"), tmp_path)
    assert found.ok
    assert "100% of the responses are cut: raise generate.max_new_tokens above 6" in texts(found, "lengths", "warn")[0]


def test_a_schedule_that_is_too_long_is_a_warning(configured, tmp_path):
    found = check_run(configured("iterations=2", "train.beta=[0.1, 0.2, 0.3]"), tmp_path)
    assert texts(found, "config", "warn") == ["train.beta has 3 values for 2 iterations: the last 1 go unused"]
    assert "beta 0.1, 0.2, learning rate" in texts(found, "config")[0]


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["model.path=/nowhere/model"], "model: /nowhere/model is not a folder"),
        (["prompts.source.path=/nowhere/rows.jsonl"], "data: /nowhere/rows.jsonl does not exist"),
        (["prompts.columns={prompt: ask}"], "data: "),
        (["prompts.held_out=500"], "data: prompts.held_out is 500, but there are only"),
        (["prompts.max_prompt_tokens=1020"], "context: prompts of 1020 tokens and responses of 24 exceed"),
        (["chat.template=tokenizer"], ": the tokenizer has no chat template"),
        (["model.pad_token=<none>"], "tokenizer: model.pad_token '<none>' is not in the tokenizer's vocabulary"),
        (
            ["evaluate.main_metric=reward_margin"],
            "config: evaluate.main_metric 'reward_margin' is not a score",
        ),
        (["evaluate.exact=true"], "config: evaluate.exact needs data whose distribution is known"),
        (["evaluate.self_play=false"], "set evaluate.self_play, or name evaluate.lm_eval.tasks"),
        (["evaluate.lm_eval={tasks: [arc_easy], local_data: /nowhere}"], "benchmarks: evaluate.lm_eval.local_data"),
        (
            ["evaluate.suites=[big-bench]", "evaluate.lm_eval.tasks=[openbookqa]"],
            "benchmarks: big-bench and lm-eval both score openbookqa",
        ),
        (["train.micro_batch_tokens=1000000000", "train.batch_size=10000000"], "memory: training takes about"),
        (["generate.batch_size=10000000"], "memory: generation takes about"),
        (
            ["iterations=1000", "train.save_every=1", "train.keep_checkpoints=10000000", "train.epochs=1000000"],
            "disk: ",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_its_cure(configured, tmp_path, sets, says):
    line = wrong(check_run(configured(*sets), tmp_path))
    assert says in line
    assert ": " in line.split(": ", 1)[1], "the cure follows a colon"


def test_a_device_that_is_not_there_is_one_line(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "set model.device to auto or cpu" in wrong(check_run(configured("model.device=cuda"), tmp_path))


def test_what_does_not_depend_on_a_mistake_is_looked_at_all_the_same(configured, tmp_path):
    found = check_run(configured("model.path=/nowhere/model", "prompts.source.path=/nowhere.jsonl"), tmp_path / "x")
    assert [f.subject for f in found.findings if f.level == "wrong"] == ["data", "model"]
    assert not {"memory", "time", "tokenizer"} & {f.subject for f in found.findings}


def test_a_model_that_is_not_whole_is_found_by_its_headers(configured, tiny_model, tmp_path):
    save_tiny_model(tmp_path / "model", character_tokenizer())
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line = wrong(check_run(configured(f"model.path={tmp_path / 'model'}"), tmp_path))
    assert "is not a whole safetensors file" in line
    with pytest.raises(ModelError, match="copy or fetch it again"):
        read_headers([weights])
    assert count_weights(read_headers([tiny_model / "model.safetensors"]))[1] == "F32"


def test_an_end_of_turn_that_the_tokenizer_splits_is_a_warning(configured, tmp_path):
    folder = save_tiny_model(tmp_path / "model", chat_tokenizer("text-markers"))
    found = check_run(configured(f"model.path={folder}", "chat.template=tokenizer"), tmp_path)
    [warning] = [f.text for f in found.findings if (f.subject, f.level) == ("tokenizer", "warn")]
    assert "has no token for '[DONE]', the template's end of turn" in warning


@pytest.fixture
def capped_model(tmp_path):
    """A Gemma 2 that caps its attention's logits, and has windows in every other layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer, folder = character_tokenizer(), tmp_path / "gemma2"
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, sliding_window=16, pad_token_id=0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_cannot_take_packed_rows_is_reported_with_the_reason_and_estimated_with_padding(
    configured, capped_model, tmp_path, monkeypatch
):
    used = []
    monkeypatch.setattr(check, "inspect_time", lambda _inspection, config, *_: used.append(config.train.speed.packing))
    found = check_run(configured(f"model.path={capped_model}"), tmp_path)
    assert found.ok
    assert texts(found, "model", "warn") == ["trains on padded rows, because Gemma2Attention asks for softcap"]
    assert texts(check_run(configured(), tmp_path), "model")[1:] == ["trains on packed rows"]
    off = check_run(configured(f"model.path={capped_model}", "train.speed.packing=false"), tmp_path)
    assert texts(off, "model", "warn") == [], "packed rows are off"
    assert used == [False, True, False]


def test_a_model_that_needs_all_its_logits_at_once_is_reported_and_estimated(
    configured, capped_model, tmp_path, monkeypatch
):
    used = []
    monkeypatch.setattr(
        check, "inspect_time", lambda _inspection, config, *_: used.append(config.train.speed.response_logits)
    )
    monkeypatch.setattr(logit_transform, "_CAP", "no such setting")
    capped = configured(f"model.path={capped_model}", "train.speed.packing=false")
    said = "computes all logits at once, because it does more to them than scale or cap them"
    assert texts(check_run(capped, tmp_path), "model", "warn") == [said]
    monkeypatch.setattr(logit_transform, "_CAP", "final_logit_softcapping")
    assert texts(check_run(capped, tmp_path), "model", "warn") == []
    assert used == [False, True]


def test_a_folder_that_is_a_file_is_one_line(configured, tmp_path):
    (tmp_path / "runs").write_text("a file")
    assert "is a file, where a folder should be" in wrong(check_run(configured(), tmp_path / "runs" / "below"))


def test_a_hub_that_cannot_be_reached_is_one_line_a_source(tmp_path):
    found = check_run(resolve("zephyr-7b"), tmp_path)
    lines = {finding.subject: finding.text for finding in found.findings if finding.level == "wrong"}
    assert set(lines) == {"data", "model", "benchmarks"}
    assert lines["data"].startswith(
        "HuggingFaceH4/ultrachat_200k is not a file or folder here, and the hub did not answer"
    )
    assert lines["model"].startswith("alignment-handbook/zephyr-7b-sft-full is not a folder here, and the hub did not")


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set, which has 1,234 rows."""
    info = {"id": "some/data", "sha": "c" * 40, "siblings": [], "cardData": {}}
    info["cardData"]["dataset_info"] = {"splits": [{"name": "train", "num_examples": 1234}]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path.split("?")[0] == "/api/datasets/some/data"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(info).encode() if known else b"{}")

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
def test_rows_on_the_hub_are_counted_by_their_card():
    assert data.rows_on_hub(SourceConfig(path="some/data")) == 1234
    assert data.rows_on_hub(SourceConfig(path="some/data", split="test")) is None
    with pytest.raises(DataError, match="some/other is not a file or folder here, and the hub did not answer for it"):
        data.rows_on_hub(SourceConfig(path="some/other"))


@pytest.mark.usefixtures("hub")
def test_rows_on_the_hub_are_taken_to_be_as_long_as_allowed(configured, tmp_path):
    found = check_run(configured("prompts.source.path=some/data"), tmp_path)
    assert found.ok
    assert texts(found, "data") == ["some/data is on the hub and has 1,234 rows; they are read when the run begins"]
    assert texts(found, "lengths") == ["unknown: 1,234 prompts of 50 and responses of 24 tokens are assumed"]


def test_scores_that_a_gate_may_watch_are_those_that_versions_get():
    from spin_core.evaluation import items, self_play

    assert {name for name in (*gate.SELF_PLAY, *gate.EXACT) if name not in self_play.__doc__} == set()
    assert set(gate.EXACT) < items.LOWER_IS_BETTER


def test_settings_of_the_prompts_have_room_for_held_out_sources(configured, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHARACTERS", 700)
    other = configured(f"prompts.held_out_source={{path: {rows}}}", "prompts.held_out=100")
    assert isinstance(other.prompts, PromptsConfig)
    assert "has fewer rows than prompts.held_out: lower that" in wrong(check_run(other, tmp_path))


@pytest.mark.parametrize(
    ("suites", "uncounted"),
    [
        ("[]", None),
        ("[mt-bench-quick]", "; MT-Bench not counted;"),
        ("[instruct]", "; benchmarks not counted;"),
        ("[mt-bench, instruct]", "; benchmarks and MT-Bench not counted;"),
    ],
)
def test_the_time_says_what_is_not_in_it(configured, tmp_path, suites, uncounted):
    (said,) = texts(check_run(configured(f"evaluate.suites={suites}", *NO_JUDGE), tmp_path), "time")
    assert uncounted in said if uncounted else "not counted" not in said


NO_JUDGE = ("evaluate.judge.base_url=http://127.0.0.1:9/v1", "evaluate.judge.speed.retries=1")
"""A judge that does not run, which is another finding."""
