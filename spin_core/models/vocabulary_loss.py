"""The loss and its gradient, computed together with the vocabulary projection: while a chunk's logits are in memory.

Computed the usual way, the logits of all response tokens, (R, V), are kept for the backward pass. They are by far the
largest tensor of a training step. This module never has more than one chunk of them. It can do so because of what a
training's loss looks like: each item's loss reads the log-probabilities of that item's own P responses (real,
generated, …) and of no other item. So for a few items at a time,

    1. project their response tokens to the vocabulary        logits_CV      -> log-probabilities, (C,)
    2. sum over each response's tokens                        logps_Pb
    3. compute the items' losses, and by autograd only here   slope_Pb       =  d loss / d logps
    4. hand each token its response's slope                   slope_C
    5. turn the logits into their own gradient, in place      grad_CV        =  slope (onehot(target) - softmax)
    6. multiply it on to the hidden states and the weight     grad_RH, grad_VH

and go on with the next items, in the same memory. The forward pass thus finds the loss and all its gradients. The
backward pass has only to scale them by the gradient that reaches it, and hand them on.

No logits are computed twice, with one exception: items that are larger than a chunk. For them step 1 goes through all
chunks first, because step 3 needs the whole sums; then step 5 goes through the chunks from the last, which is still in
memory, to the first, computing the logits of the others again.

Shapes: R response tokens, side after side and item after item; P responses (sides) to each of B items, b items at a
time; C tokens of a chunk; H hidden size, V vocabulary; S = P B responses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spin_core.data.sequences import Ints
from spin_core.models.vocabulary_projection import ChunkSoftmax, Projection, chunk_slices


@dataclass(frozen=True)
class ItemLosses:
    """The losses of the items of some rows. Each reads the log-probabilities of its own P responses alone."""

    tokens_PB: Ints
    """Tokens of each response."""

    of: Callable[[Tensor, slice], Tensor]
    """From the (P, b) log-probabilities of the items in a slice to their losses, (b,), differentiable."""


def segment_sums(values_R: Tensor, lengths_S: Tensor) -> Tensor:
    """The sum over each response's tokens, (S,). Unlike index_add, this adds in the same order on every device."""
    return torch.segment_reduce(values_R, "sum", lengths=lengths_S, initial=0.0)


