"""Attacks by a lineage that somebody else pushed: its settings run code, send keys or reach out, its files go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from flows.permissions import GUARDED
from spin_core.config.push import PushConfig
from spin_core.config.trust import RISKS, risks, value_of
from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.lineage.find import find_lineage
from spin_core.remote.manifest import MANIFEST, files_of, is_expected
from spin_core.remote.pull import pull
from spin_core.remote.push import push
from spin_core.store import identity
from tests.support.lineages.small_lineage import build_lineage

HARMFUL: dict[str, Any] = {
    "model.trust_remote_code": True,
    "generate.vllm.python": "/tmp/python",
    "generate.speed.ray": {"address": "ray://evil.example:10001"},
    "evaluate.speed.ray": {"address": "ray://evil.example:10001"},
    "sft.train.speed.rendezvous": "evil.example:29500",
    "train.speed.rendezvous": "evil.example:29500",
    "evaluate.judge.api_key_env": "AWS_SECRET_ACCESS_KEY",
    "evaluate.judge.base_url": "https://evil.example/v1",
    "metrics.sinks": ["tensorboard", "wandb"],
    "push.url": "s3://evil/spin",
}


@pytest.fixture
def store(tmp_path) -> str:
    """A store with the copy of a lineage `tale`."""
    url = f"file://{tmp_path}/store"
    push(build_lineage(tmp_path / "theirs"), PushConfig(url=url))
    return url


def forge(tmp_path: Path, path: str, change: Callable[[bytes], bytes], name: str = "") -> None:
    """Change a file of the copy, or add one, and have the manifest name it with its digest, as an attacker would."""
    copy = tmp_path / "store" / "tale"
    manifest = json.loads((copy / MANIFEST).read_text())
    at = manifest["files"].get(path, {"at": f".pushed/texts/{len(manifest['files'])}"})["at"]
    source = copy / at
    content = change(source.read_bytes() if source.exists() else b"")
    source.write_bytes(content)
    digest = identity.digest_file(source)
    manifest["files"][name or path] = {"sha256": digest, "bytes": len(content), "at": at}
    (copy / MANIFEST).write_text(json.dumps(manifest))


def with_setting(setting: str, value: Any) -> Callable[[bytes], bytes]:
    """Changes a setting in lineage.json or in record.json."""

    def change(content: bytes) -> bytes:
        values = json.loads(content)
        *above, last = setting.split(".")
        section = values["config"]
        for name in above:
            section = section[name]
        section[last] = value
        return json.dumps(values).encode()

    return change


@pytest.mark.parametrize("setting", HARMFUL)
@pytest.mark.parametrize("path", ["lineage.json", "iter_00/record.json"])
def test_settings_that_can_do_more_than_compute_are_rejected_by_name(setting, path, store, tmp_path):
    """Also those of an iteration's record, by which `spin export` loads its model."""
    forge(tmp_path, path, with_setting(setting, HARMFUL[setting]))
    with pytest.raises(ConfigError, match="if you trust the people who pushed it, pull it with --trust") as refused:
        pull(tmp_path / "mine", "tale", store)
    assert f"{setting}" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "mine").exists(), "nothing was brought"


def test_the_command_line_says_what_is_trusted(store, tmp_path):
    forge(tmp_path, "lineage.json", with_setting("model.trust_remote_code", True))
    forge(tmp_path, "iter_00/model/own.py", lambda _: b"raise SystemExit('this code ran')\n")
    words = ["pull", "tale", store, "--runs", str(tmp_path / "mine")]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    named = "model.trust_remote_code=True (runs Python files that come with the model); Python files in it: 1"
    assert named in refused.stderr
    done = CliRunner().invoke(main, [*words, "--trust"])
    assert done.exit_code == 0, done.stderr
    assert done.stderr == f"warning  trusted: {named}\n"
    assert find_lineage(tmp_path / "mine", "tale").config.model.trust_remote_code


