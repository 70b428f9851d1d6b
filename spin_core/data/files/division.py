"""Which examples are trained on, and which are held out.

The division depends on each prompt's id and the seed, and on nothing else. So rows that are added to the source later
move as few prompts as possible from one side to the other, and a smaller sample is part of a larger one.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from spin_core.data.drops import Drops
from spin_core.data.examples import random_rank, sample
from spin_core.errors import DataError
from spin_core.store.jobs import PromptsJob


class Division(NamedTuple):
    """Rows to train on and rows to hold out, in their order."""

    train: list[int]
    held_out: list[int]
    """Rows of the held-out source, if there is one."""
    drops: Drops
    """How many rows are in neither, by reason."""


def divide_rows(job: PromptsJob, ids: Sequence[str], other_ids: Sequence[str] | None) -> Division:
    """Divide examples, and sample from those to train on.

    Held-out prompts come from a source of their own where the configuration names one; the training prompts then lose
    those that are in it.

    Args:
        job: says how many prompts to hold out and to sample.
        ids: the id of each example of the source.
        other_ids: the id of each example of the held-out source; None without one.

    Raises:
        DataError: there are too few prompts.
    """
    config = job.config
    if other_ids is None:
        train, held_out, left_out = _split(ids, config.held_out, job.seed, leave=1)
    else:
        _, held_out, _ = _split(other_ids, config.held_out, job.seed, leave=0)
        chosen = {other_ids[row] for row in held_out}
        train = [row for row, id in enumerate(ids) if id not in chosen]
        left_out = Counter({"in-held-out": len(ids) - len(train)})
    if config.sample is not None:
        kept = sample([ids[row] for row in train], config.sample, job.seed)
        left_out["not-sampled"] += len(train) - len(kept)
        train = [train[row] for row in kept]
    return Division(train, held_out, left_out)


def _split(ids: Sequence[str], held_out: int, seed: int, *, leave: int) -> tuple[list[int], list[int], Drops]:
    """Rows to train on, rows to hold out with one response to each prompt, and how many other responses were dropped.

    Raises `DataError` if fewer than `leave` prompts would be left for training.
    """
    first_by_id: dict[str, int] = {}
    for row, id in enumerate(ids):
        first_by_id.setdefault(id, row)
    most = len(first_by_id) - leave
    if most < held_out:
        cure = f"lower it to at most {most}" if most > 0 else "give more rows"
        raise DataError(
            f"prompts.held_out is {held_out}, but there are only {len(first_by_id)} different prompts: {cure}"
        )
    chosen = set(sorted(first_by_id, key=lambda id: random_rank(id, seed))[:held_out])
    train = [row for row, id in enumerate(ids) if id not in chosen]
    kept_out = [row for row, id in enumerate(ids) if id in chosen and first_by_id[id] == row]
    return train, kept_out, Counter({"other-response-held-out": len(ids) - len(train) - len(kept_out)})
