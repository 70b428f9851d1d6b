"""Paired differences with numbers worked out by hand, and intervals that cover what they say."""

import numpy as np
import pytest

from spin_core.evaluation.statistics import COVERAGE, average, bootstrap, paired, sampled_means


def scored(values) -> dict[str, float]:
    return {str(place): float(value) for place, value in enumerate(values)}


def test_only_items_that_both_have_are_compared():
    mine, theirs = {"a": 1.0, "b": 3.0, "c": 9.0}, {"a": 0.0, "b": 1.0, "d": 5.0}
    difference = paired(mine, theirs)
    assert (difference.mean, difference.stderr) == (pytest.approx(1.5), pytest.approx(0.5))
    assert paired({"a": 1.0}, {"a": 0.0}) is None
    assert paired({}, theirs) is None


def test_the_difficulty_of_items_cancels_in_a_difference():
    hard = np.random.default_rng(0).normal(size=400)
    mine, theirs = scored(hard + 0.1), scored(hard)
    difference = paired(mine, theirs)
    assert difference.mean == pytest.approx(0.1)
    assert difference.stderr < 1e-12
    assert difference.interval() == (pytest.approx(0.1), pytest.approx(0.1))


@pytest.mark.parametrize("kind", ["answers right or wrong", "any number"])
def test_samples_vary_as_much_as_the_standard_error(kind):
    rng = np.random.default_rng(1)
    value_N = rng.integers(-1, 2, 500).astype(float) if kind.startswith("answers") else rng.exponential(size=500)
    means_S = bootstrap(value_N, 0)
    assert means_S.mean() == pytest.approx(value_N.mean(), abs=4 * value_N.std() / np.sqrt(500 * 2000))
    assert means_S.std() == pytest.approx(value_N.std() / np.sqrt(500), rel=0.06)


@pytest.mark.parametrize("n", [8, 10, 30])
def test_the_interval_holds_the_truth_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    stars = 0
    for trial in range(1000):
        low, high = paired(scored(rng.normal(size=n)), scored(np.zeros(n)), str(trial)).interval()
        stars += not low <= 0 <= high
    # 1000 draws of probability .05 have a standard deviation of .007. Percentiles alone would find .11 at 8 items.
    assert stars / 1000 == pytest.approx(1 - COVERAGE, abs=0.02)


@pytest.mark.parametrize("n", [10, 30, 300])
def test_the_interval_does_so_for_answers_that_are_right_or_wrong(n):
    rng = np.random.default_rng(n)
    stars = 0
    for trial in range(500):
        low, high = paired(
            scored(rng.choice([-1, 0, 1], n, p=[0.2, 0.6, 0.2])), scored(np.zeros(n)), str(trial)
        ).interval()
        stars += not low <= 0 <= high
    assert stars / 500 < 1 - COVERAGE + 0.03


def test_few_items_have_a_difference_and_no_interval():
    mine, theirs = scored([1, 2, 3, 4, 5]), scored([0, 1, 2, 3, 4])
    assert paired(mine, theirs).mean == 1
    assert paired(mine, theirs).interval() is None
    assert paired(mine | {"more": 6}, theirs | {"more": 5}).interval() == (1, 1)


@pytest.mark.parametrize("sizes", [[8, 8], [10, 200], [4] * 20])
def test_the_interval_of_an_average_holds_the_truth_as_often_as_it_says(sizes):
    rng = np.random.default_rng(len(sizes))
    stars = 0
    for trial in range(500):
        names = (f"{trial} {place}" for place in range(len(sizes)))
        parts = [
            paired(scored(rng.normal(size=n)), scored(np.zeros(n)), name) for n, name in zip(sizes, names, strict=True)
        ]
        low, high = average(parts).interval()
        stars += not low <= 0 <= high
    assert stars / 500 == pytest.approx(1 - COVERAGE, abs=0.03)


def test_the_same_items_give_the_same_interval_in_any_order():
    rng = np.random.default_rng(3)
    mine, theirs = scored(rng.normal(size=50)), scored(rng.normal(size=50))
    again = dict(reversed(mine.items()))
    assert paired(mine, theirs, "nll").interval() == paired(again, theirs, "nll").interval()
    assert paired(mine, theirs, "nll").interval() != paired(mine, theirs, "other").interval()


def test_an_average_is_the_mean_of_its_parts_and_their_errors_add_up_as_squares():
    rng = np.random.default_rng(4)
    few, many = rng.choice([0.0, 1.0], 100), rng.choice([-1.0, 0.0], 900)
    parts = [paired(scored(few), scored(np.zeros(100)), "a"), paired(scored(many), scored(np.zeros(900)), "b")]
    mean_difference = average(parts)
    assert mean_difference.mean == pytest.approx((few.mean() + many.mean()) / 2), (
        "each part counts alike, however many items"
    )
    assert mean_difference.stderr == pytest.approx(np.hypot(few.std(ddof=1) / 10, many.std(ddof=1) / 30) / 2)
    assert mean_difference.means_S.std() == pytest.approx(mean_difference.stderr, rel=0.06)
    low, high = mean_difference.interval()
    assert (high - low) / 2 == pytest.approx(1.96 * mean_difference.stderr, rel=0.08)


@pytest.mark.parametrize("at_once", [2**19, 500 * 300])
def test_several_values_of_an_item_are_sampled_together(monkeypatch, at_once):
    monkeypatch.setattr("spin_core.evaluation.statistics._VALUES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    first_N, own_N = rng.normal(size=500), rng.exponential(size=500)
    mean_SC = sampled_means(np.stack([first_N, first_N + 1, own_N]), seed=0)
    assert mean_SC.shape == (2001, 3)
    assert mean_SC[0] == pytest.approx([first_N.mean(), first_N.mean() + 1, own_N.mean()])
    assert mean_SC[:, 1] - mean_SC[:, 0] == pytest.approx(1)
    for value_N, mean_S in zip((first_N, own_N), mean_SC[1:, [0, 2]].T, strict=True):
        assert mean_S.mean() == pytest.approx(value_N.mean(), abs=4 * value_N.std() / np.sqrt(500 * 2000))
        assert mean_S.std() == pytest.approx(value_N.std() / np.sqrt(500), rel=0.06)
    assert abs(np.corrcoef(mean_SC[1:, 0], mean_SC[1:, 2])[0, 1]) < 0.15
