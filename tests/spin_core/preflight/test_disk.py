"""Estimated disk against the files themselves."""

import dataclasses

import pytest

from spin_core.config.model import ModelConfig
from spin_core.config.train import TrainConfig
from spin_core.data.tokenizer import load_config
from spin_core.models.loading import load_model
from spin_core.models.logps import ResponseLogps
from spin_core.preflight import disk
from spin_core.preflight.sizes import Shape
from spin_core.training.checkpoint import save_checkpoint
from spin_core.training.optim import SingleDeviceStepper


def shape_of(folder) -> Shape:
    model = load_model(folder, ModelConfig())
    return Shape.of(load_config(folder, ModelConfig()), model.num_parameters(), "float32")


def test_disk_for_a_version_and_a_checkpoint_is_that_of_their_files(tiny_model, tmp_path):
    shape, config = shape_of(tiny_model), TrainConfig(save_every=10, keep_checkpoints=2)
    assert disk.model_disk(shape) == pytest.approx((tiny_model / "model.safetensors").stat().st_size, rel=0.1)
    model = load_model(tiny_model, ModelConfig())
    optimizer = SingleDeviceStepper(ResponseLogps(model), config)
    optimizer.backward(sum(weight.sum() for weight in model.parameters()), last=True)
    optimizer.step(1e-3)
    save_checkpoint(tmp_path / "step", optimizer.tensors(), {"step": 1})
    checkpoint = disk.checkpoint_disk(shape, config, steps=11)
    assert checkpoint == pytest.approx((tmp_path / "step" / "state-00000.safetensors").stat().st_size, rel=0.15)
    assert disk.checkpoint_disk(shape, config, steps=10) == 0, "none is kept of the last step"
    assert disk.checkpoint_disk(shape, config, steps=1000) == 3 * checkpoint, (
        "the next is written before the oldest goes"
    )
    chosen = config.model_copy(update={"keep_best": "loss", "evaluate_every": 5})
    assert disk.checkpoint_disk(shape, chosen, steps=1000) == 5 * checkpoint, "the best that is known, and a better one"
    assert disk.checkpoint_disk(shape, chosen, steps=5) == checkpoint
    adapted = dataclasses.replace(shape, adapter=shape.parameters)
    assert disk.checkpoint_disk(adapted, config, steps=10) == checkpoint, (
        "an adapter goes to the disk to be put together"
    )
