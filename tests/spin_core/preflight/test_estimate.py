"""What `spin check` reckons with: estimates against sums by hand, and against the things themselves."""

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
from spin_core.models.logps import ResponseLogps, hidden_states
from spin_core.models.packing import padded_rows
from spin_core.preflight import data, estimate, measure, resources
from spin_core.preflight.estimate import Shape, Speed, Texts
from spin_core.preflight.findings import Looks
from spin_core.training.checkpoint import save_checkpoint
from spin_core.training.optim import SingleDevice

SHAPE = Shape(
    parameters=1000, layers=2, hidden=8, intermediate=16, query_width=8, key_width=4, vocabulary=50, itemsize=4
)
TEXTS = Texts(prompts=100, held_out=10, prompt_tokens=20, response_tokens=30, longest_prompt=40, longest=80)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """The device is measured in an instant: no test here depends on its speed."""
    monkeypatch.setattr(measure, "TRIED_SECONDS", 0.005)


def shape_of(folder) -> Shape:
    model = load_model(folder, ModelConfig())
    return Shape.of(load_config(folder, ModelConfig()), model.num_parameters(), "float32")


def test_a_pass_holds_the_budget_a_batch_or_a_pair():
    longest = 100
    assert estimate.tokens_in_a_pass(TrainConfig(micro_batch_tokens=4096, batch_size=64), longest) == 4096
    assert estimate.tokens_in_a_pass(TrainConfig(micro_batch_tokens=4096, batch_size=4), longest) == 800
    assert estimate.tokens_in_a_pass(TrainConfig(micro_batch_tokens=10, batch_size=4), longest) == 200
    assert estimate.tokens_in_a_pass(TrainConfig(micro_batch_tokens=10, batch_size=4, loss="sft"), longest) == 100


def test_memory_for_weights_by_hand():
    held = "weights, gradients and optimizer"
    small = {"micro_batch_tokens": 1, "batch_size": 1}
    bf16 = Shape(**{**vars(SHAPE), "itemsize": 2, "parameters": 10**9})
    fp32 = Shape(**{**vars(SHAPE), "parameters": 10**9})
    # Weights, gradient, one or two states; bfloat16 has masters as well.
    assert estimate.training_memory(fp32, TrainConfig(**small), 10)[held] == (4 + 4 + 4) * 10**9
    assert estimate.training_memory(fp32, TrainConfig(**small, optimizer="adamw"), 10)[held] == 16 * 10**9
    assert estimate.training_memory(bf16, TrainConfig(**small), 10)[held] == (2 + 4 + 4 + 4) * 10**9
    # Four ranks: stage 1 shares out masters and states, 2 the gradients, 3 the weights.
    for stage, bytes_each in enumerate((2 + 6 + 8, 2 + 6 + 2, 2 + 1.5 + 2, 0.5 + 1.5 + 2)):
        ranks = TrainConfig(**small, speed={"ranks": 4, "deepspeed": f"zero{stage}"})
        assert estimate.training_memory(bf16, ranks, 10)[held] == bytes_each * 10**9


def test_what_is_offloaded_is_not_on_the_gpu_by_hand():
    key, small = "weights, gradients and optimizer", {"micro_batch_tokens": 1, "batch_size": 1}
    bf16 = Shape(**{**vars(SHAPE), "itemsize": 2, "parameters": 10**9})

    def parts(name: str, device: str = "cuda", ranks: int = 4) -> dict[str, float]:
        config = TrainConfig(**small, speed={"ranks": ranks, "deepspeed": name})
        return estimate.training_memory(bf16, config, 10, device)

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
    found = estimate.training_memory(deep, config, 10, "cuda")
    assert found[key] == pytest.approx((2 / 50 + 2 / 4) * 10**9, rel=1e-3)
    assert sum(found.values()) == 2 * 10**9, "the whole model is there before it is shared out"
    assert estimate.offloaded_memory(deep, config) == 4 * (2 + 4 + 8) / 4 * 10**9
    assert estimate.offloaded_memory(deep, TrainConfig(speed={"deepspeed": "zero2-offload"})) == (4 + 8) * 10**9
    assert estimate.offloaded_memory(deep, TrainConfig()) == 0


def test_what_a_file_of_ones_own_offloads_counts_as_deepspeed_reads_it(tmp_path):
    def offloads(**zero) -> dict[str, str]:
        file = tmp_path / "own.json"
        file.write_text(json.dumps({"zero_optimization": zero}))
        return estimate.offloads(TrainConfig(speed={"deepspeed": str(file)}), SHAPE)

    assert offloads(stage=2, offload_optimizer={"device": "nvme"}) == {"optimizer": "nvme"}
    assert offloads(stage=2, offload_optimizer={"device": "none"}) == offloads(stage=1, offload_optimizer={}) == {}
    assert offloads(stage=2, offload_optimizer=None) == {}
    assert offloads(stage=2, offload_param={"device": "cpu"}) == {}, "weights are shared out in stage 3 alone"
    assert offloads(stage=3, offload_param={"device": "cpu"}) == {"param": "cpu"}
    assert estimate.offloads(TrainConfig(), SHAPE) == {}


