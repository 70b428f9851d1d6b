"""Gaps to a curve over temperatures, worked out by hand, and intervals that hold as often as they say."""

import numpy as np
import pytest

from spin_core.evaluation.frontier import curves
from spin_core.evaluation.frontier.curves import Gap, interpolation, offer, verdict
from spin_core.evaluation.statistics import sampled_means

TEMPERATURES = np.array([0.3, 0.5, 0.7, 0.9, 1.1])


def x_of(temperature):
    """A distance that is least at temperature 0.9."""
    return 0.1 + (temperature - 0.9) ** 2


def y_of(temperature):
    """A mass of wrong answers that rises with the temperature."""
    return 0.02 * temperature**2


def curve(items: int, noise=0.0) -> tuple[np.ndarray, np.ndarray]:
    """θ_0's values, (K, N) each: items differ, in the same way at all temperatures."""
    shape = (len(TEMPERATURES), items)
    x_KN, y_KN = (np.broadcast_to(of(TEMPERATURES)[:, None], shape) + noise for of in (x_of, y_of))
    return x_KN, y_KN


def gaps(x_KN, y_KN, x_MN, y_MN, seed: int = 0, samples: int = 2000) -> list[Gap]:
    """The gaps of models to a curve, from the values of single items."""
    parts = [x_KN, y_KN, x_MN, y_MN]
    mean_SC = sampled_means(np.concatenate(parts), seed, samples)
    means = np.split(mean_SC, np.cumsum([len(part) for part in parts])[:-1], axis=1)
    return curves.gaps(TEMPERATURES, *means, items=x_KN.shape[1])


def gap_of(x: float, y: float, items: int = 8) -> Gap:
    """The gap of a model that has the same values at all items."""
    (gap,) = gaps(*curve(items), np.full((1, items), x), np.full((1, items), y), samples=50)
    return gap


# Interpolation.


def test_a_cubic_is_interpolated_exactly_between_uneven_temperatures():
    temperatures = np.array([0.2, 0.3, 0.5, 0.6, 1.0, 1.3])
    at_D, weight_DK = interpolation(temperatures)

    def cubic(t):
        return 1 - 2 * t + 3 * t**2 - 0.5 * t**3

    assert weight_DK @ cubic(temperatures) == pytest.approx(cubic(at_D), abs=1e-12)
    assert np.all(np.diff(at_D) > 0)


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_curve_passes_through_its_measured_points(count):
    temperatures = np.linspace(0.3, 1.1, count)
    value_K = np.random.default_rng(0).normal(size=count)
    at_D, weight_DK = interpolation(temperatures)
    for temperature, value in zip(temperatures, value_K, strict=True):
        assert (weight_DK @ value_K)[np.abs(at_D - temperature).argmin()] == pytest.approx(value, abs=1e-12)


# What a curve offers.


def offered(x: float) -> tuple[float, float]:
    """From a curve of three points, whose x falls and then rises."""
    x_SD, y_SD, at_D = np.array([[0.4, 0.2, 0.3]]), np.array([[0.0, 0.1, 0.3]]), np.array([0.5, 0.7, 0.9])
    y_S, at_S = offer(x_SD, y_SD, np.array([x]), at_D)
    return y_S[0], at_S[0]


def test_the_better_of_two_temperatures_with_the_same_x_is_offered():
    # Both 0.6 and 0.9 have x = 0.3; y is 0.05 and 0.3 there.
    assert offered(0.3) == (pytest.approx(0.05), pytest.approx(0.6))


def test_outside_the_curve_its_end_is_offered():
    assert offered(0.1) == (pytest.approx(0.1), pytest.approx(0.7))
    assert offered(0.5) == (0.0, 0.5)


# Gaps.


@pytest.mark.parametrize("temperature", [0.3, 0.42, 0.6, 0.7, 0.85])
def test_a_model_on_the_curve_has_no_gap(temperature):
    gap = gap_of(x_of(temperature), y_of(temperature))
    assert gap.delta == pytest.approx(0, abs=2e-5)
    assert gap.temperature == pytest.approx(temperature, abs=1e-3)
    assert gap.reach == "inside"


