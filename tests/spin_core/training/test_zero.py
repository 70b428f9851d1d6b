"""Training on ranks: however memory and data are divided, it is the same training.

Tolerances are for sums in another order, over 21 steps that lower the loss by more than 0.05 and move weights by up to
0.06: losses 2e-6 and weights 2e-5 apart in float32; in bfloat16 losses 1e-3, and weights 1e-2, which near 1 is one
rounding.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from spin_core.config.model import ModelConfig
from spin_core.config.run import RunConfig
from spin_core.config.train import LoraConfig, SpeedConfig, TrainConfig
from spin_core.errors import ConfigError, PhaseCrashed, Stopped
from spin_core.models.loading import load_model
from spin_core.preflight.findings import Inspection
from spin_core.preflight.settings import inspect_ranks
from spin_core.runtime import launch, torchrun
from spin_core.runtime.launch import run_phase
from spin_core.store import artifacts
from spin_core.store.jobs import TrainJob
from spin_core.store.records import TrainRun
from spin_core.store.training_log import read_rows
from spin_core.training.checkpoint import CHECKPOINTS, latest_checkpoint
from spin_core.training.deepspeed_config import NAMES, read_settings, zero_settings
from tests.support.helpers import ROOT, character_tokenizer, save_tiny_model
from tests.support.lineages.small_jobs import CPU, random_train_job, run_job
from tests.support.processes.many_jobs import StopsAt, do_on_ranks
from tests.support.servers.nodes import ADDRESSES, two_nodes

BF16 = ModelConfig(device="cpu", dtype="bfloat16")
STEPS = 21
STOP = 8
"""Where trainings are stopped that others go on with."""


def variant(job: TrainJob, name: str, deepspeed: str = "", size: int = 1, **config) -> TrainJob:
    """The same job with another distribution, in its own folder."""
    folder = job.output.parent.parent / name
    speed = {"deepspeed": deepspeed, "ranks": size, **config.pop("speed", {})}
    changed = job.config.model_copy(update={**config, "speed": SpeedConfig(**speed)})
    return job.model_copy(update={"config": changed, "output": folder / "train", "weights": folder / "model"})


def losses(job: TrainJob) -> list[float]:
    rows = read_rows(job.output / "metrics.jsonl")
    assert len(rows) == STEPS
    return [row["loss"] for row in rows]


def norms(job: TrainJob) -> list[float]:
    return [row["grad_norm"] for row in read_rows(job.output / "metrics.jsonl")]


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    return load_file(job.weights / "model.safetensors")


def record(job: TrainJob) -> TrainRun:
    run = artifacts.read_record(job.output, TrainRun)
    assert run is not None
    return run


def stop(job: TrainJob) -> None:
    """Train it in this process, on one device, as far as `STOP`."""
    with pytest.raises(Stopped):
        run_job(job, StopsAt(STOP))


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory) -> Path:
    """A GPT-2, whose output layer is its embeddings."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), character_tokenizer()
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, tied_model) -> dict[str, TrainJob]:
    """All trainings of this file, finished: on one device in this process, and on the two ranks of one torchrun."""
    folder = tmp_path_factory.mktemp("ranks")
    model = save_tiny_model(folder / "tiny", character_tokenizer())
    settings = {"steps": STEPS, "weight_decay": 0.1, "max_grad_norm": 0.2, "save_every": 5}
    plain = random_train_job(folder / "alone", model, **settings)
    half = random_train_job(folder / "half-alone", model, BF16, **settings)
    tied = random_train_job(folder / "tied-alone", tied_model, **settings)
    few, single_pairs = {"micro_batch_tokens": 60}, {"batch_size": 1}
    # DeepSpeed leaves small weights whole, and all of these are: so here is one that shares out every last one.
    whole = {"stage": 3, "stage3_param_persistence_threshold": 0}
    every = folder / "every.json"
    every.write_text(json.dumps({"zero_optimization": whole}))
    adapter = {"lora": LoraConfig(rank=2)}
    alone = {
        "alone": plain,
        "accumulated": variant(plain, "accumulated", **few),
        "adamw": variant(plain, "adamw", optimizer="adamw"),
        "half": half,
        "tied": tied,
        "lora": variant(plain, "lora", **adapter),
        "one": variant(plain, "one", **single_pairs),
        "lora-one": variant(plain, "lora-one", **adapter, **single_pairs),
        "watched": variant(plain, "watched", held_out=0.25, evaluate_every=3, keep_best="loss"),
    }
    shared = {name: variant(plain, name, name, 2) for name in NAMES} | {
        "zero2-accumulated": variant(plain, "zero2-accumulated", "zero2", 2, **few),
        "every-accumulated": variant(plain, "every-accumulated", str(every), 2, **few),
        "every-checkpointed": variant(plain, "every-checkpointed", str(every), 2, gradient_checkpointing=True),
        "zero2-padded": variant(plain, "zero2-padded", "zero2", 2, speed={"packing": False}),
        "every-padded": variant(plain, "every-padded", str(every), 2, speed={"packing": False}, **few),
        "every-one": variant(plain, "every-one", str(every), 2, **single_pairs),
        "every-lora-scored": variant(
            plain, "every-lora-scored", str(every), 2, speed={"cached_scores": False}, **adapter, **single_pairs
        ),
        "zero1-adamw": variant(plain, "zero1-adamw", "zero1", 2, optimizer="adamw"),
        "zero3-adamw": variant(plain, "zero3-adamw", "zero3", 2, optimizer="adamw"),
        "every-tied": variant(tied, "every-tied", str(every), 2),
        "zero2-lora": variant(plain, "zero2-lora", "zero2", 2, **adapter),
        "every-watched": variant(alone["watched"], "every-watched", str(every), 2),
        **{f"half-{name}": variant(half, f"half-{name}", name, 2) for name in ("zero0", "zero1", "zero2", "zero3")},
    }
    resumed = {
        "zero2-resumed": variant(plain, "zero2-resumed", "zero2", 2),
        "zero3-resumed": variant(plain, "zero3-resumed", "zero3", 2),
        "half-zero3-resumed": variant(half, "half-zero3-resumed", "zero3", 2),
        "other-stage": variant(plain, "other-stage", "zero1", 2),
        "more-ranks": variant(plain, "more-ranks"),
        "fewer-ranks": variant(plain, "fewer-ranks", str(every), 2),
    }
    for job in alone.values():
        run_job(job)
    stop(resumed["more-ranks"])
    first = [(job, STOP) for name, job in resumed.items() if name != "more-ranks"]
    then = [(resumed[name], None) for name in ("zero2-resumed", "zero3-resumed", "half-zero3-resumed")]
    then += [(variant(plain, "other-stage", str(every), 2), None), (variant(plain, "more-ranks", "zero2", 2), None)]
    do_on_ranks(folder / "torchrun", 2, [(job, None) for job in shared.values()] + first + then)
    run_job(variant(plain, "fewer-ranks"))
    return alone | shared | resumed


