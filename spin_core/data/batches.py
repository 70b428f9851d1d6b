"""Which items each step trains on, and how they are cut into micro-batches and dealt out to ranks.

A micro-batch is what one forward and backward pass holds. How a batch is cut never changes the loss, because losses
are means over the batch's pairs. Everything here is index arithmetic over lengths; token ids are in `sequences.py`.

Shapes: B items of a batch (an item is all responses to one prompt), G groups of sequences that share a prompt.
"""

import heapq
from collections.abc import Iterator

import numpy as np

from spin_core.data.sequences import Ints

_SIMILAR_LENGTH = 0.9
"""Items of at least this share of the longest one's length go into one micro-batch. Measured: worth a fifth of a
step's time."""

_WORTH_A_PASS = 1 / 8
"""The share of the token budget that a micro-batch fills before it may end early."""


class DataOrder:
    """Which items each step trains on: a seeded permutation for each epoch, a function of the step alone."""

    def __init__(self, items: int | Ints, batch_size: int, seed: int) -> None:
        """Prepare the order.

        Args:
            items: how many items there are, or the indices of those to train on.
            batch_size: items in a step.
            seed: another seed gives another order.
        """
        self.items = np.arange(items) if isinstance(items, int) else items
        self.batch_size, self.seed = batch_size, seed
        assert len(self.items) > 0
        self.steps_in_epoch = -(-len(self.items) // batch_size)
        """The last step of an epoch may train on fewer items."""
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def batch(self, step: int) -> Ints:
        """Indices of the items that step `step` (from 0) trains on."""
        epoch, within = divmod(step, self.steps_in_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.items)
        return self._order[within * self.batch_size : (within + 1) * self.batch_size]


def micro_batches(lengths_B: Ints, rows_each: int, max_tokens: int) -> Iterator[Ints]:
    """Cut items into micro-batches of at most `max_tokens` tokens, padding included: indices, longest item first.

    A micro-batch also ends where items become much shorter than its first one, so that little is padding, but not
    before it is large enough to be worth a pass of its own. Equal lengths keep their order.

    Args:
        lengths_B: the tokens in a row of each item.
        rows_each: rows that an item takes. Each is padded to the longest item of its micro-batch.
        max_tokens: the budget. An item that is longer goes alone.
    """
    order = np.argsort(-lengths_B, kind="stable")
    # Ascending, as searchsorted needs it: the longest item is first and has the smallest negative length.
    negative_B = -lengths_B[order]
    start = 0
    while start < len(order):
        longest = max(1, -int(negative_B[start]))
        most = max(1, max_tokens // (longest * rows_each))
        least = max(1, int(max_tokens * _WORTH_A_PASS) // (longest * rows_each))
        similar = int(np.searchsorted(negative_B, -longest * _SIMILAR_LENGTH, side="right")) - start
        end = start + min(most, max(least, similar))
        if len(order) - end < least / 2:
            # What would be left is not worth a pass of its own.
            end = min(len(order), start + most)
        yield order[start:end]
        start = end


def deal(tokens_B: Ints, ranks: int, max_tokens: int) -> list[list[Ints]]:
    """Deal a batch's items out to ranks, for packed rows: for each rank its micro-batches, as indices of items.

    All ranks get the same number of micro-batches, because ranks wait for each other after every pass. Loads are as
    equal as dealing the longest items first makes them. A micro-batch is empty where there are fewer items than ranks.

    Args:
        tokens_B: the tokens of each item.
        ranks: how many ranks train together.
        max_tokens: the most tokens in a micro-batch. An item that is longer goes alone.
    """
    order = np.argsort(-tokens_B, kind="stable")
    # The fewest micro-batches a rank that hold the items: between the highest number known to be too low and the lowest
    # known to suffice. Steps that double, then halve, keep many items from taking quadratic time.
    too_few, each, step = -(-_fewest_bins(tokens_B, max_tokens) // ranks) - 1, 0, 1
    bins: list[list[int]] | None = None
    while bins is None or each - too_few > 1:
        middle = too_few + step if bins is None else (too_few + each) // 2
        filled = _fill_evenly(tokens_B, order, ranks * middle, max_tokens)
        if filled is None:
            too_few, step = middle, 2 * step
        else:
            bins, each = filled, middle
    parts = [np.array(sorted(items), np.int64) for items in bins]
    return [parts[rank::ranks] for rank in range(ranks)]


def _fewest_bins(tokens_B: Ints, max_tokens: int) -> int:
    """A number of bins below which the items cannot fit, at least 1: by their sum, and by how many fit in one bin.

    Of items that are longer than 1/n of a bin, at most n - 1 fit in it.
    """
    falling_B = np.sort(tokens_B.clip(max=max_tokens))[::-1]
    fewest = max(1, -(-int(falling_B.sum()) // max_tokens))
    for parts in range(2, 9):
        longer = int(np.searchsorted(-falling_B, -max_tokens / parts, side="left"))
        fewest = max(fewest, -(-longer // (parts - 1)))
    return fewest


def _fill_evenly(tokens_B: Ints, order: Ints, count: int, max_tokens: int) -> list[list[int]] | None:
    """The items of each bin, where each item in turn goes into the bin with the smallest load.

    Returns None if a bin of several items exceeds `max_tokens`.
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, index) for index in range(count)]
    for item in order:
        load, index = heapq.heappop(loads)
        load += int(tokens_B[item])
        if bins[index] and load > max_tokens:
            return None
        bins[index].append(int(item))
        heapq.heappush(loads, (load, index))
    return bins


def deal_padded(lengths_B: Ints, sides: int, ranks: int, max_tokens: int) -> list[list[Ints]]:
    """As `deal`, for padded rows: items of similar length go to all ranks in turn.

    Args:
        lengths_B: the longest row of each item, in tokens.
        sides: rows that an item takes.
        ranks: how many ranks train together.
        max_tokens: the most tokens in a micro-batch, padding included. An item that is longer goes alone.
    """
    order = np.argsort(-lengths_B, kind="stable")
    shares = [order[rank::ranks] for rank in range(ranks)]
    parts = [[share[cut] for cut in micro_batches(lengths_B[share], sides, max_tokens)] for share in shares]
    most = max(map(len, parts))
    return [part + [np.zeros(0, np.int64)] * (most - len(part)) for part in parts]


def assign_ranks(tokens_G: Ints, ranks: int) -> Ints:
    """The rank of each group, (G,), with loads as equal as dealing the groups of most tokens first makes them."""
    rank_G = np.empty(len(tokens_G), np.int64)
    loads = [(0, rank) for rank in range(ranks)]
    for group in np.argsort(-tokens_G, kind="stable"):
        load, rank_G[group] = loads[0]
        heapq.heapreplace(loads, (load + int(tokens_G[group]), int(rank_G[group])))
    return rank_G
