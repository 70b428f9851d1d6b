"""Loading models and tokenizers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from spin_core.config.model import ModelConfig
from spin_core.data.tokenizer import context_length, load_tokenizer
from spin_core.errors import ModelError
from spin_core.models.files import save_model
from spin_core.models.loading import load_model
from spin_core.runtime.devices import device_of
from tests.support.helpers import data_folder

CPU = ModelConfig(device="cpu")


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def test_a_saved_model_is_the_model_that_was_loaded(tiny_model, tmp_path):
    model, tokenizer = load_model(tiny_model, CPU), load_tokenizer(tiny_model, CPU)
    save_model(model, tokenizer, tmp_path / "saved")
    again = load_model(tmp_path / "saved", CPU)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert load_tokenizer(tmp_path / "saved", CPU)("a b\n")["input_ids"] == tokenizer("a b\n")["input_ids"]
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_tied_weights_are_not_missing():
    model = load_model(data_folder("models", "babyllama-105"), CPU)
    assert sum(weight.numel() for weight in model.parameters()) == 936_448


def test_a_model_is_loaded_for_use_in_the_configured_precision(tiny_model):
    model = load_model(tiny_model, ModelConfig(device="cpu", dtype="bfloat16"))
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_the_context_is_what_the_model_was_built_for(tiny_model):
    assert context_length(tiny_model, CPU) == 1024
    assert context_length(data_folder("models", "babyllama-105"), CPU) == 256


def test_a_context_that_the_configuration_lacks_is_unknown(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    assert context_length(copy, CPU) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_says_what_to_set():
    assert device_of(ModelConfig()) == torch.device("cpu")
    with pytest.raises(ModelError, match=r"torch sees no GPU: set model\.device to auto or cpu"):
        device_of(ModelConfig(device="cuda"))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere is not a folder: model\.path must name"):
        load_model(tmp_path / "nowhere", CPU)


def test_pickled_weights_are_not_read(copy):
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin\): convert them"):
        load_model(copy, CPU)


def test_damaged_weights_are_named(copy):
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(copy, CPU)


def test_missing_weights_are_not_made_up(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight: copy or fetch the model again"):
        load_model(copy, CPU)


def test_a_folder_without_a_tokenizer_says_what_to_set(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer that loads .*, or set model\.tokenizer"):
        load_tokenizer(copy, CPU)


def test_a_model_of_an_unknown_kind_is_named(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(ModelError, match=r"no config\.json of a model that transformers knows"):
        context_length(copy, CPU)