def test_a_model_below_the_curve_has_its_distance_as_gap():
    gap = gap_of(x_of(0.6), y_of(0.6) - 0.003)
    assert gap.delta == pytest.approx(-0.003, abs=2e-5)
    assert (gap.stderr, gap.low, gap.high) == (pytest.approx(0), pytest.approx(gap.delta), pytest.approx(gap.delta))
    assert verdict(gap) == "below"
    assert verdict(gap_of(x_of(0.6), y_of(0.6) + 0.003)) == "above"


def test_beyond_the_curve_only_below_can_be_said():
    lower, higher = gap_of(0.05, y_of(0.9) - 0.001), gap_of(0.05, y_of(0.9) + 0.001)
    assert lower.reach == higher.reach == "beyond"
    assert lower.delta == pytest.approx(-0.001)
    assert lower.temperature == pytest.approx(0.9)
    assert (verdict(lower), verdict(higher)) == ("below", "")


def test_where_the_sweep_is_too_short_only_above_can_be_said():
    lower, higher = gap_of(0.6, y_of(0.3) - 0.001), gap_of(0.6, y_of(0.3) + 0.001)
    assert lower.reach == higher.reach == "short"
    assert (verdict(lower), verdict(higher)) == ("", "above")


def test_what_all_items_share_cancels_in_a_difference():
    noise_N = np.random.default_rng(0).normal(size=200)
    x_KN, y_KN = curve(200, noise=0.02 * noise_N)
    x_1N, y_1N = (np.array([of(0.6) + 0.02 * noise_N]) for of in (x_of, y_of))
    (gap,) = gaps(x_KN, y_KN, x_1N, y_1N - 0.001)
    assert gap.delta == pytest.approx(-0.001, abs=2e-5)
    assert gap.stderr < 1e-5
    # Noise of the model alone stays: in y as it is, and in x times the curve's slope, 0.024 / -0.6 at 0.6.
    own_N = np.random.default_rng(1).normal(size=(2, 200))
    (gap,) = gaps(x_KN, y_KN, x_1N + 0.01 * own_N[:1], y_1N + 0.01 * own_N[1:])
    assert gap.stderr == pytest.approx(np.hypot(0.01, 0.01 * 0.024 / 0.6) / np.sqrt(200), rel=0.15)


def test_too_few_items_have_no_interval_and_no_verdict():
    gap = gap_of(x_of(0.6), y_of(0.6) - 0.003, items=5)
    assert (gap.low, gap.high, verdict(gap)) == (None, None, "")


def test_more_models_have_wider_intervals():
    rng = np.random.default_rng(0)
    x_KN, y_KN = curve(100, noise=0.0)
    x_MN, y_MN = (np.full((8, 100), of(0.6)) + 0.01 * rng.normal(size=(8, 100)) for of in (x_of, y_of))
    (alone,) = gaps(x_KN, y_KN, x_MN[:1], y_MN[:1])
    together = gaps(x_KN, y_KN, x_MN, y_MN)[0]
    assert (alone.delta, alone.stderr) == (together.delta, pytest.approx(together.stderr))
    # The normal quantiles of .975 and, for eight independent models, of (1 + .95^(1/8)) / 2.
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(2.73 / 1.96, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("items", [30, 300])
def test_all_intervals_together_hold_the_truth_as_often_as_they_say(items):
    """Models on the curve of the population of items, with items of their own difficulty and the model's own noise."""
    rng, clear, trials = np.random.default_rng(7), 0, 600
    for trial in range(trials):
        hard_N = rng.gamma(2.0, 0.5, items)
        x_KN, y_KN = (of(TEMPERATURES)[:, None] * hard_N for of in (x_of, y_of))
        x_KN = x_KN + 0.03 * rng.normal(size=items)
        used = np.array([0.5, 0.6, 0.75])[:, None]
        x_MN, y_MN = (of(used) * hard_N for of in (x_of, y_of))
        x_MN, y_MN = (
            value_MN + size * rng.normal(size=value_MN.shape) for value_MN, size in ((x_MN, 0.05), (y_MN, 0.01))
        )
        intervals = gaps(x_KN, y_KN, x_MN, y_MN, seed=trial, samples=500)
        clear += any(verdict(gap) for gap in intervals)
    # 600 draws of probability .05 have a standard deviation of .009.
    assert clear / trials == pytest.approx(0.05, abs=0.027)
