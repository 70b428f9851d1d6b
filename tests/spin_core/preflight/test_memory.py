"""Estimated memory against sums by hand, and against what autograd keeps."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from spin_core.config.model import ModelConfig
from spin_core.config.resolve import resolve
from spin_core.config.train import TrainConfig
from spin_core.data.sequences import Sequences
from spin_core.data.tokenizer import load_config
from spin_core.models.loading import load_model
from spin_core.models.logps import hidden_states
from spin_core.models.packing import padded_rows
from spin_core.preflight import disk, memory
from spin_core.preflight.sizes import Shape

SHAPE = Shape(
    parameters=1000, layers=2, hidden=8, intermediate=16, query_width=8, key_width=4, vocabulary=50, itemsize=4
)


def shape_of(folder) -> Shape:
    model = load_model(folder, ModelConfig())
    return Shape.of(load_config(folder, ModelConfig()), model.num_parameters(), "float32")


def test_memory_for_weights_by_hand():
    held = "weights, gradients and optimizer"
    small = {"micro_batch_tokens": 1, "batch_size": 1}
    bf16 = Shape(**{**vars(SHAPE), "itemsize": 2, "parameters": 10**9})
    fp32 = Shape(**{**vars(SHAPE), "parameters": 10**9})
    # Weights, gradient, one or two states; bfloat16 has masters as well.
    assert memory.training_memory(fp32, TrainConfig(**small), 10)[held] == (4 + 4 + 4) * 10**9
    assert memory.training_memory(fp32, TrainConfig(**small, optimizer="adamw"), 10)[held] == 16 * 10**9
    assert memory.training_memory(bf16, TrainConfig(**small), 10)[held] == (2 + 4 + 4 + 4) * 10**9
    # Four ranks: stage 1 shares out masters and states, 2 the gradients, 3 the weights.
    for stage, bytes_each in enumerate((2 + 6 + 8, 2 + 6 + 2, 2 + 1.5 + 2, 0.5 + 1.5 + 2)):
        ranks = TrainConfig(**small, speed={"ranks": 4, "deepspeed": f"zero{stage}"})
        assert memory.training_memory(bf16, ranks, 10)[held] == bytes_each * 10**9


def test_offloaded_tensors_are_not_counted_on_the_gpu_by_hand():
    key, small = "weights, gradients and optimizer", {"micro_batch_tokens": 1, "batch_size": 1}
    bf16 = Shape(**{**vars(SHAPE), "itemsize": 2, "parameters": 10**9})

    def parts(name: str, device: str = "cuda", ranks: int = 4) -> dict[str, float]:
        config = TrainConfig(**small, speed={"ranks": ranks, "deepspeed": name})
        return memory.training_memory(bf16, config, 10, device)

    # Weights; sums of gradients in float32 and a pass's in bfloat16, shared out; master and state of RMSprop, shared.
    assert parts("zero2")[key] == (2 + 6 / 4 + 8 / 4) * 10**9
    assert parts("zero2-offload")[key] == (2 + 2 / 4) * 10**9
    assert parts("zero2-offload", ranks=1)[key] == (2 + 2) * 10**9
    working = 2 * (10**9 - 50 * 8) / 2  # two layers are all that there are
    assert parts("zero3-offload")[key] == 2 * working + 2 / 4 * 10**9
    for name in ("zero2", "zero3"):
        assert parts(f"{name}-offload", "cpu") == parts(name, "cpu"), "to a CPU all is one memory"
    deep = dataclasses.replace(bf16, layers=100)
    config = TrainConfig(**small, speed={"ranks": 4, "deepspeed": "zero3-offload"})
    needed = memory.training_memory(deep, config, 10, "cuda")
    assert needed[key] == pytest.approx((2 / 50 + 2 / 4) * 10**9, rel=1e-3)
    assert sum(needed.values()) == 2 * 10**9, "the whole model is there before it is shared out"
    assert memory.offloaded_memory(deep, config) == 4 * (2 + 4 + 8) / 4 * 10**9
    assert memory.offloaded_memory(deep, TrainConfig(speed={"deepspeed": "zero2-offload"})) == (4 + 8) * 10**9
    assert memory.offloaded_memory(deep, TrainConfig()) == 0


def test_a_checkpoint_is_copied_from_gpus_and_from_what_deepspeed_divides():
    bf16 = Shape(**{**vars(SHAPE), "itemsize": 2, "parameters": 10**9})
    nodes = {"ranks": 4, "nodes": 2, "rendezvous": "first:29500"}
    one, two = TrainConfig(batch_size=1), TrainConfig(batch_size=1, speed=nodes)
    assert memory.checkpoint_memory(bf16, one, "cuda") == (4 + 4) * 10**9, "masters and one state"
    assert memory.checkpoint_memory(bf16, TrainConfig(optimizer="adamw"), "cuda") == (4 + 8) * 10**9
    assert memory.checkpoint_memory(bf16, two, "cuda") == memory.checkpoint_memory(bf16, two, "cpu") == 4 * 10**9
    assert memory.checkpoint_memory(bf16, one, "cpu") == 0, "written from where it is"
    assert memory.checkpoint_memory(dataclasses.replace(bf16, adapter=10**6), one, "cuda") == 8 * 10**6
    parts = memory.training_memory(bf16, two, 10, "cpu")
    assert parts["copies for a checkpoint, beyond these"] == 10**9 - parts["activations"] - parts["logits"]
    assert "copies for a checkpoint, beyond these" not in memory.training_memory(bf16, two, 10, "cuda")


def test_offloading_in_a_users_deepspeed_file_counts_as_deepspeed_reads_it(tmp_path):
    def offloads(**zero) -> dict[str, str]:
        file = tmp_path / "own.json"
        file.write_text(json.dumps({"zero_optimization": zero}))
        return memory.offloads(TrainConfig(speed={"deepspeed": str(file)}), SHAPE)

    assert offloads(stage=2, offload_optimizer={"device": "nvme"}) == {"optimizer": "nvme"}
    assert offloads(stage=2, offload_optimizer={"device": "none"}) == offloads(stage=1, offload_optimizer={}) == {}
    assert offloads(stage=2, offload_optimizer=None) == {}
    assert offloads(stage=2, offload_param={"device": "cpu"}) == {}, "weights are shared out in stage 3 alone"
    assert offloads(stage=3, offload_param={"device": "cpu"}) == {"param": "cpu"}
    assert memory.offloads(TrainConfig(), SHAPE) == {}


def test_the_opponent_is_a_second_model_where_it_is_scored_at_every_step():
    off = {"cached_scores": False}

    def second(shape: Shape = SHAPE, **fields) -> float:
        return memory.training_memory(shape, TrainConfig(**fields), 10).get("the opponent", 0)

    assert second(speed=off) == 4000
    assert second() == second(loss="sft", speed=off) == 0
    assert second(dataclasses.replace(SHAPE, adapter=10), speed=off) == 0, "the player holds it"


def test_activations_are_those_that_autograd_keeps(tiny_model):
    model = load_model(tiny_model, ModelConfig())
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = [np.arange(4, 60) for _ in range(8)]
    rows = padded_rows(Sequences.of(ids, ids), np.arange(8))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = hidden_states(model, rows)
    guess = memory.activations(shape_of(tiny_model), rows.input_ids_NT.numel(), recomputed=False)
    assert output.requires_grad
    assert 0.7 < guess / sum(kept.values()) < 1.4


def test_recomputed_activations_are_fewer():
    deep = Shape(**{**vars(SHAPE), "layers": 32})
    assert memory.activations(deep, 100, recomputed=True) < 0.2 * memory.activations(deep, 100, recomputed=False)


def test_keys_and_values_by_hand():
    config = resolve("demo", sets=["generate.batch_size=16", "generate.max_new_tokens=60"]).generate
    parts = memory.generation_memory(SHAPE, config, longest_prompt=40)
    # 16 rows, 100 columns and 64 to spare, 2 layers, keys and values of width 4 in float32.
    assert parts["keys and values"] == 16 * 164 * 2 * 2 * 4 * 4
    assert parts["weights"] == 4000


def test_an_adapter_needs_no_gradients_or_optimizer_state_of_frozen_weights(tiny_model):
    shape = Shape.of(load_config(tiny_model, ModelConfig()), 1_000_000, "bfloat16")
    config = TrainConfig(optimizer="adamw")
    key = "weights, gradients and optimizer"
    whole = memory.training_memory(shape, config, 8)[key]
    adapted = memory.training_memory(dataclasses.replace(shape, adapter=1000), config, 8)[key]
    assert whole == 1_000_000 * (2 + 4 + 4 + 8), "by hand: weight, master, its gradient, states"
    assert adapted == 1_000_000 * 2 + 1000 * (4 + 4 + 8)
    assert disk.checkpoint_disk(dataclasses.replace(shape, adapter=1000), config, 1000) == 3 * 12_000