def test_the_opponent_is_a_second_model_where_it_is_scored_at_every_step():
    off = {"cached_scores": False}

    def second(shape: Shape = SHAPE, **fields) -> float:
        return estimate.training_memory(shape, TrainConfig(**fields), 10).get("the opponent", 0)

    assert second(speed=off) == 4000
    assert second() == second(loss="sft", speed=off) == 0
    assert second(dataclasses.replace(SHAPE, adapter=10), speed=off) == 0, "the player holds it"


@pytest.mark.parametrize(
    ("sets", "cure"),
    [
        ((), "zero2-offload"),
        (("train.speed.deepspeed=zero2-offload",), None),
        (("train.speed.ranks=2", "train.speed.deepspeed=zero3"), "zero3-offload"),
        (("train.speed.ranks=2", "train.speed.deepspeed=zero3-offload"), None),
    ],
)
def test_offloading_is_a_cure_where_it_would_help(monkeypatch, sets, cure):
    from spin_core.runtime import devices

    monkeypatch.setattr(devices, "device_of", lambda _model: torch.device("cuda"))
    monkeypatch.setattr(resources, "free_memory", lambda device: (10**10 if device == "cuda" else 10**12, "there"))
    shape = Shape(**{**vars(SHAPE), "itemsize": 2, "parameters": 10**10, "layers": 40})
    looks = Looks()
    config = resolve("demo", sets=["generate.engine=vllm", "train.speed.cached_scores=false", *sets])
    resources.look_at_memory(looks, config, shape, TEXTS)
    said = looks.findings[0].text
    assert [name for name in ("zero2-offload", "zero3-offload") if f"train.speed.deepspeed to {name}" in said] == (
        [cure] if cure else []
    )
    assert "set train.speed.cached_scores or " in said
    assert len(looks.findings) == (1 if cure else 2)
    if not cure:
        assert looks.findings[1].text.startswith("training offloads about ")


def test_a_shared_prompt_is_counted_once():
    def tokens(**fields) -> float:
        return estimate.tokens_of_item(TEXTS, TrainConfig(**fields))

    assert tokens() == 20 + 2 * 30
    assert tokens(loss="t-spin") == 20 + 3 * 30
    assert tokens(loss="sft") == 20 + 30
    assert tokens(speed={"prefix_sharing": False}) == tokens(speed={"packing": False}) == 2 * (20 + 30)


def test_padding_is_what_rows_hold_beyond_their_sequences():
    config = TrainConfig(batch_size=4, micro_batch_tokens=10**6, loss="sft")
    assert data.padding([(5, 5)] * 10, config) == 1
    assert data.padding([(1, 1), (1, 2), (1, 3), (1, 8)], config) == 4 * 9 / (2 + 3 + 4 + 9)
    # Of a prompt's two responses, both rows are as long as the longer one.
    pairs = TrainConfig(batch_size=1, micro_batch_tokens=10**6)
    assert data.padding([(1, 1), (1, 9)], pairs) == 4 * 10 / (2 + 10 + 2 + 10)
    alike = TrainConfig(batch_size=64, micro_batch_tokens=100, loss="sft")
    assert 1 < data.padding([(1, n) for n in range(1, 200)], alike) < 1.2, "rows of like length lie together"


def test_padding_is_counted_for_rows_that_are_padded_alone():
    padded = dataclasses.replace(TEXTS, padding=1.5)
    assert estimate.tokens_of_item(padded, TrainConfig()) == 20 + 2 * 30
    assert estimate.tokens_of_item(padded, TrainConfig(speed={"prefix_sharing": False})) == 2 * (20 + 30)
    assert estimate.tokens_of_item(padded, TrainConfig(speed={"packing": False})) == 1.5 * 2 * (20 + 30)


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
    guess = estimate.activations(shape_of(tiny_model), rows.input_ids_NT.numel(), recomputed=False)
    assert output.requires_grad
    assert 0.7 < guess / sum(kept.values()) < 1.4


def test_recomputed_activations_are_fewer():
    deep = Shape(**{**vars(SHAPE), "layers": 32})
    assert estimate.activations(deep, 100, recomputed=True) < 0.2 * estimate.activations(deep, 100, recomputed=False)


