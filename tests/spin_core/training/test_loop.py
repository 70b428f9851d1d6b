"""The train phase, on tiny real models."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from spin_core.config.model import ModelConfig
from spin_core.config.train import TrainConfig
from spin_core.data.sequences import read_token_ids
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DataError, Stopped, TrainingDiverged
from spin_core.models.loading import load_model
from spin_core.models.logps import sequence_logps
from spin_core.runtime import progress as runtime_progress
from spin_core.store import artifacts, identity
from spin_core.store.jobs import TrainJob
from spin_core.store.records import ModelVersion
from spin_core.store.training_log import read_rows
from spin_core.training.checkpoint import CHECKPOINTS, latest_checkpoint
from spin_core.training.losses import LOG_2
from spin_core.training.player import prepare
from tests.support.helpers import character_tokenizer
from tests.support.lineages.small_jobs import (
    CPU,
    batch_metrics,
    data_of,
    random_prompts,
    random_train_job,
    run_job,
    stepper_of,
    train_job,
    version_of,
)
from tests.support.processes.many_jobs import StopsAt

BF16 = ModelConfig(device="cpu", dtype="bfloat16")


@pytest.fixture
def dropout_model(tmp_path):
    """A GPT-2 whose configuration asks for dropout everywhere."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path / "gpt2", character_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64,
        resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_of(job: TrainJob) -> list[dict[str, float]]:
    return read_rows(job.output / "metrics.jsonl")


def with_scores(job: TrainJob, change) -> TrainJob:
    """The job, with other numbers in its scores, which have no manifest then."""
    path = job.scores.path / "logps.parquet"
    (job.scores.path / "manifest.json").unlink(missing_ok=True)
    pq.write_table(pa.table({name: change(v.to_numpy()) for name, v in zip(*table_of(path), strict=True)}), path)
    return job


def table_of(path):
    table = pq.read_table(path)
    return table.column_names, table.columns


def test_training_learns_and_publishes_the_next_version(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, epochs=10)
    record = run_job(job)
    rows = rows_of(job)
    assert record.first_loss == rows[0]["loss"] == pytest.approx(LOG_2, abs=1e-5)
    assert record.steps == len(rows) == 30
    assert rows[-1]["loss"] < 0.5
    assert rows[-1]["rewards/margins"] > 0.5
    assert record.metrics["loss"] == rows[-1]["loss"]
    assert list(rows[0]) == [
        "step", "epoch", "loss", "rewards/real", "rewards/generated", "rewards/margins", "rewards/accuracies",
        "logps/real", "logps/generated", "length_correlation", "grad_norm", "learning_rate",
    ]  # fmt: skip
    player = artifacts.read_record(job.weights, ModelVersion)
    assert (player.t, player.parent, player.digest) == (1, job.start.digest, record.model)
    assert artifacts.verify(job.weights) == artifacts.verify(job.output) == []
    load_tokenizer(job.weights, CPU)


def test_the_published_weights_have_the_margins_that_training_ended_with(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, batch_size=24, epochs=2, lr_schedule="constant", warmup=0)
    run_job(job)
    prompts, real, generated = read_token_ids(
        job.pairs.path / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids"
    )
    before, after = (load_model(folder, CPU) for folder in (job.start.path, job.weights))
    moved = [sequence_logps(after, prompts, ids, 512) - sequence_logps(before, prompts, ids, 512)
             for ids in (real, generated)]  # fmt: skip
    assert (moved[0] - moved[1]).mean() > 0
    again = random_train_job(tmp_path / "again", tiny_model, batch_size=24, epochs=3, lr_schedule="constant", warmup=0)
    run_job(again)
    assert rows_of(again)[0] == rows_of(job)[0]
    third = rows_of(again)[2]  # measured before the third step, so on the weights that two steps made
    assert third["rewards/real"] == pytest.approx(0.1 * moved[0].mean().item(), abs=1e-4)
    assert third["rewards/margins"] == pytest.approx(0.1 * (moved[0] - moved[1]).mean().item(), abs=1e-4)


def test_the_same_job_gives_the_same_digests(tmp_path, tiny_model):
    records = [run_job(random_train_job(tmp_path / name, tiny_model, epochs=2)) for name in ("one", "other")]
    assert records[0].digest == records[1].digest
    assert records[0].model == records[1].model


def test_another_seed_trains_in_another_order(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model)
    run_job(job)
    other = job.model_copy(update={"seed": 1, "output": tmp_path / "o" / "train", "weights": tmp_path / "o" / "model"})
    run_job(other)
    assert rows_of(job)[0]["logps/real"] != rows_of(other)[0]["logps/real"]


