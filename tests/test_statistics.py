"""Paired differences with numbers worked out by hand, and intervals that cover what they say."""

import numpy as np
import pytest

from spin_core.statistics import COVERAGE, Difference, average, bootstrap, paired


def scored(values) -> dict[str, float]:
    return {str(place): float(value) for place, value in enumerate(values)}


def test_only_items_that_both_have_are_compared():
    mine, theirs = {"a": 1.0, "b": 3.0, "c": 9.0}, {"a": 0.0, "b": 1.0, "d": 5.0}
    found = paired(mine, theirs)
    assert (found.mean, found.stderr) == (pytest.approx(1.5), pytest.approx(0.5))
    assert paired({"a": 1.0}, {"a": 0.0}) is None
    assert paired({}, theirs) is None


def test_what_both_find_hard_cancels():
    hard = np.random.default_rng(0).normal(size=400)
    mine, theirs = scored(hard + 0.1), scored(hard)
    found = paired(mine, theirs)
    assert found.mean == pytest.approx(0.1)
    assert found.stderr < 1e-12
    assert found.interval() == (pytest.approx(0.1), pytest.approx(0.1))


@pytest.mark.parametrize("kind", ["answers right or wrong", "any number"])
def test_samples_spread_as_the_standard_error_says(kind):
    rng = np.random.default_rng(1)
    value_N = rng.integers(-1, 2, 500).astype(float) if kind.startswith("answers") else rng.exponential(size=500)
    means_S = bootstrap(value_N, 0)
    assert means_S.mean() == pytest.approx(value_N.mean(), abs=4 * value_N.std() / np.sqrt(500 * 2000))
    assert means_S.std() == pytest.approx(value_N.std() / np.sqrt(500), rel=0.06)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(300):
        low, high = Difference(0, 0, bootstrap(rng.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.7, 0.2]), trial)).interval()
        held += low <= 0.1 <= high
    # 300 draws of probability .95 have a standard deviation of .0126.
    assert held / 300 == pytest.approx(COVERAGE, abs=0.04)


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
    found = average(parts)
    assert found.mean == pytest.approx((few.mean() + many.mean()) / 2), "each part counts alike, however many items"
    assert found.stderr == pytest.approx(np.hypot(few.std(ddof=1) / 10, many.std(ddof=1) / 30) / 2)
    assert found.means_S.std() == pytest.approx(found.stderr, rel=0.06)
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(1.96 * found.stderr, rel=0.08)
