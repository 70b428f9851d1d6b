"""Whether models are below another model's curve over temperatures, on two axes on which lower is better.

The curve is θ_0's, say: at K temperatures it has a mean x(T) and a mean y(T) over the same N items. What it offers to
a reader who wants at most x is

    f(x) = min { y(T) : x(T) <= x }

which, where y falls while x rises, is y at the temperature that gives the same x. A model at (x', y') has the gap

    y' - f(x')        negative: below the curve, so no temperature of θ_0 is as good

All means are over the same items, so they are sampled together: each bootstrap sample has its own curve, finds its own
temperature on it and takes the gap there. So the error of a gap includes that of the curve, of the temperature and of
the model, and what the items have in common cancels.

Several models are compared with one curve. Their intervals are so wide that all of them together hold with probability
95 %: by the largest studentised gap of each bootstrap sample. The gaps share items and a curve, so this asks for less
than Bonferroni's correction. A gap has one of three reaches:

    inside    the curve has this x
    beyond    no temperature has such a low x. The gap is to the curve's least x, where y is lower than it would have to
              be: a model below that is below the curve, and one above it is not comparable
    short     all temperatures have a lower x. One outside the sweep might have a lower y too: a model above the curve
              is above it, and one below it is not comparable

    N  items
    K  temperatures measured
    D  temperatures on a finer grid, between which the curve is straight
    M  models
    S  the mean over all items, and those over bootstrap samples of them
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spin_core.evaluation.statistics import COVERAGE, FEWEST, NORMAL, t_quantile

Floats = NDArray[np.float64]

Reach = Literal["inside", "beyond", "short"]

_STEPS = 8
"""Steps of the fine grid between two temperatures: the error of straight lines falls with their square."""

_ROUNDING = 1e-9
"""Means that differ by less are equal: the same values added in another order."""


@dataclass(frozen=True)
class Gap:
    """How far a model is above the curve; negative is below it, which is better."""

    delta: float
    stderr: float
    low: float | None
    high: float | None
    """The ends of its simultaneous 95 % interval; None with too few items."""
    temperature: float
    """Where on the curve it is compared."""
    reach: Reach


def gaps(temperature_K: Floats, x_SK: Floats, y_SK: Floats, x_SM: Floats, y_SM: Floats, *, items: int) -> list[Gap]:
    """Return each model's gap to the curve, with intervals that hold together.

    All means are rows of `statistics.sampled_means` over the same items: first over all of them, then over samples.

    Args:
        temperature_K: The temperatures of the curve, rising.
        x_SK: The curve's means on the axis that is held equal; lower is better.
        y_SK: The same on the axis that is compared.
        x_SM: The models' means on the first axis, each at its temperature of use.
        y_SM: The same on the second.
        items: How many items they are means of.
    """
    temperature_D, weight_DK = interpolation(temperature_K)
    x_SD, y_SD = x_SK @ weight_DK.T, y_SK @ weight_DK.T
    offers = [offer(x_SD, y_SD, x_S, temperature_D) for x_S in x_SM.T]
    gap_SM = y_SM - np.stack([y_S for y_S, _ in offers], axis=1)
    gap_M, sample_SM = gap_SM[0], gap_SM[1:]
    # Bootstrap samples vary by the variance over N; the standard error has it over N - 1.
    error_M = sample_SM.std(0) * np.sqrt(items / (items - 1))
    width_M = _width(sample_SM - gap_M, items) * error_M
    result = []
    for model, (_, temperature_S) in enumerate(offers):
        delta, at, width = float(gap_M[model]), float(temperature_S[0]), float(width_M[model])
        low, high = (delta - width, delta + width) if items >= FEWEST else (None, None)
        reach = _reach(float(x_SM[0, model]), x_SD[0], at_first=at == temperature_D[0])
        result.append(Gap(delta, float(error_M[model]), low, high, at, reach))
    return result


def verdict(gap: Gap) -> Literal["below", "above", ""]:
    """Whether a gap is significant: on which side of the curve the model is, with all models' intervals together."""
    if gap.high is not None and gap.high < 0 and gap.reach != "short":
        return "below"
    if gap.low is not None and gap.low > 0 and gap.reach != "beyond":
        return "above"
    return ""


