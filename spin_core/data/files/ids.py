"""Ids of examples as numbers, and random choices among them.

An example's id is 16 hexadecimal digits, so that it fits into 64 bits: eight bytes, where a string takes seventy.

Shapes: N examples.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from spin_core.data.sequences import Ints

Ids = npt.NDArray[np.uint64]


def numbers_of(ids: Iterable[str]) -> Ids:
    """The ids as numbers, (N,)."""
    return np.fromiter((int(id, 16) for id in ids), np.uint64)


def random_ranks(ids_N: Ids, seed: int) -> Ids:
    """Numbers that put ids in a random order: the same on every machine, and whatever other ids there are."""
    texts = (f"{seed}:{id:016x}".encode() for id in ids_N.tolist())
    return np.fromiter((int.from_bytes(hashlib.sha256(text).digest()[:8], "big") for text in texts), np.uint64)


def sample(ids_N: Ids, size: int, seed: int) -> Ints:
    """The rows of a random sample, in their order, or all if there are fewer.

    Chosen by each row's id and the seed alone, so that a smaller sample is part of a larger one.
    """
    return np.sort(np.argsort(random_ranks(ids_N, seed), kind="stable")[:size])
