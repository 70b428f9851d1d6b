"""How much two models differ on the same items, and how sure that is.

The items are the same, so their differences are what varies: a model's own spread over easy and hard items cancels.

    N  items that both models have
    S  bootstrap samples
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAMPLES = 2000
"""Bootstrap samples: an end of a 95 % interval then varies by a twentieth of its width."""

COVERAGE = 0.95

FEWEST = 6
"""Items without which there is no interval: fewer do not say how much others would differ."""

NORMAL = 1.96
"""Standard errors to each side that hold a value with 95 % probability, where the error itself is well known."""

SURE = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The same where the error rests on 1, 2, 3, … degrees of freedom: Student's t."""

FEW = 16
"""Up to so many different values are resampled by how often each comes, which does not grow with the items."""

ROOM = 2**19
"""Values that are drawn at a time."""


class Difference(NamedTuple):
    """A mean difference. `means_S` are means of samples of the items, which spread about it by its standard error."""

    mean: float
    stderr: float
    means_S: Floats
    free: float
    """Degrees of freedom of the standard error: of N items N - 1."""

    def interval(self) -> tuple[float, float] | None:
        """The percentile interval that holds the mean with probability `COVERAGE`; None of fewer than `FEWEST` items.

        Items spread less than what they were drawn from, and the fewer they are the more so: percentiles alone would
        leave out the mean in 15 % of cases with six items, and in 10 % with ten. Student's t mends that.
        """
        if self.free < FEWEST - 1:
            return None
        ends = np.quantile(self.means_S, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        low, high = self.mean + sure(self.free) / NORMAL * (ends - self.mean)
        return float(low), float(high)


def sure(free: float) -> float:
    """Standard errors to each side that hold a mean with 95 % probability, by the error's degrees of freedom."""
    return SURE[int(free) - 1] if free < len(SURE) + 1 else NORMAL + 2.37 / free + 2.9 / free**2


def paired(mine: Mapping[str, float], theirs: Mapping[str, float], name: str = "") -> Difference | None:
    """Mean of mine less theirs over the items both have; None with fewer than two.

    The samples are seeded by the score's `name`, so that equal items give equal intervals, and those of two scores are
    drawn apart.
    """
    shared = sorted(mine.keys() & theirs.keys())
    n = len(shared)
    if n < 2:
        return None
    difference_N = np.array([mine[item] - theirs[item] for item in shared])
    mean, stderr = float(difference_N.mean()), float(difference_N.std(ddof=1) / np.sqrt(n))
    means_S = bootstrap(difference_N, zlib.crc32(name.encode()))
    # Samples of the items spread as their variance over N, and not over N - 1.
    return Difference(mean, stderr, mean + np.sqrt(n / (n - 1)) * (means_S - mean), n - 1)


def bootstrap(value_N: Floats, seed: int) -> Floats:
    """Means of samples of the values, (S,)."""
    rng = np.random.default_rng(seed)
    value_K, count_K = np.unique(value_N, return_counts=True)
    if len(value_K) <= FEW:
        count_SK = rng.multinomial(len(value_N), count_K / len(value_N), size=SAMPLES)
        return np.asarray(count_SK @ value_K / len(value_N))
    at_once = max(1, ROOM // len(value_N))
    sizes = [min(at_once, SAMPLES - start) for start in range(0, SAMPLES, at_once)]
    items = (rng.integers(len(value_N), size=(size, len(value_N)), dtype=np.int32) for size in sizes)
    return np.concatenate([value_N[item_SN].mean(1) for item_SN in items])


def average(parts: Sequence[Difference]) -> Difference:
    """The difference of the parts' plain mean. Parts have items of their own, so each is sampled by itself.

    Its degrees of freedom are Welch's: those of the part that weighs most, and more where several do.
    """
    variance = sum(part.stderr**2 for part in parts)
    spread = sum(part.stderr**4 / part.free for part in parts)
    return Difference(
        float(np.mean([part.mean for part in parts])),
        float(np.sqrt(variance) / len(parts)),
        np.mean([part.means_S for part in parts], axis=0),
        variance**2 / spread if spread else sum(part.free for part in parts),
    )
