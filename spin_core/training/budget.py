"""How much of its data a training uses, and how many steps: what makes two trainings comparable.

Shapes: N items.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from spin_core.config.base import at
from spin_core.data.batches import DataOrder
from spin_core.data.sequences import Ints, TokenIds
from spin_core.errors import DataError
from spin_core.store.jobs import TrainJob


def in_share(prompt_ids: Iterable[TokenIds], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which items belong to about `share` of all prompts, (N,).

    A digest of the prompt's tokens and the seed decides. So the same share of pairs and of SFT data has the same
    prompts, whatever was dropped from either, and a smaller share is a subset of a larger one.

    Raises:
        DataError: No item belongs to the share.
    """
    limit = int(share * 2**64)
    texts = (f"share:{seed}:".encode() + np.asarray(ids).astype("<i8").tobytes() for ids in prompt_ids)
    chosen_N = np.fromiter((int.from_bytes(hashlib.sha256(text).digest()[:8], "big") < limit for text in texts), bool)
    if not chosen_N.any():
        raise DataError(f"a share of {share:g} leaves none of {len(chosen_N)} rows to train on: raise it")
    return chosen_N


def steps_planned(job: TrainJob, tokens_N: Ints, order: DataOrder) -> int:
    """The number of steps of a training: given, or as near as possible to its tokens, or by its epochs.

    `tokens_N` are the tokens of each item, its prompt counted once for each response.
    """
    if job.steps is not None:
        return job.steps
    if job.tokens is None:
        return at(job.config.epochs, max(job.t, 0)) * order.steps_in_epoch
    return steps_for(job.tokens, tokens_N, order)


def steps_for(tokens: int, tokens_N: Ints, order: DataOrder) -> int:
    """The number of steps, at least 1, whose items have a number of tokens as near as possible to `tokens`."""
    step, seen = 0, 0
    while True:
        batch = int(tokens_N[order.batch(step)].sum())
        if step and seen + batch - tokens > tokens - seen:
            return step
        step, seen = step + 1, seen + batch
