"""Names that a user gives, and what they may not be: each is refused with one line, before anything is written."""

import shutil
from pathlib import Path

import pytest

from flows.permissions import runs_folder
from spin_core.comparison import compare
from spin_core.config import resolve as config_resolve
from spin_core.config.data import SourceConfig
from spin_core.config.resolve import resolve
from spin_core.data.sources import read_rows
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DataError, ModelError, SpinError
from spin_core.leaderboard import scoring
from spin_core.lineage.find import find_lineage, lineage_folder
from spin_core.lineage.start import start_lineage
from spin_core.preflight.findings import Inspection
from spin_core.preflight.model import build_model, find_model, inspect_model

LONG, LONGER, NUL = "x" * 300, "x/" * 3000, "a\0b"
UNNAMEABLE = [LONG, LONGER, NUL, "~nobody-here/x"]
TRICKS = [
    "../x",
    "..",
    ".",
    "",
    "/tmp/x",
    "x/../y",
    "x\\y",
    "-x",
    ".x",
    "demo\n",
    "Demo",
    "ｄｅｍｏ",
    "dеmo",
    "x y",
    *UNNAMEABLE,
]


def short(name: str) -> str:
    return ascii(name[:20])


def one_line(error: SpinError) -> str:
    (line,) = str(error).splitlines()
    return line


@pytest.mark.parametrize("name", TRICKS, ids=short)
def test_no_trick_names_a_lineage_a_comparison_or_a_recipe(name, tmp_path):
    before = sorted(tmp_path.parent.rglob("*"))
    config = resolve("demo")
    for refuse in (
        lambda: lineage_folder(tmp_path, name),
        lambda: find_lineage(tmp_path, name),
        lambda: start_lineage(tmp_path, name, config),
        lambda: compare.prepare_comparison(tmp_path, name, config, 1, ["sft-steps"]),
        lambda: scoring.prepare(tmp_path, str(tmp_path), name=name or "..", recipe="demo"),
        lambda: resolve(name),
    ):
        with pytest.raises(ConfigError) as refused:
            refuse()
        assert one_line(refused.value)
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["../mt-bench", "/tmp/x", "mt-bench\n", "ｍt-bench", *UNNAMEABLE], ids=short)
def test_no_trick_names_a_suite(name):
    with pytest.raises(ConfigError) as refused:
        resolve("demo", overrides={"evaluate": {"suites": [name]}})
    assert "evaluate.suites" in one_line(refused.value)


@pytest.mark.parametrize("path", UNNAMEABLE, ids=short)
@pytest.mark.parametrize(
    "setting",
    ["model.path", "model.tokenizer", "prompts.source.path", "evaluate.lm_eval.local_data", "evaluate.mt_bench.data"],
)
def test_an_invalid_path_is_rejected_with_its_setting(setting, path):
    change = path
    for key in reversed(setting.split(".")):
        change = {key: change}
    with pytest.raises(ConfigError) as refused:
        resolve("demo", overrides=change)
    assert one_line(refused.value).startswith(f"{setting} ")
    assert "cannot be a path" in one_line(refused.value)


@pytest.mark.parametrize("path", UNNAMEABLE, ids=short)
def test_nor_does_it_name_a_model_or_a_folder_of_runs(path, tmp_path):
    with pytest.raises(ConfigError) as refused:
        scoring.prepare(tmp_path, path)
    assert "cannot be a path" in one_line(refused.value)
    with pytest.raises(ConfigError) as refused:
        runs_folder(path)
    assert "cannot be a path" in one_line(refused.value)


@pytest.mark.parametrize("name", ["../x.jsonl", "loop.jsonl", "gone.jsonl", "away.txt"])
def test_a_missing_source_is_rejected(name, tmp_path):
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "away.txt").symlink_to("/etc/hostname")
    with pytest.raises(DataError) as refused:
        read_rows(SourceConfig(path=str(tmp_path / name)))
    assert name in one_line(refused.value)


def test_a_setting_can_name_no_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "planted")
    monkeypatch.setenv("SPIN_DATA", "/data")
    expanded = config_resolve.expand_environment(
        {"path": "${OPENAI_API_KEY:-none}", "source": "${SPIN_DATA:-none}/train.jsonl"}, config_resolve.VARIABLES
    )
    assert expanded == {"path": "${OPENAI_API_KEY:-none}", "source": "/data/train.jsonl"}


def test_a_key_that_is_given_in_place_of_its_variables_name_is_rejected():
    with pytest.raises(ConfigError, match=r"evaluate\.judge\.api_key_env"):
        resolve("demo", overrides={"evaluate": {"judge": {"api_key_env": "sk-abc"}}})


def test_weights_that_run_code_when_they_are_read_are_rejected(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    findings = check_of(model, tmp_path)
    assert [line for line in findings if "holds no safetensors weights (only pytorch_model.bin)" in line]


def test_code_that_comes_with_a_model_is_rejected_or_reported_if_allowed(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "own.py").write_text("raise SystemExit('this code ran')\n")
    settings = (model / "config.json").read_text()
    auto_map = '"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}'
    (model / "config.json").write_text(settings.replace('"model_type": "llama"', auto_map))
    assert [line for line in check_of(model, tmp_path) if "read that code, then set model.trust_remote_code" in line]
    (model / "config.json").write_text(settings)
    messages = check_of(model, tmp_path, trust_remote_code=True)
    assert "model.trust_remote_code is on: Python code that comes with the model will run" in messages


def test_code_that_comes_with_a_tokenizer_is_rejected(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "own.py").write_text("raise SystemExit('this code ran')\n")
    (model / "tokenizer.json").unlink()
    own = '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}'
    (model / "tokenizer_config.json").write_text(own)
    (model / "config.json").write_text('{"model_type": "own-kind"}')
    with pytest.raises(ModelError, match=r"read that code, then set model\.trust_remote_code"):
        load_tokenizer(model, resolve("demo").model)


def check_of(model: Path, runs: Path, **settings: bool) -> list[str]:
    """What `spin check` reports of a model's folder."""
    change = {"model": {"path": str(model), **settings}, "controls": {}, "evaluate": {"exact": False}}
    config, inspection = resolve("demo", overrides=change), Inspection()
    folder = inspection.run("model", find_model, config, runs)
    skeleton = inspection.run("model", build_model, config, folder)
    inspection.run("model", inspect_model, config, folder, skeleton, False)
    return [finding.text for finding in inspection.findings]
