"""Which examples are trained on, and which are held out.

The division depends on each prompt's id and the seed, and on nothing else. So rows that are added to the source later
move as few prompts as possible from one side to the other, and a smaller sample is part of a larger one.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from spin_core.data.drops import Drops, explain_drops
from spin_core.data.files.ids import Ids, random_ranks, sample
from spin_core.data.sequences import Ints
from spin_core.errors import DataError, count
from spin_core.store.jobs import PromptsJob


class Division(NamedTuple):
    """Rows to train on and rows to hold out, in their order."""

    train: Ints
    held_out: Ints
    """Rows of the held-out source, if there is one."""
    drops: Drops
    """How many rows are in neither, by reason."""


def divide_rows(job: PromptsJob, ids_N: Ids, other_ids: Ids | None, dropped: Drops) -> Division:
    """Divide examples, and sample from those to train on.

    Held-out prompts come from a source of their own where the configuration names one; the training prompts then lose
    those that are in it.

    Args:
        job: says how many prompts to hold out and to sample.
        ids_N: the id of each example of the source.
        other_ids: the id of each example of the held-out source; None without one.
        dropped: rows of the source that were left out before, by reason, for messages.

    Raises:
        DataError: there are too few prompts.
    """
    config = job.config
    if other_ids is None:
        train, held_out, left_out = _split(ids_N, config.held_out, job.seed, dropped, leave=1)
    else:
        _, held_out, _ = _split(other_ids, config.held_out, job.seed, Counter(), leave=0)
        train = np.flatnonzero(~np.isin(ids_N, other_ids[held_out]))
        left_out = Counter({"in-held-out": len(ids_N) - len(train)})
    if config.sample is not None:
        kept = sample(ids_N[train], config.sample, job.seed)
        left_out["not-sampled"] += len(train) - len(kept)
        train = train[kept]
    return Division(train, held_out, left_out)


def _split(ids_N: Ids, held_out: int, seed: int, dropped: Drops, *, leave: int) -> tuple[Ints, Ints, Drops]:
    """Rows to train on, rows to hold out with one response to each prompt, and how many other responses were dropped.

    Raises `DataError` if fewer than `leave` prompts would be left for training.
    """
    different, first = np.unique(ids_N, return_index=True)
    most = len(different) - leave
    if most < held_out:
        fix = f"lower it to at most {most}" if most > 0 else "give more rows"
        raise DataError(
            f"prompts.held_out is {held_out}, but the data have only {count(len(different), 'different prompt')}"
            f"{explain_drops(dropped)}: {fix}"
        )
    chosen = np.argsort(random_ranks(different, seed), kind="stable")[:held_out]
    train = np.flatnonzero(~np.isin(ids_N, different[chosen]))
    left_out = len(ids_N) - len(train) - len(chosen)
    return train, np.sort(first[chosen]), Counter({"other-response-held-out": left_out})
