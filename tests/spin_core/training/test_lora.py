"""Adapters in training: where they go, what they add, and what they learn."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from spin_core.config.train import LoraConfig
from spin_core.errors import ConfigError, Stopped
from spin_core.models.adapters import read_adapters
from spin_core.models.loading import load_model
from spin_core.runtime import progress as runtime_progress
from spin_core.store import artifacts
from spin_core.store.records import (
    TrainRun,
)
from spin_core.store.training_log import METRICS, read_rows
from spin_core.training import lora
from spin_core.training.checkpoint import CHECKPOINTS, latest_checkpoint
from spin_core.training.losses import LOG_2
from tests.support.lineages.small_jobs import random_train_job, run_job, start_job
from tests.support.models.adapted import (
    BF16,
    CPU,
    assert_same_logits,
    gpt2,
    logits,
    publish_adapter,
    with_trained_adapter,
)

__all__ = ["gpt2"]


@pytest.mark.parametrize("fixture", ["tiny_model", "gpt2"])
@pytest.mark.parametrize("config", [CPU, BF16], ids=lambda config: config.dtype)
def test_the_player_starts_as_its_opponent_and_trains_only_its_adapter(request, fixture, config):
    folder = request.getfixturevalue(fixture)
    model = load_model(folder, config)
    lora.attach(model, LoraConfig(rank=2, dropout=0.5), seed=0)
    assert torch.equal(logits(model), logits(load_model(folder, config)))
    trains = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trains
    assert all(".lora_" in name and weight.dtype == model.dtype for name, weight in trains.items())
    assert not model.training


def test_the_initial_adapter_depends_only_on_the_seed(tiny_model):
    def first_weights(seed):
        torch.rand(3)
        model = load_model(tiny_model, CPU)
        lora.attach(model, LoraConfig(), seed)
        return torch.cat([weight.flatten() for weight in model.parameters() if weight.requires_grad])

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


def test_by_default_all_linear_layers_but_the_output_get_an_adapter(tiny_model, gpt2):
    llama = load_model(tiny_model, CPU)
    names = lora.adapted_layers(llama, ())
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    assert lora.adapted_layers(llama, ("v_proj", "layers.1.mlp.up_proj")) == [
        "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj",
    ]  # fmt: skip
    assert lora.adapted_layers(llama, ("lm_head",)) == ["lm_head"]
    assert len(lora.adapted_layers(load_model(gpt2, CPU), ())) == 2 * 4


def test_an_unknown_target_is_an_error_that_lists_the_layers(tiny_model):
    with pytest.raises(
        ConfigError,
        match=r"names 'query', and LlamaForCausalLM has no such linear layer: choose among q_proj, k_proj, v_proj, "
        r"o_proj, gate_proj, up_proj, down_proj, lm_head$",
    ):
        lora.adapted_layers(load_model(tiny_model, CPU), ("q_proj", "query"))


def test_an_output_layer_that_is_tied_to_the_embeddings_takes_no_adapter(gpt2):
    with pytest.raises(ConfigError, match="lm_head, which shares its weights with the embeddings"):
        lora.adapted_layers(load_model(gpt2, CPU), ("c_attn", "lm_head"))


def test_dropout_is_active_only_inside_its_context_and_depends_on_the_step(tiny_model):
    model, _, _ = with_trained_adapter(tiny_model, dropout=0.5)
    still = logits(model)

    def dropped(*at):
        with lora.dropout(model, LoraConfig(dropout=0.5), *at):
            return logits(model)

    first = dropped(0, 3)
    assert not torch.equal(first, still)
    torch.rand(5)
    assert torch.equal(dropped(0, 3), first)
    assert not any(torch.equal(dropped(*at), first) for at in ((0, 4), (1, 3), (0, 3, 1)))
    assert torch.equal(logits(model), still)


def test_a_detached_adapter_leaves_the_opponent(tiny_model):
    model, _, _ = with_trained_adapter(tiny_model)
    with lora.detached(model):
        assert torch.equal(logits(model), logits(load_model(tiny_model, CPU)))
    assert not torch.equal(logits(model), logits(load_model(tiny_model, CPU)))
    assert sum(weight.requires_grad for weight in model.parameters()) == 2 * 2 * 7


def test_supervised_fine_tuning_merges_its_adapter_so_that_theta_0_is_plain(tmp_path, tiny_model):
    publish_adapter(tmp_path / "v0", tiny_model, -1, across="stack")
    AutoModelForCausalLM.from_pretrained(tmp_path / "v0")


@pytest.mark.parametrize("fixture", ["tiny_model", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": True},
        {"speed": {"packing": False}},
        {"speed": {"cached_scores": False}},
        {"lora": {"rank": 4, "dropout": 0.1}, "gradient_checkpointing": True, "micro_batch_tokens": 64},
        {"lora": {"rank": 4, "across": "stack"}},
    ],
    ids=["plain", "recomputed", "padded", "scored-again", "dropout", "stack"],
)
def test_an_adapter_learns_from_a_first_loss_of_log_2(request, tmp_path, fixture, settings):
    folder = request.getfixturevalue(fixture)
    job = random_train_job(
        tmp_path, folder, **{"lora": {"rank": 4}, "epochs": 8, "learning_rate": 2e-2, "beta": 2.0, **settings}
    )
    record = run_job(job)
    assert record.first_loss == pytest.approx(LOG_2, abs=1e-5)
    losses = [row["loss"] for row in read_rows(job.output / METRICS)]
    assert sum(losses[-6:]) / 6 < 0.6, "the last two epochs; dropout makes a single step noisy"
    assert artifacts.verify(job.weights) == []
    assert not torch.allclose(logits(load_model(job.weights, CPU)), logits(load_model(folder, CPU)), atol=1e-2)


def test_recomputing_uses_the_dropout_of_the_forward_pass(tmp_path, tiny_model):
    settings = {"lora": {"rank": 4, "dropout": 0.5}, "epochs": 4, "learning_rate": 2e-2}
    losses = [
        run_job(random_train_job(tmp_path / str(again), tiny_model, **settings, gradient_checkpointing=again)).metrics[
            "loss"
        ]
        for again in (False, True)
    ]
    still = run_job(random_train_job(tmp_path / "still", tiny_model, **{**settings, "lora": {"rank": 4}})).metrics[
        "loss"
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(still, rel=1e-2)


def test_scoring_the_opponent_at_every_step_skips_the_adapter(tmp_path, tiny_model):
    settings = {"lora": {"rank": 4}, "epochs": 4, "learning_rate": 2e-3}
    cached, rescored = (
        run_job(random_train_job(tmp_path / str(kept), tiny_model, **settings, speed={"cached_scores": kept}))
        for kept in (True, False)
    )
    assert rescored.metrics == pytest.approx(cached.metrics, rel=5e-3, abs=1e-5)


def test_a_checkpoint_holds_only_the_adapter(tmp_path, tiny_model):
    job, progress = random_train_job(tmp_path, tiny_model, lora={"rank": 2}), runtime_progress.Progress()
    progress.stop()
    with pytest.raises(Stopped):
        run_job(job, progress)
    _, tensors = latest_checkpoint(tmp_path / ".train.partial" / CHECKPOINTS)
    names = [name for name in tensors if not name.startswith("random/")]
    assert {name.partition("/")[0] for name in names} == {"weight", "square_avg", "step"}
    assert all(".lora_" in name for name in names)
    assert sum(name.startswith("weight/") for name in names) == 2 * 2 * 7


def test_bfloat16_adapters_move_by_steps_that_bfloat16_would_lose(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, BF16, lora={"rank": 2}, learning_rate=5e-7, epochs=2)
    run_job(job)
    (adapter,) = read_adapters(job.weights)
    b = adapter.factors["model.layers.0.mlp.up_proj"][1]
    assert 0 < b.abs().max() < 1e-4
    a = adapter.factors["model.layers.0.mlp.up_proj"][0]
    assert not torch.equal(a, a.to(torch.bfloat16).float()), "its float32 masters are what is published"


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_two_ranks_train_the_adapter_that_one_trains(tmp_path, tiny_model, deepspeed):
    pytest.importorskip("deepspeed")
    settings = {
        "lora": {"rank": 2, "across": "stack"}, "steps": 6, "optimizer": "adamw", "learning_rate": 1e-3, "beta": 1.0,
        "held_out": 0.2, "evaluate_every": 2, "keep_best": "loss", "save_every": 2,
    }  # fmt: skip
    on_one = random_train_job(tmp_path / "one", tiny_model, **settings)
    on_two = random_train_job(tmp_path / "two", tiny_model, **settings, speed={"ranks": 2, "deepspeed": deepspeed})
    want = run_job(on_one)
    process = start_job(on_two, tmp_path / "log")
    process.communicate(timeout=240)
    assert process.returncode == 0, (tmp_path / "log" / "stderr.txt").read_text()
    record = artifacts.read_record(on_two.output, TrainRun)
    assert record.published == want.published
    assert record.metrics == pytest.approx(want.metrics, rel=1e-3, abs=1e-4)
    assert record.held_out == pytest.approx(want.held_out, rel=1e-3, abs=1e-4)
    assert_same_logits(load_model(on_two.weights, CPU), load_model(on_one.weights, CPU), 1e-4)
