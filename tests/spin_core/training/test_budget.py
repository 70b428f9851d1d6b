"""How much of its data a training learns from, and for how long."""

import json

import numpy as np
import pytest

from spin_core.data.batches import DataOrder
from spin_core.data.sequences import read_token_ids
from spin_core.errors import DataError
from spin_core.lineage import controls
from spin_core.store.jobs import TrainJob
from spin_core.training.budget import in_share, steps_for
from tests.support.lineages.small_jobs import (
    data_of,
    random_pairs,
    random_prompts,
    random_train_job,
    run_job,
    score_job,
    train_job,
    version_of,
)

PROMPTS = [[number, number + 1] for number in range(400)]


def test_a_share_has_its_fraction_of_prompts_and_a_smaller_one_is_a_subset():
    small, large = in_share(PROMPTS, 0.25, 0), in_share(PROMPTS, 0.5, 0)
    assert 75 <= small.sum() <= 125
    assert 160 <= large.sum() <= 240
    assert not (small & ~large).any()
    assert (in_share(PROMPTS, 0.5, 1) != large).any()


def test_whether_a_prompt_is_in_a_share_does_not_depend_on_other_prompts():
    whole = in_share(PROMPTS, 0.5, 3)
    places = [7, 7, 300, 2, 7, 55]
    assert in_share([PROMPTS[place] for place in places], 0.5, 3).tolist() == whole[places].tolist()


def test_a_share_without_a_prompt_is_rejected():
    with pytest.raises(DataError, match=r"a share of 1e-12 leaves none of 400 rows to train on: raise it"):
        in_share(PROMPTS, 1e-12, 0)


@pytest.mark.parametrize(
    ("tokens", "steps"), [(1, 1), (10, 1), (14, 1), (15, 2), (20, 2), (26, 3), (30, 3), (40, 4), (50, 5)]
)
def test_steps_are_as_near_as_possible_to_the_tokens(tokens, steps):
    # Each step has 10 tokens; a tie goes to the shorter training only once it has a step.
    assert steps_for(tokens, np.full(3, 10), DataOrder(3, 1, 0)) == steps


def test_tokens_are_counted_in_the_order_in_which_they_are_trained_on():
    tokens_N, order = np.arange(1, 9), DataOrder(8, 3, 0)
    seen = np.cumsum([tokens_N[order.batch(step)].sum() for step in range(7)])
    assert [steps_for(int(count), tokens_N, order) for count in seen] == list(range(1, 8))


@pytest.fixture
def scored(tmp_path, tiny_model):
    """Pairs, scored under the tiny model."""
    start, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs", rows=40)
    return start, pairs, run_job(score_job(tmp_path / "scores", start, pairs))


def test_training_on_a_share_has_only_its_pairs_and_their_scores(tmp_path, scored):
    job = train_job(tmp_path, *scored)
    whole, part = data_of(job), data_of(job.model_copy(update={"share": 0.5}))
    kept = np.flatnonzero(in_share(read_token_ids(job.pairs.path / "pairs.parquet", "prompt_ids")[0], 0.5, 0))
    assert 0 < len(kept) < whole.items == 40
    assert part.items == len(kept)
    assert part.reference_2N.tolist() == whole.reference_2N[:, kept].tolist()
    assert part.tokens_of_items().tolist() == whole.tokens_of_items()[kept].tolist()


def test_fine_tuning_on_a_share_uses_the_same_prompts_as_spin(tmp_path, scored):
    start, pairs, scores = scored
    prompts = random_prompts(tmp_path / "prompts", rows=40)
    fields = {"start": start, "prompts": prompts, "share": 0.5, "t": 0, "output": tmp_path, "weights": tmp_path}
    game_job = train_job(tmp_path, start, pairs, scores)
    job = TrainJob(config=game_job.config.model_copy(update={"loss": "sft"}), model=game_job.model, **fields)
    mine = in_share(read_token_ids(prompts.path / "train.parquet", "prompt_ids")[0], 0.5, 0)
    theirs = in_share(read_token_ids(pairs.path / "pairs.parquet", "prompt_ids")[0], 0.5, 0)
    assert data_of(job).items == mine.sum()
    # The two files hold the same 40 prompts.
    assert mine.tolist() == theirs.tolist()


def test_a_training_for_a_number_of_tokens_is_within_half_a_step_of_it(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model).model_copy(update={"tokens": 1234})
    run = run_job(job)
    steps = [json.loads(line)["tokens"] for line in (run.path / controls.TIMING).read_text().splitlines()]
    assert len(steps) == run.steps > 3
    assert abs(controls.tokens_trained(run) - 1234) <= max(steps) / 2
