"""Adapters: where they go, what they add, and how versions with adapters are stored."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from flows.command_line.main import main
from spin_core.config.model import ModelConfig
from spin_core.config.resolve import resolve
from spin_core.config.train import LoraConfig
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DamagedArtifact, ModelError, Stopped
from spin_core.lineage import phase_jobs, suite_jobs
from spin_core.lineage.history import IterationArtifacts, record_iteration
from spin_core.lineage.start import start_lineage
from spin_core.models.adapters import combine_adapters, merge_adapters, read_adapters, write_adapter
from spin_core.models.files import check_safetensors, is_stacked
from spin_core.models.loading import load_model
from spin_core.phases import base, evaluate, generate, pairs, prompts, score, train
from spin_core.runtime import phase
from spin_core.runtime import progress as runtime_progress
from spin_core.store import artifacts, identity, lock
from spin_core.store.records import (
    EvalReport,
    GateDecision,
    GenerationBatch,
    ModelVersion,
    PairDataset,
    PromptSet,
    ScoredPairs,
    TrainRun,
)
from spin_core.store.training_log import METRICS, read_rows
from spin_core.training import lora
from spin_core.training.checkpoint import CHECKPOINTS, latest_checkpoint
from spin_core.training.losses import LOG_2
from tests.support.helpers import character_tokenizer
from tests.support.lineages.small_jobs import random_train_job, run_job, start_job

CPU = ModelConfig(device="cpu")
BF16 = ModelConfig(device="cpu", dtype="bfloat16")
IDS = torch.tensor([[5, 9, 40, 77, 12, 30]])


@pytest.fixture
def gpt2(tmp_path):
    """A GPT-2, whose layers keep their weights the other way round and whose output is tied to its embeddings."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path / "gpt2", character_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(folder, config=CPU, seed=0, **settings):
    """A model with an adapter that does something, what `attach` returned, and the tensors of a stepper."""
    settings = LoraConfig(**{"rank": 2, "alpha": 8.0, **settings})
    model = load_model(folder, config)
    adapter_config = lora.attach(model, settings, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model, adapter_config, {f"weight/{name}": weight.detach().float() for name, weight in weights.items()}


def publish(folder, start_job, t, config=CPU, **settings):
    """The version that iteration `t` makes of an adapter; the model as it was in training."""
    model, adapter_config, tensors = trained(start_job, config, seed=t, **settings)
    settings = LoraConfig(**{"rank": 2, "alpha": 8.0, **settings})
    lora.publish(
        folder, adapter=lora.trained_adapter(adapter_config, tensors), start=start_job, t=t, lora=settings, model=config
    )
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits.float()


def close(one, other, tolerance=1e-5):
    torch.testing.assert_close(logits(one), logits(other), atol=tolerance, rtol=0)


@pytest.mark.parametrize("fixture", ["tiny_model", "gpt2"])
@pytest.mark.parametrize("config", [CPU, BF16], ids=lambda config: config.dtype)
def test_the_player_starts_with_its_opponents_bits_and_trains_only_its_adapter(request, fixture, config):
    folder = request.getfixturevalue(fixture)
    model = load_model(folder, config)
    lora.attach(model, LoraConfig(rank=2, dropout=0.5), seed=0)
    assert torch.equal(logits(model), logits(load_model(folder, config)))
    trains = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trains
    assert all(".lora_" in name and weight.dtype == model.dtype for name, weight in trains.items())
    assert not model.training


def test_the_adapters_start_depends_only_on_the_seed(tiny_model):
    def start_job(seed):
        torch.rand(3)
        model = load_model(tiny_model, CPU)
        lora.attach(model, LoraConfig(), seed)
        return torch.cat([weight.flatten() for weight in model.parameters() if weight.requires_grad])

    assert torch.equal(start_job(1), start_job(1))
    assert not torch.equal(start_job(1), start_job(2))


def test_all_linear_layers_but_the_output_get_an_adapter_unless_targets_are_named(tiny_model, gpt2):
    llama = load_model(tiny_model, CPU)
    names = lora.adapted_layers(llama, ())
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    assert lora.adapted_layers(llama, ("v_proj", "layers.1.mlp.up_proj")) == [
        "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj",
    ]  # fmt: skip
    assert lora.adapted_layers(llama, ("lm_head",)) == ["lm_head"]
    assert len(lora.adapted_layers(load_model(gpt2, CPU), ())) == 2 * 4


def test_a_target_that_is_not_there_names_the_layers_that_are(tiny_model):
    with pytest.raises(
        ConfigError,
        match=r"names 'query', and LlamaForCausalLM has no such linear layer: choose among q_proj, k_proj, v_proj, "
        r"o_proj, gate_proj, up_proj, down_proj, lm_head$",
    ):
        lora.adapted_layers(load_model(tiny_model, CPU), ("q_proj", "query"))


def test_an_output_layer_that_is_tied_to_the_embeddings_takes_no_adapter(gpt2):
    with pytest.raises(ConfigError, match="lm_head, which shares its weights with the embeddings"):
        lora.adapted_layers(load_model(gpt2, CPU), ("c_attn", "lm_head"))


def test_dropout_is_on_only_inside_its_context_and_depends_on_the_step(tiny_model):
    model, _, _ = trained(tiny_model, dropout=0.5)
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
    model, _, _ = trained(tiny_model)
    with lora.detached(model):
        assert torch.equal(logits(model), logits(load_model(tiny_model, CPU)))
    assert not torch.equal(logits(model), logits(load_model(tiny_model, CPU)))
    assert sum(weight.requires_grad for weight in model.parameters()) == 2 * 2 * 7


@pytest.mark.parametrize("fixture", ["tiny_model", "gpt2"])
@pytest.mark.parametrize("across", ["merge", "stack"])
def test_a_published_version_has_the_logits_of_the_trained_player(request, tmp_path, fixture, across):
    start_job = request.getfixturevalue(fixture)
    player = publish(tmp_path / "v1", start_job, 0, across=across)
    assert not torch.allclose(logits(player), logits(load_model(start_job, CPU)), atol=1e-3)
    close(load_model(tmp_path / "v1", CPU), player)
    second = publish(tmp_path / "v2", tmp_path / "v1", 1, across=across)
    close(load_model(tmp_path / "v2", CPU), second)
    assert load_tokenizer(tmp_path / "v2", CPU).eos_token == "</s>"
    kept = sorted(path.name for path in (tmp_path / "v2" / "adapters").iterdir())
    assert kept == (["02"] if across == "merge" else ["01", "02"])


@pytest.mark.parametrize("across", ["merge", "stack"])
def test_peft_puts_the_adapter_on_the_version_that_it_was_trained_from(tmp_path, tiny_model, across):
    from peft import PeftModel

    publish(tmp_path / "v1", tiny_model, 0, across=across, targets=("q_proj", "down_proj"))
    player = publish(tmp_path / "v2", tmp_path / "v1", 1, across=across, targets=("q_proj", "down_proj"))
    close(PeftModel.from_pretrained(load_model(tmp_path / "v1", CPU), tmp_path / "v2" / "adapters" / "02"), player)
    config = json.loads((tmp_path / "v2" / "adapters" / "02" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] is None


def test_a_merged_version_is_a_plain_folder(tmp_path, tiny_model):
    player = publish(tmp_path / "v1", tiny_model, 0, BF16)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "v1", dtype=torch.bfloat16)
    assert torch.equal(logits(plain), logits(load_model(tmp_path / "v1", BF16)))
    close(plain, player, 0.02)
    assert set(load_file(tmp_path / "v1" / "model.safetensors")) == set(load_file(tiny_model / "model.safetensors"))


def test_merging_adds_in_float32_and_rounds_once(tmp_path, tiny_model):
    publish(tmp_path / "v1", tiny_model, 0, BF16)
    (adapter,) = read_adapters(tmp_path / "v1")
    name = "model.layers.0.mlp.up_proj"
    before = load_model(tiny_model, BF16).get_submodule(name).weight.float()
    a, b = adapter.factors[name]
    assert torch.equal(
        load_model(tmp_path / "v1", BF16).get_submodule(name).weight, (before + b @ a * 4.0).to(torch.bfloat16)
    )


def test_a_stack_never_changes_the_weights_it_started_with(tmp_path, tiny_model):
    start_job = shutil.copytree(tiny_model, tmp_path / "v0")
    (start_job / "manifest.json").write_text("{}")
    for t in range(3):
        publish(tmp_path / f"v{t + 1}", tmp_path / f"v{t}", t, BF16, across="stack")
    base = tmp_path / "v3" / "base" / "model.safetensors"
    assert base.samefile(start_job / "model.safetensors")
    assert not (tmp_path / "v3" / "manifest.json").exists()
    exact = load_model(start_job, BF16).float()
    adapters = read_adapters(tmp_path / "v3")
    assert len(adapters) == 3
    merge_adapters(exact, adapters)
    for name, weight in load_model(tmp_path / "v3", BF16).named_parameters():
        assert torch.equal(weight, exact.get_parameter(name).to(torch.bfloat16)), "rounded once"


def test_a_stack_on_linked_weights_links_to_their_target(tmp_path, tiny_model):
    start_job = tmp_path / "v0"
    start_job.mkdir()
    for file in tiny_model.iterdir():
        (start_job / file.name).symlink_to(file)
    publish(tmp_path / "v1", start_job, 0, across="stack")
    assert (tmp_path / "v1" / "base" / "model.safetensors").is_symlink()
    shutil.rmtree(start_job)
    load_model(tmp_path / "v1", CPU)


def test_a_program_without_adapters_fails_on_a_stack_and_does_not_load_the_base(tmp_path, tiny_model):
    publish(tmp_path / "v1", tiny_model, 0, across="stack")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "v1")
    with pytest.raises(ModelError, match="spin export --format merged"):
        check_safetensors(tmp_path / "v1")


