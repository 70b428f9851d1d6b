"""Attacks by `${SPIN_…:-…}`: past the check of a form's values, and to secrets of the environment."""

import json

import pytest

from flows.parameters import Overrides
from flows.permissions import permitted_values
from spin_core.config.resolve import read_changes, resolve
from spin_core.errors import ConfigError
from spin_core.leaderboard import scoring
from spin_core.lineage.changes import with_settings
from spin_core.lineage.find import find_lineage
from tests.support.lineages.small_lineage import build_lineage

SECRET = "planted-mail-password"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SPIN_SMTP_PASSWORD", SECRET)
    monkeypatch.setenv("SPIN_RUNS", str(tmp_path / "served"))


@pytest.mark.parametrize(
    "overrides",
    [
        # In the served folder as it is written, and /…/away once it is replaced.
        {"push": {"url": "file://{served}/${SPIN_X:-../away}"}},
        {"push": {"url": "${SPIN_X:-file:///tmp/away}"}},
        {"evaluate": {"judge": {"base_url": "http://127.0.0.1:8000/${SPIN_SMTP_PASSWORD:-}"}}},
        {"model": {"path": "${SPIN_DATA:-/elsewhere}"}},
        {"chat": {"system": "${SPIN_SMTP_PASSWORD:-}"}},
        {"evaluate": {"judge": {"extra_body": {"user": ["${SPIN_SMTP_PASSWORD:-}"]}}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("deployed", [True, False])
def test_nothing_is_replaced_in_a_form(overrides, deployed, monkeypatch, tmp_path):
    filled = json.loads(json.dumps(overrides).replace("{served}", str(tmp_path / "served")))
    if deployed:
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-some-deployment")
    if "push" in filled and "${SPIN_X:-file" in filled["push"]["url"]:
        with pytest.raises(ValueError, match=r"push\.url"):
            Overrides.model_validate(filled)
        return
    with pytest.raises(ConfigError, match="is not replaced in values from a form: write the value itself"):
        permitted_values(Overrides.model_validate(filled))


def test_environment_variables_in_overrides_of_a_flow_are_not_replaced():
    config = resolve("demo", overrides={"chat": {"system": "${SPIN_SMTP_PASSWORD:-}"}})
    assert config.chat.system == "${SPIN_SMTP_PASSWORD:-}"


def test_a_model_to_score_is_named_as_it_is(tmp_path):
    (tmp_path / "served").mkdir()
    with pytest.raises(ConfigError) as refused:
        scoring.prepare(tmp_path / "served", "${SPIN_SMTP_PASSWORD:-}", (), [], "", "")
    assert SECRET not in str(refused.value)


def test_settings_of_a_lineage_that_others_have_made_are_taken_as_they_are(tmp_path):
    """`spin next` of a pulled lineage with a change, which validates all settings again."""
    path = build_lineage(tmp_path, "mine").root / "lineage.json"
    settings = json.loads(path.read_text())
    settings["config"]["chat"]["system"] = "${SPIN_SMTP_PASSWORD:-}"
    path.write_text(json.dumps(settings))
    config = with_settings(find_lineage(tmp_path, "mine"), [{"gate": {"rule": "always"}}]).config
    assert config.chat.system == "${SPIN_SMTP_PASSWORD:-}"


@pytest.mark.parametrize("name", ["SPIN_SMTP_PASSWORD", "SPIN_AUTH", "SPIN_NOTIFY_WEBHOOK", "SPIN_TEAM", "SPIN_RUNS"])
def test_a_file_or_a_command_reaches_no_variable_that_is_not_declared(name, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f'chat: {{system: "${{{name}:-}}"}}')
    for given in ({"file": file}, {"sets": [f"chat.system=${{{name}:-}}"]}):
        with pytest.raises(ConfigError, match=f"list {name} in the file's `variables`") as refused:
            resolve("demo", **given)
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "names",
    [
        *(
            ["SPIN_SMTP_PASSWORD"],
            ["SPIN_AUTH"],
            ["SPIN_DATABASE_PASSWORD"],
            ["SPIN_NOTIFY_WEBHOOK"],
            ["SPIN_HUB_TOKEN"],
        ),
        *(["OPENAI_API_KEY"], ["PATH"], ["SPIN_OK", "HF_TOKEN"], "SPIN_OK", {"SPIN_OK": 1}, [1]),
    ],
    ids=str,
)
def test_no_file_declares_a_secret(names, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"variables": names}))
    with pytest.raises(ConfigError, match="variables must be a list of names that begin with SPIN_"):
        read_changes(file, ())


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_a_file_declares_the_variables_that_it_uses(suffix, monkeypatch, tmp_path):
    monkeypatch.setenv("SPIN_TEAM_DATA", "/data")
    monkeypatch.setenv("SPIN_DATA", "/public")
    file = tmp_path / f"mine.{suffix}"
    rest = {"yaml": 'chat: {system: "${SPIN_TEAM_DATA:-}"}', "toml": '[chat]\nsystem = "${SPIN_TEAM_DATA:-}"'}[suffix]
    colon = {"yaml": ": ", "toml": " = "}[suffix]
    file.write_text(f'variables{colon}["SPIN_TEAM_DATA"]\n{rest}')
    sets = ["model.path=${SPIN_DATA:-x}/m", "prompts.source.path=${SPIN_TEAM_DATA:-x}/rows.jsonl"]
    config = resolve("tinystories", file=file, sets=sets)
    assert config.chat.system == "/data"
    assert (config.model.path, config.prompts.source.path) == ("/public/m", "/data/rows.jsonl")
    assert str(config.evaluate.lm_eval.local_data) == "/public/benchmarks"