def same(jobs: dict[str, TrainJob], name: str, want: str, *, loss: float = 2e-6, weight: float = 2e-5) -> None:
    """The training has the losses, norms and weights of another."""
    job, expected_job = jobs[name], jobs[want]
    assert losses(job) == pytest.approx(losses(expected_job), abs=loss)
    assert norms(job) == pytest.approx(norms(expected_job), rel=100 * loss)
    job_weights, expected_weights = weights(job), weights(expected_job)
    assert job_weights.keys() == expected_weights.keys()
    for key, value in expected_weights.items():
        torch.testing.assert_close(job_weights[key].float(), value.float(), atol=weight, rtol=0, msg=key)


@pytest.mark.slow
def test_the_training_that_all_are_compared_with_learns_and_clips(jobs):
    assert losses(jobs["alone"])[-1] < losses(jobs["alone"])[0] - 0.05
    assert max(norms(jobs["alone"])) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accumulated", *NAMES, "zero2-accumulated", "every-accumulated"])
def test_one_rank_of_eight_equals_two_of_four_and_accumulation_in_every_stage(jobs, name):
    same(jobs, name, "alone")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2-padded", "every-padded"])
def test_padded_rows_are_divided_among_ranks_too(jobs, name):
    same(jobs, name, "alone")


@pytest.mark.slow
def test_recomputing_activations_changes_nothing_with_divided_weights(jobs):
    same(jobs, "every-checkpointed", "alone")


@pytest.mark.slow
def test_a_rank_without_a_pair_takes_part(jobs):
    same(jobs, "every-one", "one")
    same(jobs, "every-lora-scored", "lora-one")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1-adamw", "zero3-adamw"])