def gradients(job: TrainJob, batch: np.ndarray) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Metrics and gradient of one batch."""
    stepper = stepper_of(job)
    return batch_metrics(job, stepper, batch), [master.grad for master in stepper.masters]


@pytest.mark.parametrize("loss", ["logistic", "hinge", "sft"])
def test_however_a_batch_is_split_loss_and_gradient_are_the_same(tmp_path, tiny_model, loss):
    job = random_train_job(tmp_path, tiny_model, loss=loss)
    job = with_scores(job, lambda logps: logps + np.linspace(-1, 1, len(logps), dtype=np.float32))
    job = job.model_copy(update={"prompts": random_prompts(tmp_path / "prompts")})
    want = None
    for tokens in (10**6, 100, 1):
        split = job.model_copy(update={"config": job.config.model_copy(update={"micro_batch_tokens": tokens})})
        results = gradients(split, np.array([3, 1, 20, 7, 11]))
        want = want or results
        assert results[0] == pytest.approx(want[0], rel=1e-4, abs=1e-5)
        torch.testing.assert_close(results[1], want[1], rtol=1e-3, atol=1e-5)


def test_fine_tuning_is_the_mean_over_the_real_responses_tokens(tmp_path, tiny_model):
    prompts = random_prompts(tmp_path / "prompts")
    job = TrainJob(
        output=tmp_path / "train", weights=tmp_path / "model", t=-1, model=CPU, start=version_of(tiny_model),
        prompts=prompts,
        config=TrainConfig(loss="sft", optimizer="adamw", learning_rate=3e-2, batch_size=24, epochs=20),
    )  # fmt: skip
    record = run_job(job)
    rows = rows_of(job)
    prompt_ids, response_ids = read_token_ids(prompts.path / "train.parquet", "prompt_ids", "response_ids")
    logps = sequence_logps(load_model(tiny_model, CPU), prompt_ids, response_ids, 512)
    tokens = sum(len(ids) for ids in response_ids)
    assert record.first_loss == pytest.approx(-logps.sum().item() / tokens, rel=1e-5)
    assert rows[0]["logps/real"] == pytest.approx(logps.mean().item(), rel=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert "rewards/margins" not in rows[0]
    assert artifacts.read_record(job.weights, ModelVersion).t == 0


def test_steps_override_epochs(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, epochs=1, steps=8)
    assert run_job(job).steps == 8
    assert [row["epoch"] for row in rows_of(job)] == pytest.approx([step / 3 for step in range(1, 9)], abs=1e-6)
    assert rows_of(job)[-1]["learning_rate"] == pytest.approx(1e-3 / 8)


def test_schedules_give_the_iterations_value(tmp_path, tiny_model):
    job = random_train_job(
        tmp_path, tiny_model, beta=(0.1, 5.0), learning_rate=(1e-3, 1e-4), epochs=(1, 2), lr_schedule="constant"
    )
    assert run_job(job).steps == 3
    later = job.model_copy(update={"t": 1, "output": tmp_path / "b" / "train", "weights": tmp_path / "b" / "model"})
    assert run_job(later).steps == 6
    assert rows_of(later)[-1]["learning_rate"] == 1e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_is_off_so_that_the_player_starts_as_its_opponent(tmp_path, dropout_model, recompute):
    job = random_train_job(tmp_path, dropout_model, gradient_checkpointing=recompute)
    assert run_job(job).first_loss == pytest.approx(LOG_2, abs=1e-6)
    kept = json.loads((job.weights / "config.json").read_text())
    assert kept["resid_pdrop"] == 0.3


@pytest.mark.parametrize("fixture", ["tiny_model", "dropout_model"])
def test_recomputing_activations_changes_no_gradient_and_runs_layers_twice(tmp_path, request, fixture):
    job = random_train_job(tmp_path, request.getfixturevalue(fixture))
    again = job.model_copy(update={"config": job.config.model_copy(update={"gradient_checkpointing": True})})
    batch = np.arange(8)
    torch.testing.assert_close(gradients(again, batch), gradients(job, batch), rtol=1e-5, atol=1e-6)
    stepper, calls = stepper_of(again), []
    layer = stepper.network.model.get_submodule(
        "model.layers.0.mlp" if fixture == "tiny_model" else "transformer.h.0.mlp"
    )
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    batch_metrics(again, stepper, batch)
    assert len(calls) == 2  # the forward pass, the backward pass


def test_a_model_that_cannot_recompute_activations_is_rejected_with_the_fix(tiny_model):
    with pytest.raises(ConfigError, match=r"Linear cannot .* set train\.gradient_checkpointing to false"):
        prepare(load_model(tiny_model, CPU).lm_head, TrainConfig(gradient_checkpointing=True))


def test_bfloat16_starts_near_log_2_and_publishes_bfloat16(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, BF16, learning_rate=5e-7, steps=2, save_every=1)
    assert run_job(job).first_loss == pytest.approx(LOG_2, abs=0.02)
    assert load_model(job.weights, BF16).dtype == torch.bfloat16
    assert json.loads((job.weights / "config.json").read_text())["dtype"] == "bfloat16"


def test_bfloat16_learns_as_float32_does(tmp_path, tiny_model):
    losses = []
    for name, dtype in (("bf16", BF16), ("fp32", CPU)):
        job = random_train_job(tmp_path / name, tiny_model, dtype, epochs=10)
        run_job(job)
        losses.append(rows_of(job)[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=0.03)


def test_wrong_scores_stop_a_training_before_the_first_step_with_the_reason(tmp_path, tiny_model):
    # All by the same amount, so that the margins, and with them the loss, are those of the right ones.
    job = with_scores(random_train_job(tmp_path, tiny_model, BF16, beta=5.0), lambda logps: logps - 1)
    path = job.scores.path / "logps.parquet"
    with pytest.raises(TrainingDiverged, match=r"player and opponent are 0\.1\d* nats a token apart, .* scores folder"):
        run_job(with_scores(job, lambda logps: logps))
    assert path.exists()
    assert not job.output.exists()
    assert not job.weights.exists()


def test_hinge_starts_at_one(tmp_path, tiny_model):
    assert run_job(random_train_job(tmp_path, tiny_model, loss="hinge")).first_loss == pytest.approx(1.0, abs=1e-5)


def test_damaged_weights_stop_the_training_with_one_line(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model)
    model = load_model(tiny_model, CPU)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    load_tokenizer(tiny_model, CPU).save_pretrained(tmp_path / "nan")
    job = job.model_copy(update={"start": job.start.model_copy(update={"path": tmp_path / "nan"})})
    with pytest.raises(TrainingDiverged, match=r"the loss of step 1 is not finite"):
        run_job(job)


def test_no_pairs_is_an_error_with_the_fix(tmp_path, tiny_model):
    from tests.support.lineages.small_jobs import score_job, write_pairs

    start, pairs = version_of(tiny_model), write_pairs(tmp_path / "pairs", [], [], [])
    scores = run_job(score_job(tmp_path / "scores", start, pairs))
    with pytest.raises(DataError, match="nothing is left to train on"):
        run_job(train_job(tmp_path, start, pairs, scores))


def test_a_stop_saves_the_current_step(tmp_path, tiny_model):
    job, progress = random_train_job(tmp_path, tiny_model, save_every=100, epochs=3), runtime_progress.Progress()
    progress.stop()
    with pytest.raises(Stopped):
        run_job(job, progress)
    assert latest_checkpoint(tmp_path / ".train.partial" / CHECKPOINTS)[0]["step"] == 1
    whole = run_job(random_train_job(tmp_path / "whole", tiny_model, save_every=100, epochs=3))
    assert run_job(job).model == whole.model


def test_a_stop_in_the_last_step_is_saved_too_so_that_nothing_is_trained_again(tmp_path, tiny_model):
    whole = run_job(random_train_job(tmp_path / "whole", tiny_model, save_every=100))
    job = random_train_job(tmp_path, tiny_model, save_every=100)
    with pytest.raises(Stopped):
        run_job(job, StopsAt(3))
    scratch = tmp_path / ".train.partial"
    assert latest_checkpoint(scratch / CHECKPOINTS)[0]["step"] == whole.steps == 3
    before = (scratch / "log" / "timing.jsonl").read_bytes()
    assert run_job(job).model == whole.model
    assert (job.output / "log" / "timing.jsonl").read_bytes() == before


@pytest.mark.parametrize("less", [{"gradient_checkpointing": True}, {"micro_batch_tokens": 40, "keep_checkpoints": 1}])
def test_a_training_that_ran_out_of_memory_resumes_with_settings_that_need_less(tmp_path, tiny_model, less):
    whole = random_train_job(tmp_path / "whole", tiny_model, epochs=3)
    job = random_train_job(tmp_path, tiny_model, epochs=3)
    with pytest.raises(Stopped):
        run_job(job, StopsAt(4))
    tighter = job.model_copy(update={"config": job.config.model_copy(update=less)})
    want, record = run_job(whole), run_job(tighter)
    steps = [row["step"] for row in read_rows(job.output / "log" / "timing.jsonl")]
    assert steps == list(range(1, 10)), "the first four were not made again"
    if "gradient_checkpointing" in less:
        assert record.model == want.model
    weights, expected = (load_model(training.weights, CPU).state_dict() for training in (tighter, whole))
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert run_job(job) == record, "and what is done is done"


def test_timings_are_kept_and_are_not_part_of_the_digest(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model)
    record = run_job(job)
    timings = read_rows(job.output / "log" / "timing.jsonl")
    assert [row["step"] for row in timings] == [1, 2, 3]
    assert all(row["seconds"] > 0 and row["wait"] >= 0 for row in timings)
    assert sum(row["tokens"] for row in timings) == data_of(job).tokens_of_items().sum()
    assert identity.digest_folder(job.output)[0] == record.digest