def test_the_models_own_training_merges_so_that_theta_0_is_plain(tmp_path, tiny_model):
    publish(tmp_path / "v0", tiny_model, -1, across="stack")
    AutoModelForCausalLM.from_pretrained(tmp_path / "v0")


def test_stacked_adapters_combine_into_one_as_peft_does_it(tmp_path, tiny_model):
    from peft import PeftModel

    publish(tmp_path / "v1", tiny_model, 0, across="stack")
    player = publish(tmp_path / "v2", tmp_path / "v1", 1, across="stack")
    one = combine_adapters(read_adapters(tmp_path / "v2"))
    write_adapter(one, tmp_path / "one")
    assert one.config["r"] == 4
    ours = PeftModel.from_pretrained(load_model(tiny_model, CPU), tmp_path / "one")
    close(ours, player)
    theirs = PeftModel.from_pretrained(load_model(tiny_model, CPU), tmp_path / "v2" / "adapters" / "01", "a")
    theirs.load_adapter(tmp_path / "v2" / "adapters" / "02", "b")
    theirs.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", combination_type="cat")
    theirs.set_adapter("both")
    close(ours, theirs)


def test_the_same_adapter_is_published_with_the_same_digest(tmp_path, tiny_model):
    for name in ("one", "other"):
        publish(tmp_path / name, tiny_model, 0, across="stack")
    assert identity.digest_folder(tmp_path / "one")[0] == identity.digest_folder(tmp_path / "other")[0]


