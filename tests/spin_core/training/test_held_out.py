"""Pairs that are kept out of training, and the choice of the weights that are published."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch

from spin_core.config.train import TrainConfig
from spin_core.data.sequences import read_token_ids
from spin_core.errors import ConfigError, DataError, Stopped, TrainingDiverged
from spin_core.models.loading import load_model
from spin_core.models.logps import sequence_logps
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import TrainJob
from spin_core.store.records import Event
from spin_core.store.training_log import HELD_OUT, read_rows
from spin_core.training.checkpoint import TrainingRecorder, checkpoints, step_of
from spin_core.training.held_out import best, is_best, published_step, split
from tests.support.lineages.small_jobs import (
    CPU,
    data_of,
    random_pairs,
    random_prompts,
    random_train_job,
    run_job,
    score_job,
    start_job,
    token_ids,
    train_job,
    version_of,
    wait_for_progress,
    write_pairs,
)

PART = 0.3
WILD = {"learning_rate": 3e-2, "epochs": 8, "lr_schedule": "constant", "warmup": 0}


def weights(folder) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in load_model(folder, CPU).parameters()])


def prompts_of(job, items) -> set[bytes]:
    (prompts,) = read_token_ids(job.pairs.path / "pairs.parquet", "prompt_ids")
    return {prompts[item].tobytes() for item in items}


def test_all_pairs_of_a_prompt_are_on_one_side_in_every_iteration(tmp_path, tiny_model):
    rng = np.random.default_rng(0)
    first, later = token_ids(rng, 60, 3, 6), token_ids(rng, 60, 3, 6)
    sides = []
    for name, prompts in (("t0", first), ("t1", later + first)):
        answers = [token_ids(rng, len(prompts), 2, 5) for _ in range(2)]
        pairs = write_pairs(tmp_path / name / "pairs", prompts, *answers)
        scores = run_job(score_job(tmp_path / name / "scores", version_of(tiny_model), pairs))
        job = train_job(tmp_path / name, version_of(tiny_model), pairs, scores)
        trained, held = split(data_of(job), PART, seed=5)
        assert sorted([*trained, *held]) == list(range(len(prompts)))
        assert not prompts_of(job, trained) & prompts_of(job, held)
        sides.append((prompts_of(job, trained), prompts_of(job, held)))
    assert sides[0][0] < sides[1][0]
    assert sides[0][1] < sides[1][1]
    assert len(sides[1][1]) / 120 == pytest.approx(PART, abs=0.1)


def test_another_seed_holds_out_others_and_a_fraction_of_0_holds_out_none(tmp_path, tiny_model):
    data = data_of(random_train_job(tmp_path, tiny_model))
    assert split(data, PART, 0)[1].tolist() != split(data, PART, 1)[1].tolist()
    trained, held = split(data, 0.0, 0)
    assert (len(trained), len(held)) == (24, 0)


def test_a_fraction_that_holds_out_nothing_is_rejected(tmp_path, tiny_model):
    with pytest.raises(DataError, match=r"train\.held_out 0\.0001 of 24 holds none out: choose another fraction"):
        run_job(random_train_job(tmp_path, tiny_model, held_out=1e-4))


def test_a_metric_that_is_not_measured_cannot_choose_the_weights(tmp_path, tiny_model):
    with pytest.raises(ConfigError, match=r"none are held out: set train\.held_out to 0\.05"):
        run_job(random_train_job(tmp_path, tiny_model, keep_best="loss"))
    with pytest.raises(ConfigError, match=r"loss sft has no rewards/margins"):
        run_job(random_train_job(tmp_path / "b", tiny_model, keep_best="rewards/margins", held_out=PART, loss="sft"))


def test_every_n_steps_and_at_the_end_the_held_out_pairs_are_measured_and_never_trained_on(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, held_out=PART, evaluate_every=4, epochs=5, batch_size=4)
    record = run_job(job)
    rows = read_rows(job.output / HELD_OUT)
    assert [row["step"] for row in rows] == [*range(4, record.steps, 4), record.steps]
    assert record.held_out == rows[-1]
    trained, held = split(data_of(job), PART, 0)
    assert record.steps == 5 * -(-len(trained) // 4)
    prompts, real, generated = read_token_ids(
        job.pairs.path / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids"
    )
    held_ids = [[ids[item] for item in held] for ids in (prompts, real, generated)]
    before, after = (load_model(folder, CPU) for folder in (job.start.path, job.weights))
    moved = [
        sequence_logps(after, held_ids[0], ids, 512) - sequence_logps(before, held_ids[0], ids, 512)
        for ids in held_ids[1:]
    ]
    margins = 0.1 * (moved[0] - moved[1])
    assert rows[-1]["rewards/margins"] == pytest.approx(margins.mean().item(), abs=1e-5)
    assert rows[-1]["loss"] == pytest.approx(torch.nn.functional.softplus(-margins).mean().item(), abs=1e-5)


def test_measuring_changes_no_weight(tmp_path, tiny_model):
    often = random_train_job(tmp_path / "often", tiny_model, held_out=PART, evaluate_every=1, epochs=3)
    never = random_train_job(tmp_path / "never", tiny_model, held_out=PART, evaluate_every=1000, epochs=3)
    assert run_job(often).model == run_job(never).model


def test_fine_tuning_holds_out_prompts(tmp_path, tiny_model):
    config = TrainConfig(
        loss="sft", optimizer="adamw", learning_rate=1e-2, batch_size=8, epochs=4, held_out=PART, keep_best="loss",
        evaluate_every=2,
    )  # fmt: skip
    job = TrainJob(
        output=tmp_path / "train", weights=tmp_path / "model", t=-1, model=CPU, start=version_of(tiny_model),
        prompts=random_prompts(tmp_path / "prompts"), config=config,
    )  # fmt: skip
    record = run_job(job)
    assert list(record.held_out) == ["step", "loss", "logps/real"]
    assert record.held_out["loss"] == min(row["loss"] for row in read_rows(job.output / HELD_OUT))


@pytest.mark.parametrize("metric", ["loss", "rewards/accuracies", "rewards/margins", "logps/real"])
def test_the_best_by_each_metric_is_published(tmp_path, tiny_model, metric):
    job = random_train_job(tmp_path / "best", tiny_model, **WILD, held_out=PART, evaluate_every=1, keep_best=metric)
    record = run_job(job)
    rows = read_rows(job.output / HELD_OUT)
    want = min(rows, key=lambda row: row[metric] if metric == "loss" else -row[metric])
    assert record.published == want["step"]
    assert record.held_out == want
    assert record.metrics["loss"] == read_rows(job.output / "metrics.jsonl")[record.published - 1]["loss"]
    run_job(random_train_job(tmp_path / "short", tiny_model, **WILD, held_out=PART, steps=record.published))
    assert torch.equal(weights(job.weights), weights(tmp_path / "short" / "model"))
    assert record.steps == len(rows)
    if metric == "loss":  # a rate so high spoils it, at a step that depends on how sums are rounded
        assert record.published < record.steps, "else the last would do as well"


def test_the_first_of_equals_is_best_and_nan_never():
    rows = [{"step": step, "loss": loss} for step, loss in enumerate((float("nan"), 0.6, 0.5, 0.5, 0.7), 1)]
    assert best(rows, "loss")["step"] == 3
    assert best([], "loss") is None
    assert [is_best(rows[:n], "loss") for n in range(1, 6)] == [False, True, True, False, False]


def test_which_step_is_published():
    held = [{"step": 4, "loss": 0.6}, {"step": 8, "loss": 0.4}]
    back = Event(kind="saturated", step=11, message="it fired", action="roll-back")
    stop = back.model_copy(update={"action": "stop"})
    last, chosen = TrainConfig(save_every=5), TrainConfig(save_every=5, keep_best="loss", held_out=0.1)
    assert published_step(last, 20, held, []) == 20
    assert published_step(last, 11, held, [stop]) == 11
    assert published_step(last, 11, held, [back]) == 10
    assert published_step(chosen, 20, held, []) == 8
    assert published_step(chosen, 11, held, [back]) == published_step(chosen, 11, held, [stop]) == 8
    assert published_step(chosen, 11, [], [back]) == 10
    with pytest.raises(TrainingDiverged, match=r"it fired; but there is no checkpoint before it"):
        published_step(last, 5, [], [back.model_copy(update={"step": 5})])


def test_a_best_checkpoint_is_kept_until_there_is_a_better_one(tmp_path):
    def there():
        return [path.name for kind in ("best", "step") for path in checkpoints(tmp_path / "checkpoints", kind)]

    tensors = {"weight/a": torch.ones(2)}
    with TrainingRecorder(tmp_path, keep=1, every=10) as recorder:
        recorder.save(4, tensors, best=True)
        recorder.save(10, tensors)
        recorder.save(14, tensors, best=True)
        assert there() == ["best-00000004", "best-00000014", "step-00000010"]
        recorder.resume()
        assert there() == ["best-00000004", "step-00000010"], "it goes on from 10, and makes 14 again"
        recorder.save(14, tensors, best=True)
        recorder.save(17, tensors)  # a stop on request
        assert there() == ["best-00000014", "step-00000010", "step-00000017"], "10 is the last regular one"
        recorder.save(20, tensors)
        assert there() == ["best-00000014", "step-00000020"]


def test_at_most_two_best_checkpoints_exist(tmp_path):
    def there():
        return [step_of(path) for path in checkpoints(tmp_path / "checkpoints", "best")]

    tensors = {"weight/a": torch.ones(2)}
    with TrainingRecorder(tmp_path, keep=1, every=10) as recorder:
        for step in (2, 4, 6):
            recorder.save(step, tensors, best=True)
        assert there() == [6], "no checkpoint knows of any"
        recorder.save(10, tensors)
        for step in (12, 14, 16):
            recorder.save(step, tensors, best=True)
            assert there() == [6, step], "what resumes from 10 may need 6"
        recorder.save(20, tensors)
        assert there() == [16]


class StopsAsked(Progress):
    """Progress that asks to stop the n-th time that it is read."""

    def __init__(self, number: int) -> None:
        super().__init__(quiet=True)
        self.steps_left = number

    @property
    def stopping(self) -> bool:
        self.steps_left -= 1
        return self.steps_left <= 0


@pytest.mark.parametrize("monitors", [{}, {"saturated": "stop", "window": 3}], ids=["to the end", "to an event"])
def test_a_stop_during_a_measurement_is_handled_and_changes_nothing(tmp_path, tiny_model, monitors):
    settings = {
        **WILD, "held_out": PART, "evaluate_every": 2, "keep_best": "logps/real", "micro_batch_tokens": 60,
        "batch_size": 16, "monitors": monitors, "save_every": 100,
    }  # fmt: skip
    looks = StopsAsked(10**6)
    whole = run_job(random_train_job(tmp_path / "whole", tiny_model, **settings), looks)
    looked = 10**6 - looks.steps_left
    assert looked > 2 * whole.steps, "in the middle of measuring too"
    job = random_train_job(tmp_path / "stopped", tiny_model, **settings)
    for number in (2, 3, 4, 9, looked):
        with pytest.raises(Stopped):
            run_job(job, StopsAsked(number))
        if number == 9:  # the next one from the beginning
            shutil.rmtree(tmp_path / "stopped" / ".train.partial")
    record = run_job(job)
    assert (record.digest, record.model, record.published) == (whole.digest, whole.model, whole.published)


LORA = {"rank": 2, "dropout": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora", [pytest.param(None, marks=pytest.mark.slow, id="all-weights"), pytest.param(LORA, id="adapter")]
)
def test_killed_and_stopped_with_held_out_pairs_and_dropout_the_result_has_the_same_bits(tmp_path, tiny_model, lora):
    version, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs", rows=96, longest=60)
    scores = run_job(score_job(tmp_path / "scores", version, pairs))
    settings = {
        "batch_size": 16, "steps": 48, "save_every": 5, "micro_batch_tokens": 1024, "lora": lora, "held_out": 0.2,
        "evaluate_every": 3, "keep_best": "logps/real", "learning_rate": 1e-2,
    }  # fmt: skip
    whole = run_job(train_job(tmp_path / "whole", version, pairs, scores, **settings))
    job = train_job(tmp_path / "killed", version, pairs, scores, **settings)
    reached = 0
    for stop in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = start_job(job, tmp_path / "log")
        reached = wait_for_progress(process, reached + 7)
        process.send_signal(stop)
        process.wait(60)
        process.stdout.close()
        assert not job.output.exists()
    record = run_job(job)
    assert record.model == whole.model
    assert record.digest == whole.digest
    assert record.published == whole.published < 48, "or the best checkpoint was not asked for"
    assert (job.output / HELD_OUT).read_bytes() == (tmp_path / "whole" / "train" / HELD_OUT).read_bytes()


def test_held_out_metrics_are_reported_as_progress(tmp_path, tiny_model, capfd):
    run_job(random_train_job(tmp_path, tiny_model, held_out=PART, evaluate_every=1))
    messages = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert any("held out loss" in message.get("metrics", {}) for message in messages)