def fused_loss(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_R: Tensor,
    losses: ItemLosses,
    temperature: float,
    chunk_logits: int,
    sum_VH: Tensor | None = None,
    *,
    cap: float | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and the log-probabilities of all responses.

    Args:
        hidden_RH: the hidden states that predict response tokens.
        weight_VH: the projection's weight.
        bias_V: its bias, if it has one.
        target_R: the response tokens.
        losses: the tokens of each response, and the loss of each item.
        temperature: divides the logits.
        chunk_logits: logits in memory at a time.
        sum_VH: float32. The weight's gradient is added to it here and now, and autograd makes none. The backward pass
            then has to begin at the returned sum itself: a factor in between would come too late.
        cap: logits become cap tanh(logits / cap).
        compiled: go over the logits in two kernels of torch.compile.

    Returns:
        The sum, a differentiable scalar, and the log-probabilities, (P B,), without gradient.
    """
    if sum_VH is not None:
        weight_VH = weight_VH.detach()
    projection = Projection(weight_VH, bias_V, temperature, sum_VH, cap=cap, compiled=compiled)
    return _FusedLoss.apply(hidden_RH, weight_VH, bias_V, target_R, losses, projection, chunk_logits)  # type: ignore[no-any-return, no-untyped-call]


class _FusedLoss(torch.autograd.Function):
    """Steps 1 to 6 of the module's docstring, in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,  # noqa: ARG004 (the projection has it; autograd has to see it)
        target_R: Tensor,
        losses: ItemLosses,
        projection: Projection,
        chunk_logits: int,
    ) -> tuple[Tensor, Tensor]:
        adds_to_master = projection.grad_weight_VH is not None
        projection.watch(weight=ctx.needs_input_grad[1], bias=ctx.needs_input_grad[2])
        grad_RH = torch.empty_like(hidden_RH)
        logps_PB = torch.empty(losses.tokens_PB.shape, dtype=torch.float32, device=hidden_RH.device)
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_RH.device)
        chunk_tokens = max(1, chunk_logits // weight_VH.shape[0])
        for items in _items_of_a_chunk(losses.tokens_PB, chunk_tokens):
            # The tokens of these items, side after side; they are P spans of the R tokens of all.
            spans = _token_spans(losses.tokens_PB, items)
            target_C, hidden_CH = (torch.cat([x[span] for span in spans]) for x in (target_R, hidden_RH))
            lengths_S = torch.from_numpy(losses.tokens_PB[:, items].reshape(-1)).to(hidden_RH.device)
            # One chunk, unless there is a single item that is larger.
            chunks = chunk_slices(len(target_C), chunk_tokens)
            logps_C = torch.empty(len(target_C), dtype=torch.float32, device=hidden_RH.device)
            softmax: ChunkSoftmax | None = None
            for chunk in chunks:
                softmax = None  # frees its memory for the next one
                softmax = projection.softmax(hidden_CH[chunk], target_C[chunk])
                logps_C[chunk] = softmax.logps_C
            logps_Pb = segment_sums(logps_C, lengths_S).view(len(logps_PB), -1)
            with torch.enable_grad():
                loss = losses.of(logps_Pb.requires_grad_(), items).sum()
                (slope_Pb,) = torch.autograd.grad(loss, logps_Pb)
            loss_sum += loss.detach()
            logps_PB[:, items] = logps_Pb.detach()
            slope_C = slope_Pb.reshape(-1).repeat_interleave(lengths_S)
            grad_CH = torch.empty_like(hidden_CH)
            for chunk in reversed(chunks):
                softmax = softmax or projection.softmax(hidden_CH[chunk], target_C[chunk])
                grad_CH[chunk] = projection.gradient(softmax, slope_C[chunk], hidden_CH[chunk], target_C[chunk])
                softmax = None  # used up
            for span, grad in zip(spans, torch.split(grad_CH, [s.stop - s.start for s in spans]), strict=True):
                grad_RH[span] = grad
        ctx.save_for_backward(grad_RH, None if adds_to_master else projection.grad_weight_VH, projection.grad_bias_V)
        ctx.dtype, ctx.adds_to_master = weight_VH.dtype, adds_to_master
        logps_S = logps_PB.view(-1)
        ctx.mark_non_differentiable(logps_S)
        return loss_sum, logps_S

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.adds_to_master:
            torch._assert_async(grad == 1, "the weight's gradient was added for a loss of slope 1")
        grad_RH, weight_VH, bias_V = (None if saved is None else saved.mul_(grad) for saved in ctx.saved_tensors)
        return (
            grad_RH,
            None if weight_VH is None else weight_VH.to(ctx.dtype),
            None if bias_V is None else bias_V.to(ctx.dtype),
            *[None] * 4,
        )


def _items_of_a_chunk(tokens_PB: Ints, most: int) -> Iterator[slice]:
    """Items, in their order, with at most `most` tokens together; or one item that has more."""
    tokens_B = tokens_PB.sum(axis=0)
    start, load = 0, 0
    for item, tokens in enumerate(tokens_B):
        if item > start and load + tokens > most:
            yield slice(start, item)
            start, load = item, 0
        load += tokens
    if len(tokens_B):
        yield slice(start, len(tokens_B))


def _token_spans(tokens_PB: Ints, items: slice) -> list[slice]:
    """Where the response tokens of some items are among the R of all items: one span for each side."""
    ends_PB = np.cumsum(tokens_PB).reshape(tokens_PB.shape)
    starts_PB = ends_PB - tokens_PB
    return [slice(int(start[items][0]), int(end[items][-1])) for start, end in zip(starts_PB, ends_PB, strict=True)]