def test_a_lineage_of_ones_own_comes_back_from_the_store_that_it_is_pushed_to(tmp_path):
    url = f"file://{tmp_path}/store"
    lineage = build_lineage(tmp_path / "lost", sets=[f"push.url={url}"])
    push(lineage, lineage.config.push)
    assert pull(tmp_path / "mine", "tale", f"{url}/").files > 10
    shutil.copytree(tmp_path / "store", tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"push\.url=file://"):
        pull(tmp_path / "other", "tale", f"file://{tmp_path}/elsewhere")


def test_settings_that_this_version_cannot_read_are_not_trusted(store, tmp_path):
    forge(tmp_path, "lineage.json", with_setting("model.trust_remote_code", {"of": "a later version"}))
    with pytest.raises(ConfigError, match=r"the settings in lineage\.json cannot be read by this version"):
        pull(tmp_path / "mine", "tale", store)


@pytest.mark.parametrize(
    "path",
    [
        *("iter_00/jobs/train.json", "iter_01/.train.partial/checkpoint/state.safetensors", ".lock", "notes.txt"),
        *("iter_00/train/jobs/train.json", "iter_07/generations/shard.parquet", "jobs/manifest.json", "own.py"),
        *(".prefect/password", ".git/config", "iter_00/manifest.json", "iter_00/model/.hidden", "iter_00//record.json"),
        *("iter_00/record.json/x", ".sft/x", ".sft/.hidden/model/manifest.json", "metrics/a/b.json", "nights/.x.json"),
        *("../tale/lineage.json", "/etc/passwd", "iter_00/model/../../../x"),
    ],
)
def test_a_copy_brings_no_files_that_no_push_writes(path, store, tmp_path):
    """Such as jobs and unfinished work, with which a run, or other nodes, would go on."""
    forge(tmp_path, "new", lambda _: b"{}", name=path)
    with pytest.raises(DamagedArtifact, match="do not trust this copy"):
        pull(tmp_path / "mine", "tale", store)
    assert not (tmp_path / "mine").exists()


def test_a_copy_names_no_file_outside_itself(store, tmp_path):
    copy = tmp_path / "store" / "tale"
    manifest = json.loads((copy / MANIFEST).read_text())
    (tmp_path / "secret").write_text("key")
    digest = identity.digest_file(tmp_path / "secret")
    manifest["files"]["iter_00/report.md"] = {"sha256": digest, "bytes": 3, "at": "../../secret"}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtifact, match="outside of the lineage"):
        pull(tmp_path / "mine", "tale", store)


def test_every_file_that_a_push_writes_is_expected(tmp_path):
    lineage = build_lineage(tmp_path)
    for name in ("nights", "metrics"):
        (lineage.root / name).mkdir()
        (lineage.root / name / "1.json").write_text("{}")
    files = files_of(lineage)
    assert {path.split("/")[0] for path in files} >= {".sft", "iter_00", "lineage.json", "nights", "metrics"}
    assert [path for path in files if not is_expected(path, files)] == []


def test_settings_that_forms_may_not_change_are_risks_of_pulled_lineages_too():
    assert set(GUARDED) <= set(RISKS)
    assert {name.removesuffix(".address") for name in RISKS} == set(HARMFUL)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            ("model.trust_remote_code", False),
            ("generate.speed.ray", None),
            ("generate.speed.ray", {"address": "auto"}),
        ),
        *(("evaluate.judge.base_url", "http://127.0.0.1:8000/v1"), ("evaluate.judge.base_url", "")),
        *(("evaluate.judge.api_key_env", "OPENAI_API_KEY"), ("metrics.sinks", ["tensorboard"]), ("metrics.sinks", [])),
    ],
)
def test_harmless_settings_need_no_trust(setting, value):
    config: Any = value
    for name in reversed(setting.split(".")):
        config = {name: config}
    assert value_of(config, setting) == value
    assert risks(config) == []
