"""The vocabulary projection, its softmax and the loss in one pass: log-probabilities and gradients while logits exist.

Shapes: R response tokens, side after side and item after item; P responses to each of B items, b of a chunk; H hidden
size, V vocabulary, C tokens of a chunk.

A training's loss joins the responses to one prompt, and no others. So as soon as the logits of all responses to some
prompts are there, their losses are known, and with them the gradient by these logits, onehot(target) - softmax times
the loss's derivative: it is taken at once, the logits' memory is used for it, and none of them is computed again in
the backward pass, which is left to hand on what was found. Items whose logits exceed a chunk pay for the excess twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spin_core.batches import Ints

CHUNK_LOGITS = 2**24
"""Logits in memory at a time: 64 MB in float32."""


@dataclass(frozen=True)
class ItemLosses:
    """The losses of the items of some rows, each of which reads the log-probabilities of its own P responses alone."""

    tokens_PB: Ints
    """Tokens of each response."""

    of: Callable[[Tensor, slice], Tensor]
    """From the (P, b) log-probabilities of the items in a slice: their losses, (b,), differentiable."""


def sums(values_R: Tensor, lengths: Tensor) -> Tensor:
    """The sum of each span. Unlike index_add, this adds in one order on every device."""
    return torch.segment_reduce(values_R, "sum", lengths=lengths, initial=0.0)


def fused_loss(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_R: Tensor,
    losses: ItemLosses,
    temperature: float,
    chunk_logits: int,
) -> tuple[Tensor, Tensor]:
    """The losses' sum, a differentiable scalar, and the responses' log-probabilities, (P B,), without gradient."""
    return _FusedLoss.apply(hidden_RH, weight_VH, bias_V, target_R, losses, temperature, chunk_logits)  # type: ignore[no-any-return, no-untyped-call]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_R: Tensor,
        losses: ItemLosses,
        temperature: float,
        chunk_logits: int,
    ) -> tuple[Tensor, Tensor]:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden_RH = torch.empty_like(hidden_RH) if need_hidden else None
        # Sums over chunks are in float32, whatever the weights are.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if need_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias else None
        logps_PB = torch.empty(losses.tokens_PB.shape, dtype=torch.float32, device=hidden_RH.device)
        whole = torch.zeros((), dtype=torch.float32, device=hidden_RH.device)
        size = max(1, chunk_logits // weight_VH.shape[0])
        for items in together(losses.tokens_PB, size):
            places = spans_of(losses.tokens_PB, items)
            target_C = torch.cat([target_R[place] for place in places])
            hidden_CH = torch.cat([hidden_RH[place] for place in places])
            lengths = torch.from_numpy(losses.tokens_PB[:, items].reshape(-1)).to(hidden_RH.device)
            logps_C = torch.empty(len(target_C), dtype=torch.float32, device=hidden_RH.device)
            cuts = chunks(len(target_C), size)
            found = None
            for C in cuts:
                del found
                found = exponentials(hidden_CH[C], weight_VH, bias_V, target_C[C], temperature)
                logps_C[C] = found[2]
            logps_Pb = sums(logps_C, lengths).view(len(logps_PB), -1)
            with torch.enable_grad():
                logps_Pb.requires_grad_()
                loss = losses.of(logps_Pb, items).sum()
                (slope_Pb,) = torch.autograd.grad(loss, logps_Pb)
            whole += loss.detach()
            logps_PB[:, items] = logps_Pb.detach()
            slope_C = slope_Pb.reshape(-1).repeat_interleave(lengths) / temperature
            grad_CH = torch.empty_like(hidden_CH)
            for C in reversed(cuts):
                if found is None:
                    found = exponentials(hidden_CH[C], weight_VH, bias_V, target_C[C], temperature)
                exp_CV, sum_C, _ = found
                grad_CV = exp_CV.mul_((-slope_C[C] / sum_C)[:, None])
                grad_CV.scatter_add_(1, target_C[C, None], slope_C[C, None])
                if grad_bias_V is not None:
                    grad_bias_V += grad_CV.sum(dim=0)
                grad_CV = grad_CV.to(weight_VH.dtype)
                grad_CH[C] = grad_CV @ weight_VH
                if grad_weight_VH is not None:
                    add_product(grad_weight_VH, grad_CV.T, hidden_CH[C])
                found = exp_CV = grad_CV = None
            if grad_hidden_RH is not None:
                for place, grad in zip(places, grad_CH.split([p.stop - p.start for p in places]), strict=True):
                    grad_hidden_RH[place] = grad
        ctx.save_for_backward(grad_hidden_RH, grad_weight_VH, grad_bias_V)
        ctx.dtypes = [weight_VH.dtype, None if bias_V is None else bias_V.dtype]
        logps_S = logps_PB.view(-1)
        ctx.mark_non_differentiable(logps_S)
        return whole, logps_S

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RH, weight_VH, bias_V = (None if found is None else found.mul_(grad) for found in ctx.saved_tensors)
        return (
            hidden_RH,
            None if weight_VH is None else weight_VH.to(ctx.dtypes[0]),
            None if bias_V is None else bias_V.to(ctx.dtypes[1]),
            *[None] * 4,
        )


def together(tokens_PB: Ints, most: int) -> Iterator[slice]:
    """Items whose tokens are at most `most` together, or one item that has more, in their order."""
    tokens_B = tokens_PB.sum(axis=0)
    start, load = 0, 0
    for item, tokens in enumerate(tokens_B):
        if item > start and load + tokens > most:
            yield slice(start, item)
            start, load = item, 0
        load += tokens
    if len(tokens_B):
        yield slice(start, len(tokens_B))


def spans_of(tokens_PB: Ints, items: slice) -> list[slice]:
    """Where the tokens of the items' responses lie among the R of all: a span for each side."""
    ends_PB = np.cumsum(tokens_PB).reshape(tokens_PB.shape)
    starts_PB = ends_PB - tokens_PB
    return [slice(int(start[items][0]), int(end[items][-1])) for start, end in zip(starts_PB, ends_PB, strict=True)]


