"""The machines and models that `spin check --on` knows."""

import pytest

from spin_core.config.model import ModelConfig
from spin_core.config.recipes import RECIPES
from spin_core.errors import ConfigError
from spin_core.preflight.machines import profiles
from spin_core.preflight.machines.profiles import Gpu, machine_of, shape_of_known


@pytest.mark.parametrize("text", ["8xH100", "8 x h100", "8×H100", "8*H100"])
def test_a_machine_is_a_number_and_a_gpu(text):
    machine = machine_of(text)
    assert (machine.each, machine.gpus, machine.gpu.name) == (8, 8, "H100 80 GB")


def test_one_gpu_needs_no_number_and_nodes_multiply():
    assert machine_of("L4").gpus == 1
    two = machine_of("8xA100-80GB", nodes=2)
    assert two.gpus == 16
    assert two.link == 8 * two.gpu.network < machine_of("8xa100 80gb").link
    assert machine_of("2xL40S", nodes=2).link == machine_of("2xL40S").link / 32 * 25


@pytest.mark.parametrize("text", ["8xB200", "", "x", "0xH100", "99999xH100", "H100x8", "8xH100\n8xH100"])
def test_another_machine_is_an_error_that_names_those_that_are_known(text):
    with pytest.raises(ConfigError, match=r"give a number and a GPU, as 8xH100; GPUs are H200, H100, A100-80GB"):
        machine_of(text)


def test_every_profile_has_a_source_and_plausible_figures():
    for values in profiles._read("gpus.toml").values():
        gpu = Gpu(**values)
        assert len(gpu.source) > 40
        assert 10e9 < gpu.memory < 1e12
        assert 0.2e12 < gpu.bandwidth < 10e12
        assert gpu.float32 < gpu.bfloat16 < 3e15 or gpu.bfloat16 == 0
        assert gpu.network <= gpu.link


def test_the_models_of_the_recipes_are_known_with_the_weights_that_their_sizes_make():
    names = {values["model"]["path"] for values in RECIPES.values() if "model" in values}
    for name in {name for name in names if "$" not in name}:
        shape = shape_of_known(ModelConfig(path=name, dtype="bfloat16"))
        assert shape is not None, name
        layer = 2 * shape.hidden * (shape.query_width + shape.key_width) + 3 * shape.hidden * shape.intermediate
        norms = (2 * shape.layers + 1) * shape.hidden
        embeddings = shape.vocabulary * shape.hidden
        whole = [shape.layers * layer + norms + matrices * embeddings for matrices in (1, 2)]
        assert shape.parameters in whole, "the output projection is the embedding, or a matrix of its own"
    assert shape_of_known(ModelConfig(path="someone/else")) is None