def test_disk_for_a_version_and_a_checkpoint_is_that_of_their_files(tiny_model, tmp_path):
    shape, config = shape_of(tiny_model), TrainConfig(save_every=10, keep_checkpoints=2)
    assert estimate.model_disk(shape) == pytest.approx((tiny_model / "model.safetensors").stat().st_size, rel=0.1)
    model = load_model(tiny_model, ModelConfig())
    optimizer = SingleDevice(ResponseLogps(model), config)
    optimizer.backward(sum(weight.sum() for weight in model.parameters()), last=True)
    optimizer.step(1e-3)
    save_checkpoint(tmp_path / "step", optimizer.tensors(), {"step": 1})
    one = estimate.checkpoint_disk(shape, config, steps=11)
    assert one == pytest.approx((tmp_path / "step" / "state-00000.safetensors").stat().st_size, rel=0.15)
    assert estimate.checkpoint_disk(shape, config, steps=10) == 0, "none is kept of the last step"
    assert estimate.checkpoint_disk(shape, config, steps=1000) == 3 * one, "the next is written before the oldest goes"
    chosen = config.model_copy(update={"keep_best": "loss", "evaluate_every": 5})
    assert estimate.checkpoint_disk(shape, chosen, steps=1000) == 5 * one, "the best that is known, and a better one"
    assert estimate.checkpoint_disk(shape, chosen, steps=5) == one
    adapted = dataclasses.replace(shape, adapter=shape.parameters)
    assert estimate.checkpoint_disk(adapted, config, steps=10) == one, "an adapter goes to the disk to be put together"


def test_keys_and_values_by_hand():
    config = resolve("demo", sets=["generate.batch_size=16", "generate.max_new_tokens=60"]).generate
    parts = estimate.generation_memory(SHAPE, config, longest_prompt=40)
    # 16 rows, 100 columns and 64 to spare, 2 layers, keys and values of width 4 in float32.
    assert parts["keys and values"] == 16 * 164 * 2 * 2 * 4 * 4
    assert parts["weights"] == 4000


def test_pairs_and_steps_grow_where_iterations_are_mixed():
    config = resolve("demo", sets=["pairs.mix_previous=true", "train.batch_size=32", "train.epochs=[1, 2]"])
    assert [estimate.pairs_in(TEXTS, config, t) for t in range(3)] == [100, 200, 200]
    assert [estimate.steps_in(TEXTS, config, t) for t in range(3)] == [4, 14, 14]
    for chosen, pairs in (("all", 300), ("first", 100)):
        config = resolve("demo", sets=["generate.answers=3", f"pairs.answers={chosen}"])
        assert estimate.pairs_in(TEXTS, config, 0) == pairs


def test_time_grows_with_epochs_and_model_and_falls_with_speed():
    speed = Speed(batch_flops=1e9, row_flops=1e8, bandwidth=1e9, start=1e-6)
    faster = Speed(batch_flops=1e10, row_flops=1e9, bandwidth=1e10, start=1e-7)
    config = resolve("demo", sets=["train.epochs=[1, 2]", "pairs.mix_previous=false"])
    first, second = (estimate.iteration_seconds(SHAPE, TEXTS, config, t, speed) for t in range(2))
    assert second["training"] == pytest.approx(2 * first["training"])
    assert first["training"] == pytest.approx(
        10 * estimate.iteration_seconds(SHAPE, TEXTS, config, 0, faster)["training"]
    )
    larger = Shape(**{**vars(SHAPE), "parameters": 10**7})
    assert estimate.iteration_seconds(larger, TEXTS, config, 0, speed)["scoring"] > 10 * first["scoring"]
    assert estimate.other_seconds(SHAPE, TEXTS, config, speed) > 0


def test_ranks_with_a_device_each_share_the_scoring_of_one_node():
    def seconds(own_device: bool, *sets: str) -> float:
        speed = Speed(batch_flops=1e9, row_flops=1e8, bandwidth=1e9, start=1e-6, own_device=own_device)
        return estimate.iteration_seconds(SHAPE, TEXTS, resolve("demo", sets=sets), 0, speed)["scoring"]

    ranks = ("train.speed.ranks=4", "train.speed.nodes=2", "train.speed.rendezvous=host:1")
    assert seconds(True, *ranks) == pytest.approx(seconds(True) / 4)
    assert seconds(False, *ranks) == pytest.approx(seconds(False))


def test_a_device_is_measured_in_half_a_second_and_left_as_it_was():
    threads = torch.get_num_threads()
    speed = measure.measure(SHAPE, resolve("demo"), TEXTS, torch.device("cpu"))
    assert speed.batch_flops > 1e6
    assert speed.row_flops > 1e5
    assert speed.bandwidth > 1e7
    assert 0 < speed.start < 0.01
    assert torch.get_num_threads() == threads


def test_shapes_are_read_from_other_families_too():
    from transformers import GPT2Config, LlamaConfig

    llama = LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, intermediate_size=100)
    assert Shape.of(llama, 1, "bfloat16").key_width == 16
    assert Shape.of(llama, 1, "bfloat16").itemsize == 2
    gpt2 = Shape.of(GPT2Config(n_embd=64, n_head=4, n_layer=3), 1, "float32")
    assert (gpt2.hidden, gpt2.layers, gpt2.intermediate, gpt2.key_width) == (64, 3, 256, 64)
