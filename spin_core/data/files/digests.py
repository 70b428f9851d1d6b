"""Digests that stand for texts and token ids, so that many rows can be compared in little memory.

Among a million rows, two have the same digest of 64 bits once in some 40 million times. These serve where that costs
one row, a count that is off by one, or an error (ids have 64 bits themselves). Elsewhere digests have 128 bits.

Shapes: N rows.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from spin_core.data.sequences import Ints

Digests = npt.NDArray[np.uint64]


def digest_of(data: bytes) -> int:
    """A digest of 64 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def digests_of(rows: Iterable[bytes]) -> Digests:
    """The digest of each row, (N,)."""
    return np.fromiter(map(digest_of, rows), np.uint64)


def long_digests_of(rows: Iterable[bytes]) -> Digests:
    """Digests of 128 bits, (N, 2)."""
    joined = bytearray()
    for row in rows:
        joined += hashlib.blake2b(row, digest_size=16).digest()
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def number_by_appearance(digests_N2: Digests) -> tuple[Ints, Ints]:
    """Number the different digests in order of their first appearance.

    Returns:
        The number of each row, (N,), and the first row that has each number.
    """
    order = np.lexsort((np.arange(len(digests_N2)), digests_N2[:, 1], digests_N2[:, 0]))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (digests_N2[order[1:]] != digests_N2[order[:-1]]).any(axis=1)
    # `lexsort` puts the earliest of equal rows first.
    first = order[is_new]
    by_appearance = np.argsort(first)
    number_of_group = np.empty(len(first), np.int64)
    number_of_group[by_appearance] = np.arange(len(first))
    numbers_N = np.empty(len(order), np.int64)
    numbers_N[order] = number_of_group[np.cumsum(is_new) - 1]
    return numbers_N, first[by_appearance]


class DigestSet:
    """A set of 64-bit digests in sorted arrays: eight bytes for each, where a Python set takes a hundred."""

    def __init__(self) -> None:
        """An empty set."""
        self._parts: list[Digests] = []

    def contains(self, digests_N: Digests) -> npt.NDArray[np.bool_]:
        """Which of these are in the set, (N,)."""
        is_member_N = np.zeros(len(digests_N), bool)
        for part in self._parts:
            positions = np.searchsorted(part, digests_N).clip(max=len(part) - 1)
            is_member_N |= part[positions] == digests_N
        return is_member_N

    def add(self, digests_N: Digests) -> None:
        """Add digests. Arrays of similar length are merged, so that there are few."""
        if not len(digests_N):
            return
        new = np.unique(digests_N)
        while self._parts and len(self._parts[-1]) < 2 * len(new):
            new = np.unique(np.concatenate([self._parts.pop(), new]))
        self._parts.append(new)


def count_before(digests_N: Digests) -> Ints:
    """How many equal digests come before each one, (N,)."""
    order = np.argsort(digests_N, kind="stable")
    sorted_N = digests_N[order]
    before_N = np.empty(len(order), np.int64)
    before_N[order] = np.arange(len(order)) - np.searchsorted(sorted_N, sorted_N)
    return before_N


def rows_by_id(prompts_N: Digests, answers_M: Digests, each: int) -> Ints:
    """For each prompt the rows of its `each` answers, (N, each), matched by the digests of their ids; -1 for none.

    Where several prompts have the same id, the first of them gets the first answers to that id, and so on.
    """
    if not len(answers_M):
        return np.full((len(prompts_N), each), -1)
    order_M = np.argsort(answers_M, kind="stable")
    sorted_M = answers_M[order_M]
    begin_N, end_N = np.searchsorted(sorted_M, prompts_N), np.searchsorted(sorted_M, prompts_N, side="right")
    at = (begin_N + count_before(prompts_N) * each)[:, None] + np.arange(each)
    return np.where(at < end_N[:, None], order_M[at.clip(max=len(order_M) - 1)], -1)