def add_product(sum_VH: Tensor, one_VC: Tensor, other_CH: Tensor) -> None:
    """sum += one @ other, in place, without a product in memory where precisions allow."""
    if sum_VH.dtype == one_VC.dtype:
        sum_VH.addmm_(one_VC, other_CH)
    else:
        sum_VH += one_VC @ other_CH


@torch.no_grad()
def linear_logps(
    hidden_RH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_R: Tensor, temperature: float, chunk_logits: int
) -> Tensor:
    """log softmax((hidden @ weight.T + bias) / temperature) at the targets, (R,) float32, in chunks of the R tokens."""
    logps_R = torch.empty(hidden_RH.shape[0], dtype=torch.float32, device=hidden_RH.device)
    for C in chunks(len(hidden_RH), max(1, chunk_logits // weight_VH.shape[0])):
        logps_R[C] = exponentials(hidden_RH[C], weight_VH, bias_V, target_R[C], temperature)[2]
    return logps_R


def chunks(tokens: int, size: int) -> list[slice]:
    """Spans of tokens whose logits are in memory together: the last of full size, since a training keeps that one."""
    return [slice(max(0, end - size), end) for end in range(tokens, 0, -size)][::-1]


def exponentials(
    hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_C: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - their largest), (C, V) float32; its sums, (C,); and the targets' log-probabilities, (C,)."""
    logits_CV = F.linear(hidden_CH, weight_VH, bias_V).float()
    if temperature != 1:
        logits_CV.div_(temperature)
    logits_CV.sub_(logits_CV.amax(dim=-1, keepdim=True))
    target_logits_C = logits_CV.gather(1, target_C[:, None]).squeeze(1)
    exp_CV = logits_CV.exp_()
    sum_C = exp_CV.sum(dim=-1)
    return exp_CV, sum_C, target_logits_C - sum_C.log()
