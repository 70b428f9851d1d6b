"""Lineages that are brought back from their copies."""

import json
import shutil

import pytest

from spin_core.config.push import PushConfig
from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.lineage import phase_jobs
from spin_core.lineage.find import find_lineage
from spin_core.lineage.start import start_lineage
from spin_core.lineage.verify import verify
from spin_core.remote.manifest import MANIFEST
from spin_core.remote.pull import pull
from spin_core.remote.push import push
from tests.support.lineages.copies import contents


def test_a_pulled_lineage_has_the_pushed_bytes_and_can_be_continued(lineage, tmp_path):
    url = f"memory://{tmp_path.name}"
    pushed = push(lineage, PushConfig(url=url))
    assert pushed.moved == pushed.files - 1 > 30, "the timings of both trainings are equal, and stored once"
    pulled = pull(tmp_path / "elsewhere", "tale", url)
    assert pulled.moved == pushed.files
    pulled_lineage = find_lineage(tmp_path / "elsewhere", "tale")
    assert contents(pulled_lineage) == contents(lineage)
    problems, folders = verify(pulled_lineage)
    assert not problems
    assert folders == len(pulled_lineage.published()) + 1
    assert pulled_lineage.records()[0].opponent.path.is_relative_to(tmp_path / "elsewhere" / ".sft")
    assert (phase_jobs.base_job(pulled_lineage).output / "model.safetensors").exists()
    assert start_lineage(pulled_lineage.runs, "tale", pulled_lineage.config).config == lineage.config


def test_a_pull_reports_damaged_files_and_the_next_one_downloads_only_those(lineage, store, tmp_path):
    push(lineage, store)
    weights, gone = (tmp_path / "store/tale" / f"iter_0{t}/model/model.safetensors" for t in range(2))
    whole = weights.read_bytes()
    weights.write_bytes(bytes(len(whole)))
    gone.unlink()
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(DamagedArtifact, match=r"iter_00/model/.*\(nor do 1 more\).*spin push tale file://\S+ --again"):
        pull(elsewhere, "tale", store.url)
    with pytest.raises(ConfigError, match="there is no lineage"):
        find_lineage(elsewhere, "tale")
    assert not list(elsewhere.rglob("*.pulled"))
    assert push(lineage, store).moved == 0, "files that the manifest names are assumed to be there"
    assert push(lineage, store, again=True).moved == 2
    assert pull(elsewhere, "tale", store.url).moved == 3  # the two, and the configuration
    assert contents(find_lineage(elsewhere, "tale")) == contents(lineage)


def test_a_pull_neither_overwrites_a_lineage_nor_writes_outside_of_it(lineage, store, tmp_path):
    with pytest.raises(ConfigError, match="holds no lineage tale that was pushed"):
        pull(tmp_path / "elsewhere", "tale", store.url)
    push(lineage, store)
    with pytest.raises(ConfigError, match=r"is in .* already"):
        pull(lineage.runs, "tale", store.url)
    manifest = tmp_path / "store/tale" / MANIFEST
    values = json.loads(manifest.read_text())
    values["files"]["../../escaped"] = values["files"].pop("lineage.json")
    manifest.write_text(json.dumps(values))
    with pytest.raises(DamagedArtifact, match="outside of the lineage"):
        pull(tmp_path / "elsewhere", "tale", store.url)
    assert not (tmp_path / "escaped").exists()


def test_a_pull_next_to_another_theta_0_of_the_same_settings_is_rejected(lineage, store, tmp_path):
    push(lineage, store)
    shutil.copytree(lineage.runs / ".sft", tmp_path / "elsewhere" / ".sft")
    (weights,) = (tmp_path / "elsewhere" / ".sft").rglob("model/model.safetensors")
    weights.write_bytes(b"trained on another machine")
    with pytest.raises(ConfigError, match="differs from what the lineage started from"):
        pull(tmp_path / "elsewhere", "tale", store.url)