def test_a_damaged_adapter_is_named(tmp_path, tiny_model):
    publish(tmp_path / "v1", tiny_model, 0, across="stack")
    (tmp_path / "v1" / "adapters" / "01" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(DamagedArtifact, match=r"the adapter in .*adapters/01 cannot be read"):
        load_model(tmp_path / "v1", CPU)


# In a real training.


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


def test_recomputing_drops_what_the_forward_pass_dropped(tmp_path, tiny_model):
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


MODULES = {
    "base": (base, ModelVersion), "prompts": (prompts, PromptSet), "generate": (generate, GenerationBatch),
    "pairs": (pairs, PairDataset), "score": (score, ScoredPairs), "train": (train, TrainRun),
    "evaluate": (evaluate, EvalReport),
}  # fmt: skip


def act(job):
    """Do a phase's job here."""
    module, record = MODULES[job.phase]
    return phase.execute(job, record, module.run, runtime_progress.Progress())


def play(runs, tiny_model, across):
    """Two iterations with adapters, through every phase but the gate."""
    config = resolve(
        "demo",
        sets=[
            f"model.path={tiny_model}", "model.device=cpu", "prompts.sample=24", "prompts.held_out=4",
            "generate.max_new_tokens=6", "train.batch_size=8", "train.epochs=4", "train.learning_rate=0.02",
            "train.lr_schedule=constant", f"train.lora={{rank: 2, across: {across}}}", "controls={}",
            "evaluate.frontier=[]",
        ],
    )  # fmt: skip
    with lock.locked(runs / "tale"):
        made = start_lineage(runs, "tale", config)
    opponent = theta_0 = act(phase_jobs.base_job(made))
    data, previous, report = act(phase_jobs.prompts_job(made, theta_0)), None, None
    for t in range(2):
        generations = act(phase_jobs.generate_job(made, t, opponent, data))
        paired = act(phase_jobs.pairs_job(made, t, data, generations, previous))
        scores = act(phase_jobs.score_job(made, t, opponent, paired))
        trained_run = act(phase_jobs.train_job(made, t, opponent, paired, scores))
        player = made.player(t)
        (job,) = suite_jobs.evaluate_jobs(made, player, data, report)
        report = act(job)
        artifacts = IterationArtifacts(
            prompts=data, opponent=opponent, generations=generations, pairs=paired, scores=scores,
            train=trained_run, player=player, evaluations=(report,),
            gate=GateDecision(outcome="promote", reason="", next_opponent=t + 1),
        )  # fmt: skip
        record_iteration(made, t, artifacts)
        opponent, previous = player, generations
    return made


@pytest.mark.parametrize("across", ["merge", "stack"])
def test_two_iterations_are_played_and_exported(tmp_path, tiny_model, monkeypatch, across):
    from peft import PeftModel

    made = play(tmp_path / "runs", tiny_model, across)
    versions = [made.records()[0].opponent, *(record.player for record in made.records())]
    for record in made.records():
        assert record.train.first_loss == pytest.approx(LOG_2, abs=1e-5)
        assert record.train.metrics["loss"] < record.train.first_loss - 0.01
        assert artifacts.verify(record.player.path) == []
        assert is_stacked(record.player.path) == (across == "stack")
    monkeypatch.chdir(tmp_path)
    for form in ("merged", "adapter"):
        result = CliRunner().invoke(main, ["export", "tale", "1", "--format", form, "--runs", str(tmp_path / "runs")])
        assert (result.exit_code, result.output) == (0, f"θ_2 in tale-theta-2-{form}\n")
    player = load_model(versions[2].path, CPU)
    close(AutoModelForCausalLM.from_pretrained(tmp_path / "tale-theta-2-merged"), player)
    load_tokenizer(tmp_path / "tale-theta-2-merged", CPU)
    onto = versions[0] if across == "stack" else versions[1]
    close(PeftModel.from_pretrained(load_model(onto.path, CPU), tmp_path / "tale-theta-2-adapter"), player)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_two_ranks_train_the_adapter_that_one_trains(tmp_path, tiny_model, deepspeed):
    pytest.importorskip("deepspeed")
    settings = {
        "lora": {"rank": 2, "across": "stack"}, "steps": 6, "optimizer": "adamw", "learning_rate": 1e-3, "beta": 1.0,
        "held_out": 0.2, "evaluate_every": 2, "keep_best": "loss", "save_every": 2,
    }  # fmt: skip
    one = random_train_job(tmp_path / "one", tiny_model, **settings)
    two = random_train_job(tmp_path / "two", tiny_model, **settings, speed={"ranks": 2, "deepspeed": deepspeed})
    want = run_job(one)
    process = start_job(two, tmp_path / "log")
    process.communicate(timeout=240)
    assert process.returncode == 0, (tmp_path / "log" / "stderr.txt").read_text()
    have = artifacts.read_record(two.output, TrainRun)
    assert have.published == want.published
    assert have.metrics == pytest.approx(want.metrics, rel=1e-3, abs=1e-4)
    assert have.held_out == pytest.approx(want.held_out, rel=1e-3, abs=1e-4)
    close(load_model(two.weights, CPU), load_model(one.weights, CPU), 1e-4)
