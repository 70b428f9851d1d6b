"""Of how much of its data a training learns, and for how long: what makes two trainings comparable.

Shapes: P responses to each item's prompt, B items of a batch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spin_core.config.base import at
from spin_core.data.batches import DataOrder
from spin_core.data.sequences import Ints, Sequences, TokenIds
from spin_core.errors import DataError
from spin_core.store.jobs import TrainJob


def in_share(prompt_ids: Sequence[TokenIds], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which items belong to about `share` of all prompts, (N,).

    It hangs on each prompt's tokens and the seed alone. So pairs and SFT data that are cut alike are about the same
    prompts, whatever was dropped from either, and a smaller share lies within a larger one. `DataError` if none does.
    """
    limit = int(share * 2**64)
    said = (f"share:{seed}:".encode() + np.asarray(ids).astype("<i8").tobytes() for ids in prompt_ids)
    found = np.array([int.from_bytes(hashlib.sha256(text).digest()[:8], "big") < limit for text in said], dtype=bool)
    if not found.any():
        raise DataError(f"a share of {share:g} leaves none of {len(prompt_ids)} rows to train on: raise it")
    return found


def steps_planned(job: TrainJob, sequences: Sequences, sides: int, order: DataOrder) -> int:
    """How many steps a training takes: as many as it is told, or as come nearest to its tokens, or its epochs."""
    if job.steps is not None:
        return job.steps
    if job.tokens is None:
        return at(job.config.epochs, max(job.t, 0)) * order.steps_in_epoch
    return steps_for(job.tokens, sequences.lengths_S.reshape(sides, -1).sum(axis=0), order)


def steps_for(tokens: int, tokens_N: Ints, order: DataOrder) -> int:
    """The number of steps, at least 1, after which the tokens of the items seen come nearest to `tokens`."""
    step, seen = 0, 0
    while True:
        batch = int(tokens_N[order.batch(step)].sum())
        if step and seen + batch - tokens > tokens - seen:
            return step
        step, seen = step + 1, seen + batch
