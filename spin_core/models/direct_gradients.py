"""The gradients of the vocabulary's weights, added up where they end: no second matrix of their size is ever made.

Autograd makes the gradient of each weight anew in every backward pass, and adds it to what is there. The projection to
the vocabulary and the embedding, (V, H), are the largest weights of a small model, so that the copy sets the peak of
memory; and a pass reads only a few thousand of the embedding's rows. So both gradients are added here, straight to
those of the weights' masters. DeepSpeed wants to see each gradient for itself, and keeps autograd's way.

Shapes: V vocabulary, H hidden size, N rows of T tokens.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DirectGradients:
    """Which weights get their gradients so, and the masters that these belong to."""

    def __init__(self, masters: Mapping[Tensor, Tensor]) -> None:
        """`masters`: of each weight that trains, the float32 tensor that the optimizer moves; it may be itself."""
        self.masters = masters

    def of(self, weight: Tensor) -> Tensor | None:
        """What this weight's gradient is to be added to, in float32. None for one that does not train."""
        master = self.masters.get(weight)
        if master is None:
            return None
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def look_up_in(self, embedding: nn.Module) -> None:
        """Make an embedding add its gradient so. One that does more than look up rows is left to autograd.

        So is one whose weights are not their own masters: rounded as autograd rounds it, its gradient is that of ranks.
        """
        if type(embedding) is not nn.Embedding or embedding.max_norm is not None or embedding.scale_grad_by_freq:
            return
        if self.masters.get(embedding.weight) is embedding.weight:
            embedding.forward = partial(self._rows, embedding)  # type: ignore[method-assign]

    def _rows(self, embedding: Any, ids_NT: Tensor) -> Tensor:
        """The rows of these ids, (N, T, H)."""
        rows_NTH = F.embedding(ids_NT, embedding.weight.detach())
        if torch.is_grad_enabled():
            add = partial(self._add, embedding, ids_NT.flatten())
            rows_NTH.requires_grad_().register_hook(add)  # type: ignore[no-untyped-call]
        return rows_NTH

    def _add(self, embedding: Any, ids_M: Tensor, grad_NTH: Tensor) -> None:
        grad_MH = grad_NTH.reshape(len(ids_M), -1).float()
        if embedding.padding_idx is not None:
            grad_MH = grad_MH * (ids_M != embedding.padding_idx)[:, None]
        add_rows(self.of(embedding.weight), ids_M, grad_MH)


def add_rows(sum_VH: Tensor | None, ids_M: Tensor, rows_MH: Tensor) -> None:
    """sum[ids] += rows, ids that come often as often; in one order on every run, and so to the same bits."""
    assert sum_VH is not None
    if sum_VH.is_cuda:
        sum_VH.index_put_((ids_M,), rows_MH, accumulate=True)
    else:
        sum_VH.index_add_(0, ids_M, rows_MH)
