"""Savings of time against their absence: the same losses, the same gradients, and what lays batches out ahead."""

import threading
import time

import numpy as np
import pytest
import torch

from spin_core.config.train import SpeedConfig
from spin_core.data.batches import DataOrder
from spin_core.runtime.ranks import Ranks
from spin_core.store import artifacts
from spin_core.store.jobs import TrainJob
from spin_core.store.records import ModelVersion
from spin_core.store.training_log import read_rows
from spin_core.training.gradient import forward_backward
from spin_core.training.objective import objective_of
from spin_core.training.player import opponent_scorer
from spin_core.training.train_data import Batch, batches, prefetch
from tests.support.lineages.small_jobs import data_of, laid_out, random_train_job, run_job, stepper_of


def with_speed(job: TrainJob, folder, **speed) -> TrainJob:
    """The same job with other execution settings, in its own folder."""
    config = job.config.model_copy(update={"speed": SpeedConfig(**speed)})
    return job.model_copy(update={"config": config, "output": folder / "train", "weights": folder / "model"})


def steps_of(job: TrainJob, steps: int) -> list[tuple[dict[str, float], list[torch.Tensor]]]:
    """Metrics and gradient of each of the first steps; weights move between them."""
    stepper, data = stepper_of(job), data_of(job)
    order = DataOrder(data.items, job.config.batch_size, job.seed)
    opponent = None if job.config.speed.cached_scores else opponent_scorer(job, stepper.network)
    steps_done = []

    def lay_out(step: int) -> Batch:
        return laid_out(data, order.batch(step), job.config, packed=stepper.network.packed)

    for batch in batches(lay_out, 0, steps, ahead=job.config.speed.prefetch):
        measured = forward_backward(
            batch, objective_of(job.config, job.t), stepper, Ranks(), torch.device("cpu"), opponent
        )
        gradient = [master.grad.clone() for master in stepper.masters]
        steps_done.append(({name: value.item() for name, value in measured.metrics.items()}, gradient))
        stepper.step(1e-3)
    return steps_done


def losses(job: TrainJob) -> list[dict[str, float]]:
    """Each step's metrics in the whole training."""
    run_job(job)
    return read_rows(job.output / "metrics.jsonl")


def test_batches_that_are_laid_out_ahead_give_the_same_losses_gradients_and_weights(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, epochs=2, micro_batch_tokens=60)
    plain = with_speed(job, tmp_path / "plain", prefetch=False)
    for (metrics, gradient), (expected, want) in zip(steps_of(job, 5), steps_of(plain, 5), strict=True):
        assert metrics == expected
        assert all(torch.equal(g, w) for g, w in zip(gradient, want, strict=True))
    assert losses(job) == losses(plain)
    players = [artifacts.read_record(done.weights, ModelVersion).digest for done in (job, plain)]
    assert players[0] == players[1]


@pytest.mark.parametrize("packing", [True, False])
def test_an_opponent_that_is_scored_at_every_step_gives_the_losses_and_gradients_of_cached_scores(
    tmp_path, tiny_model, packing
):
    job = random_train_job(tmp_path, tiny_model, epochs=2, micro_batch_tokens=60, speed={"packing": packing})
    live = with_speed(job, tmp_path / "live", cached_scores=False, packing=packing)
    steps = steps_of(job, 5)
    for (metrics, gradient), (expected, want) in zip(steps_of(live, 5), steps, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-5)
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-6)
    assert steps[-1][0]["rewards/margins"] != pytest.approx(steps[0][0]["rewards/margins"], abs=1e-3), "they part"
    for loss, expected in zip(losses(live), losses(job), strict=True):
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)


# The default of `compile` is off, so this is the one test that compiles layers on a CPU.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
# The compiler looks at every tensor's gradient, and hides the warning in a way that does not hold where it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_give_the_same_losses_and_gradients_over_some_steps(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, epochs=2)
    compiled = with_speed(job, tmp_path / "compiled", compile=True)
    compiled_steps, want = steps_of(compiled, 6), steps_of(job, 6)
    assert abs(want[-1][0]["loss"] - want[0][0]["loss"]) > 1e-2, "it learns meanwhile"
    for (metrics, gradient), (expected, its) in zip(compiled_steps, want, strict=True):
        # Not accuracy: the first step's margins are rounding about zero, of either sign.
        for name in ("loss", "logps/real", "logps/generated", "rewards/margins"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)
        torch.testing.assert_close(gradient, its, rtol=1e-3, atol=1e-5)


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_values_made_ahead_are_complete_and_in_order(depth):
    before = threads()
    rng = np.random.default_rng(depth)

    def make(index: int) -> int:
        time.sleep(rng.uniform(0, 2e-3))
        return index * index

    assert list(prefetch(make, 3, 20, depth)) == [index * index for index in range(3, 20)]
    assert list(prefetch(make, 3, 3, depth)) == []
    assert threads() == before


def test_no_more_values_are_made_ahead_than_the_depth():
    made = []
    values = prefetch(lambda index: made.append(index) or index, 0, 100, depth=2)
    assert next(values) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 2 + 1, "one is in use, two wait, and one waits for a place"
    values.close()


def test_an_error_is_raised_where_its_value_is_due():
    before = threads()

    def make(index: int) -> int:
        if index == 4:
            raise ValueError("the fifth cannot be made")
        return index

    values = prefetch(make, 0, 10)
    assert [next(values) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="the fifth cannot be made"):
        next(values)
    assert threads() == before


def test_an_iterator_that_is_closed_early_leaves_no_thread():
    before = threads()
    values = prefetch(lambda index: index, 0, 1000)
    assert next(values) == 0
    assert threads() != before
    values.close()
    assert threads() == before

    def stopped() -> None:
        for value in prefetch(lambda index: index, 0, 1000):
            if value == 3:
                raise KeyError(value)

    with pytest.raises(KeyError):
        stopped()
    assert threads() == before