def test_adamw_counts_its_steps_as_on_one_device(jobs, name):
    same(jobs, name, "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["half-zero0", "half-zero1", "half-zero2", "half-zero3"])
def test_bfloat16_learns_the_same(jobs, name):
    same(jobs, name, "half", loss=1e-3, weight=1e-2)
    assert weights(jobs[name])["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.slow
def test_tied_weights_are_divided_once_and_saved_as_the_model_saves_them(jobs):
    same(jobs, "every-tied", "tied")
    assert load_model(jobs["every-tied"].weights, CPU).config.tie_word_embeddings


@pytest.mark.slow
def test_adapters_train_on_ranks(jobs):
    same(jobs, "zero2-lora", "lora")


@pytest.mark.slow
def test_held_out_pairs_are_measured_on_ranks_and_the_best_weights_published(jobs):
    same(jobs, "every-watched", "watched")
    assert record(jobs["every-watched"]).published == record(jobs["watched"]).published
    assert record(jobs["every-watched"]).held_out == pytest.approx(record(jobs["watched"]).held_out, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whole"),
    [("zero2-resumed", "zero2"), ("zero3-resumed", "zero3"), ("half-zero3-resumed", "half-zero3")],
)
def test_a_stopped_training_on_ranks_resumes_to_the_same_bits(jobs, name, whole):
    assert record(jobs[name]).digest == record(jobs[whole]).digest
    assert record(jobs[name]).model == record(jobs[whole]).model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks"),
    [("other-stage", ((21, 2),)), ("more-ranks", ((8, 1), (13, 2))), ("fewer-ranks", ((8, 2), (13, 1)))],
)
def test_a_training_resumes_with_other_ranks_or_another_stage_and_records_it(jobs, name, ranks):
    same(jobs, name, "alone")
    assert record(jobs[name]).ranks == ranks


@pytest.mark.slow
def test_published_weights_are_loaded_by_from_pretrained(jobs):
    for name in ("zero3", "every-tied"):
        model = load_model(jobs[name].weights, CPU)
        for key, value in weights(jobs[name]).items():
            assert torch.equal(model.state_dict()[key], value)


@pytest.mark.slow
def test_two_ranks_killed_at_a_step_resume_to_the_same_bits(jobs):
    """SIGKILL to the whole phase, as launched by a task; then the same call again."""
    job = variant(jobs["alone"], "killed", "zero2", 2)
    pid_file, scratch = launch.job_path(job).with_suffix(".pid"), job.output.with_name(".train.partial")

    def kill(message) -> None:
        if message["done"] >= 6:
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)

    # The remaining steps are short: on a busy machine they may be over before the signal arrives.
    while not scratch.exists():
        shutil.rmtree(job.output.parent, ignore_errors=True)
        with contextlib.suppress(PhaseCrashed, FileNotFoundError, ProcessLookupError):
            run_phase(job, TrainRun, kill)
    assert latest_checkpoint(scratch / CHECKPOINTS)[0]["step"] >= 5
    assert not job.output.exists()
    logged = []
    resumed = run_phase(job, TrainRun, on_log=logged.append)
    assert not any("step 0 to" in line for line in logged)
    assert (resumed.digest, resumed.model) == (record(jobs["zero2"]).digest, record(jobs["zero2"]).model)
    assert not [line for line in logged if "Warning" in line]


@pytest.mark.slow
def test_two_nodes_with_a_rank_each_train_as_one_node_with_two(jobs, tmp_path):
    speed = {"nodes": 2, "rendezvous": f"{ADDRESSES[0]}:29547"}
    job = variant(jobs["alone"], "nodes", "zero2", speed=speed)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    with two_nodes() as nodes:
        started = [
            subprocess.Popen(
                [*node, sys.executable, "-m", "spin_core.phases.train", tmp_path / "job.json"],
                env={**os.environ, torchrun.NODE_RANK: str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, node in enumerate(nodes)
        ]
        (out, first), (silence, second) = (process.communicate(timeout=300) for process in started)
    assert [process.returncode for process in started] == [0, 0], first + second
    assert silence == ""
    assert json.loads(out.splitlines()[-1])["record"]["ranks"] == [[STEPS, 2]]
    assert losses(job) == losses(jobs["zero2"])
    assert record(job).model == record(jobs["zero2"]).model


def test_every_named_configuration_exists_and_sets_nothing_of_the_recipe():
    for name in NAMES:
        assert read_settings(name)["zero_optimization"]["stage"] == int(name[4])
    assert {path.stem for path in (ROOT / "infra" / "deepspeed").iterdir()} == set(NAMES)


def test_a_users_own_file_is_read_and_completed(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"zero_optimization": {"stage": 1}, "comms_logger": {"enabled": true}}')
    config = game_config(deepspeed=str(file))
    settings = zero_settings(config, "bfloat16")
    assert settings["comms_logger"] == {"enabled": True}
    assert settings["bf16"]["enabled"]
    assert settings["gradient_clipping"] == config.max_grad_norm


def game_config(**speed) -> TrainConfig:
    return TrainConfig(speed=SpeedConfig(**speed))


def test_the_check_reports_ranks_before_anything_is_computed(tmp_path):
    def findings(**train) -> list[str]:
        inspection = Inspection()
        config = RunConfig(recipe="none", model=CPU, train={"batch_size": 2, **train})
        inspection.run("config", inspect_ranks, config)
        return [finding.text for finding in inspection.findings]

    assert findings() == []
    assert findings(speed={"ranks": 2}) == ["trains on 2 ranks on 1 node, ZeRO stage 2"]
    assert findings(speed={"ranks": 4, "deepspeed": "zero3"})[1:] == [
        "2 ranks will idle: set train.batch_size to 4 or more"
    ]
    assert (
        "is not a file that can be read: give the path of one, or one of"
        in findings(speed={"deepspeed": str(tmp_path / "absent")})[0]
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"is not a file that can be read: give the path of one, or one of zero0, zero1"),
        ("{", r"mine\.json is not JSON .* fix it"),
        ("[]", r"has no JSON object"),
        ('{"train_batch_size": 8}', r"sets train_batch_size, .* remove it, and set train\.batch_size"),
        ('{"optimizer": {}}', r"sets optimizer, .* set train\.optimizer"),
        ('{"scheduler": {}}', r"sets scheduler, .* set train\.lr_schedule"),
        ('{"zero_optimization": {"stage": 4}}', r"no zero_optimization\.stage of 0, 1, 2 or 3"),
    ],
)
def test_an_invalid_configuration_is_rejected_with_the_fix(tmp_path, content, says):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        zero_settings(game_config(deepspeed=str(file)), "float32")
    assert "\n" not in str(caught.value)
