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

FEW = 16
"""Up to so many different values are resampled by how often each comes, which does not grow with the items."""

ROOM = 2**19
"""Values that are drawn at a time."""


class Difference(NamedTuple):
    """A mean difference. `means_S` are the means of samples of the items, drawn with replacement."""

    mean: float
    stderr: float
    means_S: Floats

    def interval(self) -> tuple[float, float]:
        """The percentile interval that holds the mean with probability `COVERAGE`."""
        low, high = np.quantile(self.means_S, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return float(low), float(high)


def paired(mine: Mapping[str, float], theirs: Mapping[str, float], name: str = "") -> Difference | None:
    """Mean of mine less theirs over the items both have; None with fewer than two.

    The samples are seeded by the score's `name`, so that equal items give equal intervals, and those of two scores are
    drawn apart.
    """
    shared = sorted(mine.keys() & theirs.keys())
    if len(shared) < 2:
        return None
    difference_N = np.array([mine[item] - theirs[item] for item in shared])
    stderr = float(difference_N.std(ddof=1) / np.sqrt(len(shared)))
    return Difference(float(difference_N.mean()), stderr, bootstrap(difference_N, zlib.crc32(name.encode())))


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
    """The difference of the parts' plain mean. Parts have items of their own, so each is sampled by itself."""
    return Difference(
        float(np.mean([part.mean for part in parts])),
        float(np.sqrt(sum(part.stderr**2 for part in parts)) / len(parts)),
        np.mean([part.means_S for part in parts], axis=0),
    )
