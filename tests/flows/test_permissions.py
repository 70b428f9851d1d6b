"""What a run of a deployment may choose: no other code, no keys sent elsewhere, nothing written outside its folder."""

from collections.abc import Iterator
from typing import get_args

import pytest
from prefect.runtime import deployment
from pydantic import BaseModel

from flows.compare import compare
from flows.evaluate import evaluate
from flows.parameters import Overrides, is_section
from flows.permissions import GUARDED, permitted_values, runs_folder
from flows.spin import spin
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError, SpinError


def one_line(error: SpinError) -> str:
    """The message of an error, which must be one line."""
    (line,) = str(error).splitlines()
    return line


@pytest.mark.parametrize(
    ("named", "inside"),
    [("", True), ("mine", True), ("mine/../other", True), ("link-inside", True)]
    + [(name, False) for name in ("..", "../served-too", "/tmp", "mine/../../x", "link-outside", "link-outside/x")],
)
def test_a_deployments_run_stays_in_the_folder_that_is_served(named, inside, tmp_path, monkeypatch):
    served = tmp_path / "served"
    for folder in (served / "mine", tmp_path / "served-too"):
        folder.mkdir(parents=True)
    (served / "link-inside").symlink_to(served / "mine")
    (served / "link-outside").symlink_to(tmp_path / "served-too")
    monkeypatch.setenv("SPIN_RUNS", str(served))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-some-deployment")
    assert deployment.id
    if inside:
        assert runs_folder(named).resolve().is_relative_to(served)
        return
    with pytest.raises(ConfigError) as refused:
        runs_folder(named)
    assert "name a folder in it, or none" in one_line(refused.value)


def test_a_command_may_name_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIN_RUNS", str(tmp_path / "served"))
    assert runs_folder(str(tmp_path / "other")) == tmp_path / "other"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [("", True), ("s3://bucket/spin", True), ("hf://buckets/me/name", True), ("memory://x", False)]
    + [(f"file://{place}", True) for place in ("{served}/copies", "{served}", "{served}/link-inside/x")]
    + [(f"{protocol}://{{served}}/../x", False) for protocol in ("file", "local")]
    + [(f"file://{place}", False) for place in ("/tmp/x", "{served}-too/x", "{served}/link-outside/x", "~/x", "x")]
    + [("zip://a::file:///tmp/x.zip", False), ("s3://a::local:///tmp/x", False), ("dir:///tmp/x", False)]
    + [(f"{protocol}://localhost/x", False) for protocol in ("sftp", "smb", "ssh", "webdav", "hdfs")],
)
def test_a_deployments_run_pushes_no_copy_into_another_folder_of_this_machine(url, allowed, tmp_path, monkeypatch):
    served = tmp_path / "served"
    for folder in (served / "mine", tmp_path / "served-too"):
        folder.mkdir(parents=True)
    (served / "link-inside").symlink_to(served / "mine")
    (served / "link-outside").symlink_to(tmp_path / "served-too")
    monkeypatch.setenv("SPIN_RUNS", str(served))
    overrides = Overrides(push={"url": url.format(served=served)})
    assert permitted_values(overrides) == {"push": {"url": url.format(served=served)}}, "a command may push anywhere"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-some-deployment")
    if allowed:
        assert permitted_values(overrides)["push"] == {"url": url.format(served=served)}
        return
    with pytest.raises(ConfigError) as refused:
        permitted_values(overrides)
    assert "name a folder in the one that is served, or a store such as s3://" in one_line(refused.value)


def change(setting: str, value: object) -> Overrides:
    """One setting, filled in."""
    for name in reversed(setting.split(".")):
        value = {name: value}
    return Overrides.model_validate(value)


HARMFUL = [
    ("model.trust_remote_code", True),
    ("generate.vllm.python", "/anywhere/python"),
    ("generate.speed.ray.address", "ray://elsewhere:10001"),
    ("evaluate.speed.ray.address", "ray://elsewhere:10001"),
    ("sft.train.speed.rendezvous", "elsewhere:29500"),
    ("train.speed.rendezvous", "elsewhere:29500"),
    ("evaluate.judge.api_key_env", "AWS_SECRET_ACCESS_KEY"),
    ("evaluate.judge.base_url", "https://elsewhere.example/v1"),
    ("evaluate.judge.base_url", "http://127.0.0.1.elsewhere.example/v1"),
    ("evaluate.judge.base_url", "http://10.0.0.1/v1"),
    ("push.url", "sftp://localhost/x"),
]


@pytest.mark.parametrize(("setting", "value"), HARMFUL)
def test_a_deployments_run_neither_runs_other_code_nor_sends_keys_elsewhere(setting, value, monkeypatch):
    overrides = change(setting, value)
    monkeypatch.setenv("SPIN_ALLOW", "")
    assert permitted_values(overrides), "a command may"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-some-deployment")
    with pytest.raises(ConfigError) as refused:
        permitted_values(overrides)
    assert one_line(refused.value).startswith(f"{setting}={value} is not for a deployment's run to choose: ")
    monkeypatch.setenv("SPIN_ALLOW", f"{setting}=other {setting}.more train")
    with pytest.raises(ConfigError):
        permitted_values(overrides)
    for allowed in (setting, f"{setting}={value}"):
        monkeypatch.setenv("SPIN_ALLOW", f"seed {allowed} train.beta")
        assert permitted_values(overrides) == change(setting, value).filled_in()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("evaluate.judge.base_url", "http://127.0.0.1:8000/v1"),
        ("evaluate.judge.base_url", "http://localhost:8000/v1"),
        ("evaluate.judge.base_url", "http://[::1]:8000/v1"),
        ("evaluate.judge.base_url", ""),
        ("evaluate.judge.api_key_env", "OPENAI_API_KEY"),
        ("generate.speed.ray.address", "auto"),
        ("generate.vllm.python", ""),
        ("model.trust_remote_code", False),
    ],
)
def test_harmless_settings_need_no_permission(setting, value, monkeypatch):
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-some-deployment")
    assert permitted_values(change(setting, value)) == change(setting, value).filled_in()


def test_every_setting_of_a_guarded_kind_is_guarded():
    kinds = {setting.rpartition(".")[2] for setting, _ in HARMFUL}
    harmful = {path for path in settings(RunConfig) if path.rpartition(".")[2] in kinds}
    assert harmful == {setting for setting, _ in HARMFUL} == set(GUARDED)


def settings(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        below = [kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)]
        yield from settings(below[0], f"{above}{name}.") if below else [f"{above}{name}"]


@pytest.mark.parametrize("flow", [spin, compare, evaluate], ids=lambda flow: flow.name)
def test_no_flow_that_takes_overrides_begins_with_such_a_copy(flow, tmp_path, monkeypatch):
    monkeypatch.setenv("SPIN_RUNS", str(tmp_path / "served"))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-some-deployment")
    target = {"target": "mine"} if flow is evaluate else {}
    with pytest.raises(ConfigError, match=r"^push\.url="):
        flow.fn(**target, recipe="demo", overrides=Overrides(push={"url": f"file://{tmp_path}/away"}))
    assert list(tmp_path.iterdir()) == []
