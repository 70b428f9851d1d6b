"""Gradients of the vocabulary's weights, added to where they end up, so that no second matrix of their size is made.

In every backward pass autograd allocates the gradient of each weight and then adds it to the sum of earlier passes. The
projection to the vocabulary and the embedding, both (V, H), are the largest weights of a small model, so that this copy
sets the peak of memory; and a pass reads only a few thousand of the embedding's V rows. So both gradients go around
autograd:

    projection   `vocabulary_loss.py` asks for `sum_of(weight)` and adds the product of each chunk to it
    embedding    its forward pass reads rows of the detached weight; a hook on the result adds the gradient of these
                 rows to the rows of the sum

The sum is the gradient of the weight's float32 master, which the optimizer reads. DeepSpeed has to see each gradient
itself, and keeps autograd's way.

Shapes: V vocabulary, H hidden size, N rows of T tokens, M = N T tokens of all rows.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DirectGradients:
    """Which weights get their gradients this way, and the masters that these belong to."""

    def __init__(self, masters: Mapping[Tensor, Tensor]) -> None:
        """Remember the masters.

        Args:
            masters: for each weight that trains, the float32 tensor that the optimizer moves; it may be the weight
                itself. Empty to leave all gradients to autograd.
        """
        self.masters = masters

    def sum_of(self, weight: Tensor) -> Tensor | None:
        """The float32 tensor to which this weight's gradient is to be added; None for a weight that does not train."""
        master = self.masters.get(weight)
        if master is None:
            return None
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def attach_to(self, embedding: nn.Module) -> None:
        """Make an embedding add its gradient this way.

        Two kinds are left to autograd: an embedding that does more than look up rows, and one whose weights are not
        their own masters. The latter's gradient is rounded by autograd in the weights' precision, as it is on several
        ranks; adding in float32 would give other numbers on one device than on many.
        """
        if type(embedding) is not nn.Embedding or embedding.max_norm is not None or embedding.scale_grad_by_freq:
            return
        if self.masters.get(embedding.weight) is embedding.weight:
            embedding.forward = partial(self._look_up, embedding)  # type: ignore[method-assign]

    def _look_up(self, embedding: Any, ids_NT: Tensor) -> Tensor:
        """The embedding's rows for these ids, (N, T, H)."""
        rows_NTH = F.embedding(ids_NT, embedding.weight.detach())
        if torch.is_grad_enabled():
            add = partial(self._add_gradient, embedding, ids_NT.flatten())
            rows_NTH.requires_grad_().register_hook(add)  # type: ignore[no-untyped-call]
        return rows_NTH

    def _add_gradient(self, embedding: Any, ids_M: Tensor, grad_NTH: Tensor) -> None:
        sum_VH = self.sum_of(embedding.weight)
        assert sum_VH is not None, "attached to a weight without a master"
        grad_MH = grad_NTH.reshape(len(ids_M), -1).float()
        if embedding.padding_idx is not None:
            grad_MH = grad_MH * (ids_M != embedding.padding_idx)[:, None]
        _add_rows(sum_VH, ids_M, grad_MH)


def _add_rows(sum_VH: Tensor, ids_M: Tensor, rows_MH: Tensor) -> None:
    """sum[ids] += rows, where an id that occurs twice is added twice.

    On each device by the operation that adds in the same order on every run, and so gives the same bits.
    """
    if sum_VH.is_cuda:
        sum_VH.index_put_((ids_M,), rows_MH, accumulate=True)
    else:
        sum_VH.index_add_(0, ids_M, rows_MH)
