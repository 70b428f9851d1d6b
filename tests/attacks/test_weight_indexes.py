"""Attacks by a model's index of weights that names files elsewhere: they would be read, and copied, as weights."""

import json
import shutil
from pathlib import Path

import pytest

from spin_core.config.model import ModelConfig
from spin_core.config.push import PushConfig
from spin_core.errors import ConfigError, DamagedArtifact, ModelError, SpinError
from spin_core.lineage.export import export_model
from spin_core.models.base_model import weight_files
from spin_core.models.loading import load_model
from spin_core.remote.manifest import MANIFEST
from spin_core.remote.pull import pull
from spin_core.remote.push import push
from spin_core.store import artifacts, identity
from spin_core.store.files import write_json
from spin_core.store.weights_index import WEIGHTS_INDEX, indexed_files
from tests.support.lineages.small_lineage import build_lineage

NAMES = ["/etc/passwd.safetensors", "../other/model.safetensors", "sub/model.safetensors", "..", ".hidden.safetensors"]


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A model whose weights another folder has, and whose index can name them."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(tiny_model, tmp_path / "other")
    return folder


def name_all(folder: Path, name: object) -> None:
    """Write an index that names one file for all weights."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        (folder / WEIGHTS_INDEX).write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(file.keys(), name)})
        )


@pytest.mark.parametrize("name", [*NAMES, "{other}/model.safetensors"])
def test_no_weights_are_read_from_elsewhere(name, model, tmp_path):
    name_all(model, name.format(other=tmp_path / "other"))
    # Without this file, transformers follows the index.
    (model / "model.safetensors").rename(model / "unused.safetensors")
    for read in (
        lambda: load_model(model, ModelConfig(device="cpu")),
        lambda: weight_files(model),
        lambda: export_model(model, tmp_path / "out", "merged", ModelConfig(device="cpu")),
    ):
        with pytest.raises(ModelError, match=r"names .*, which is not the bare name"):
            read()
    assert not (tmp_path / "out").exists()


def test_an_index_of_files_in_its_folder_is_followed(model):
    name_all(model, "weights.safetensors")
    (model / "model.safetensors").rename(model / "weights.safetensors")
    load_model(model, ModelConfig(device="cpu"))
    assert (
        [path.name for path in weight_files(model)] == indexed_files(model / WEIGHTS_INDEX) == ["weights.safetensors"]
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_invalid_index_is_a_one_line_error(text, tmp_path):
    (tmp_path / WEIGHTS_INDEX).write_text(text)
    with pytest.raises(ModelError) as refused:
        indexed_files(tmp_path / WEIGHTS_INDEX)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["", "base/"])
def test_no_such_index_is_pushed_or_pulled(name, folder, tmp_path):
    lineage = build_lineage(tmp_path / "theirs")
    url = f"file://{tmp_path}/store"
    push(lineage, PushConfig(url=url))
    index = f"{folder}{WEIGHTS_INDEX}"
    path, content = f"iter_00/model/{index}", json.dumps({"weight_map": {"a": name}})

    copy = tmp_path / "store" / "tale"
    (copy / "forged").write_text(content)
    manifest = json.loads((copy / MANIFEST).read_text())
    entry = {"sha256": identity.digest_file(copy / "forged"), "bytes": len(content)}
    manifest["files"][path] = entry | {"at": "forged"}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtifact, match=f"iter_00/model/{index} names "):
        pull(tmp_path / "mine", "tale", url)
    assert not (tmp_path / "mine" / "tale" / path).exists()
    assert not (tmp_path / "mine" / "tale" / "lineage.json").exists(), "it is no lineage"

    version = lineage.iteration(0) / "model"
    (version / index).parent.mkdir(exist_ok=True)
    (version / index).write_text(content)
    values = artifacts.read_manifest(version)
    values["files"][index] = entry
    write_json(version / identity.MANIFEST, values)
    with pytest.raises(SpinError, match=f"iter_00/model/{index} names ") as refused:
        push(lineage, PushConfig(url=f"file://{tmp_path}/other"))
    assert not isinstance(refused.value, ConfigError)
    assert not (tmp_path / "other" / "tale" / path).exists()