def interpolation(temperature_K: Floats) -> tuple[Floats, Floats]:
    """Return a finer grid, (D,), and the weights, (D, K), that interpolate measured values on it.

    A cubic through the four nearest temperatures: a line through two would pass above a convex curve, so that models
    would seem to be below it. The weights are the same for every quantity, so means of interpolated values are
    interpolated means.
    """
    last = len(temperature_K) - 1
    grid, rows = [temperature_K[:1]], [np.eye(last + 1)[:1]]
    for left, (low, high) in enumerate(pairwise(temperature_K)):
        nodes = np.arange(max(0, min(left - 1, last - 3)), min(last, max(left + 2, 3)) + 1)
        at_G = np.linspace(low, high, _STEPS + 1)[1:]
        weight_GK = np.zeros((_STEPS, last + 1))
        for node in nodes:
            others = temperature_K[nodes[nodes != node]]
            # Lagrange's polynomials: 1 at this temperature, 0 at the others.
            weight_GK[:, node] = np.prod((at_G[:, None] - others) / (temperature_K[node] - others), axis=1)
        grid.append(at_G)
        rows.append(weight_GK)
    return np.concatenate(grid), np.concatenate(rows)


def offer(x_SD: Floats, y_SD: Floats, x_S: Floats, temperature_D: Floats) -> tuple[Floats, Floats]:
    """Return f(x), the least y of each curve where its x is at most that, and the temperature there: (S,) each.

    Where a curve has no such x: its y at its least x.
    """
    enough_SD = x_SD <= x_S[:, None]
    at_nodes_SD = np.where(enough_SD, y_SD, np.inf)
    # Between two points of the grid on different sides, the curve crosses x.
    crosses_SD = enough_SD[:, 1:] != enough_SD[:, :-1]
    step_SD = np.where(crosses_SD, np.diff(x_SD), 1.0)
    share_SD = np.where(crosses_SD, (x_S[:, None] - x_SD[:, :-1]) / step_SD, 0.0)
    at_crossings_SD = np.where(crosses_SD, y_SD[:, :-1] + share_SD * np.diff(y_SD), np.inf)
    candidates = np.concatenate([at_nodes_SD, at_crossings_SD], axis=1)
    temperatures = np.concatenate(
        [np.broadcast_to(temperature_D, x_SD.shape), temperature_D[:-1] + share_SD * np.diff(temperature_D)], axis=1
    )
    best_S = np.where(enough_SD.any(1), candidates.argmin(1), x_SD.argmin(1))
    row_S = np.arange(len(best_S))
    y_S = np.where(enough_SD.any(1), candidates[row_S, best_S], y_SD[row_S, x_SD.argmin(1)])
    return y_S, temperatures[row_S, best_S]


def _reach(x: float, x_D: Floats, *, at_first: bool) -> Reach:
    """Whether the curve has this x; `at_first` says that its lowest temperature offers the least y."""
    if x < x_D.min() - _ROUNDING:
        return "beyond"
    return "short" if at_first and x > x_D[0] + _ROUNDING else "inside"


def _width(deviation_SM: Floats, items: int) -> float:
    """Standard errors on each side of every interval, so that all of them together hold with probability `COVERAGE`."""
    spread_M = deviation_SM.std(0)
    studentised_SM = np.abs(deviation_SM) / np.where(spread_M > 0, spread_M, 1.0)
    largest_S = studentised_SM.max(1, initial=0.0)
    # As for a single interval, few items need Student's t in place of the normal distribution.
    return float(np.quantile(largest_S, COVERAGE)) * t_quantile(items - 1) / NORMAL
