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
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spin_core.data.sequences import Ints

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**28}
"""Logits in memory at a time: 64 MB in float32 on a CPU; a GPU wants larger products."""


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
    sum_VH: Tensor | None = None,
    *,
    cap: float | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """The losses' sum, a differentiable scalar, and the responses' log-probabilities, (P B,), without gradient.

    With `sum_VH`, float32, the weight's gradient is added to it here and now, which leaves autograd none to make: the
    backward pass has to begin at this sum itself. Logits are bent to stay below `cap`, if there is one (`bent`).
    `compiled` passes over the logits in two kernels of torch.compile.
    """
    if sum_VH is not None:
        weight_VH = weight_VH.detach()
    head = Head(weight_VH, bias_V, temperature, sum_VH, cap=cap, compiled=compiled)
    return _FusedLoss.apply(hidden_RH, weight_VH, bias_V, target_R, losses, head, chunk_logits)  # type: ignore[no-any-return, no-untyped-call]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,  # noqa: ARG004 (the head has it; autograd has to see it)
        target_R: Tensor,
        losses: ItemLosses,
        head: "Head",
        chunk_logits: int,
    ) -> tuple[Tensor, Tensor]:
        has_begun = head.grad_weight_VH is not None
        head.watch(weight=ctx.needs_input_grad[1], bias=ctx.needs_input_grad[2])
        grad_RH = torch.empty_like(hidden_RH)
        logps_PB = torch.empty(losses.tokens_PB.shape, dtype=torch.float32, device=hidden_RH.device)
        whole = torch.zeros((), dtype=torch.float32, device=hidden_RH.device)
        size = max(1, chunk_logits // weight_VH.shape[0])
        for items in together(losses.tokens_PB, size):
            places = spans_of(losses.tokens_PB, items)
            target_C, hidden_CH = (torch.cat([x[place] for place in places]) for x in (target_R, hidden_RH))
            lengths = torch.from_numpy(losses.tokens_PB[:, items].reshape(-1)).to(hidden_RH.device)
            cuts = chunks(len(target_C), size)
            logps_C = torch.empty(len(target_C), dtype=torch.float32, device=hidden_RH.device)
            last: Softmax | None = None
            for cut in cuts:
                last = None  # its memory is for the next
                last = head.softmax(hidden_CH[cut], target_C[cut])
                logps_C[cut] = last.logps_C
            logps_Pb = sums(logps_C, lengths).view(len(logps_PB), -1)
            with torch.enable_grad():
                loss = losses.of(logps_Pb.requires_grad_(), items).sum()
                (slope_Pb,) = torch.autograd.grad(loss, logps_Pb)
            whole += loss.detach()
            logps_PB[:, items] = logps_Pb.detach()
            slope_C = slope_Pb.reshape(-1).repeat_interleave(lengths)
            grad_CH = torch.empty_like(hidden_CH)
            for cut in reversed(cuts):
                softmax = last or head.softmax(hidden_CH[cut], target_C[cut])
                grad_CH[cut] = head.gradient(softmax, slope_C[cut], hidden_CH[cut], target_C[cut])
                last = None
            for place, grad in zip(places, torch.split(grad_CH, [p.stop - p.start for p in places]), strict=True):
                grad_RH[place] = grad
        ctx.save_for_backward(grad_RH, None if has_begun else head.grad_weight_VH, head.grad_bias_V)
        ctx.dtype, ctx.has_begun = weight_VH.dtype, has_begun
        logps_S = logps_PB.view(-1)
        ctx.mark_non_differentiable(logps_S)
        return whole, logps_S

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.has_begun:
            torch._assert_async(grad == 1, "the weight's gradient was added for a loss of slope 1")
        hidden_RH, weight_VH, bias_V = (None if found is None else found.mul_(grad) for found in ctx.saved_tensors)
        return (
            hidden_RH,
            None if weight_VH is None else weight_VH.to(ctx.dtype),
            None if bias_V is None else bias_V.to(ctx.dtype),
            *[None] * 4,
        )


class Softmax(NamedTuple):
    """A chunk's softmax, and what the gradient by its logits needs. Which of two, `Head` says."""

    values_CV: Tensor
    """exp(logits - their largest), float32; compiled: the logits, in the weights' precision."""
    norm_C: Tensor
    """The exponentials' sum; compiled: log of the logits' exponentials' sum."""
    logps_C: Tensor
    """The targets' log-probabilities."""
    slope_CV: Tensor | None = None
    """Of the bent logits; None where there is no cap, and compiled, where it is computed again."""


class Head:
    """The projection, and what the chunks' gradients by its weights add up to: in float32, whatever the weights are."""

    def __init__(
        self,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        temperature: float,
        sum_VH: Tensor | None = None,
        *,
        cap: float | None = None,
        compiled: bool = False,
    ) -> None:
        self.weight_VH, self.bias_V, self.temperature, self.compiled = weight_VH, bias_V, temperature, compiled
        self.cap = cap
        self.grad_weight_VH = sum_VH
        self.grad_bias_V: Tensor | None = None

    def watch(self, *, weight: bool, bias: bool) -> None:
        """Add up the gradients that are needed."""
        if weight:
            self.grad_weight_VH = torch.zeros_like(self.weight_VH, dtype=torch.float32)
        if bias and self.bias_V is not None:
            self.grad_bias_V = torch.zeros_like(self.bias_V, dtype=torch.float32)

    def softmax(self, hidden_CH: Tensor, target_C: Tensor) -> Softmax:
        """Of some tokens."""
        logits_CV = F.linear(hidden_CH, self.weight_VH, self.bias_V)
        if self.compiled:
            return Softmax(logits_CV, *compiled_pass(normalised)(logits_CV, target_C, self.temperature, self.cap))
        logits_CV, slope_CV = logits_CV.float(), None
        if self.cap is not None:
            logits_CV, slope_CV = bent(logits_CV, self.cap)
        if self.temperature != 1:
            logits_CV.div_(self.temperature)
        logits_CV.sub_(logits_CV.amax(dim=-1, keepdim=True))
        target_logits_C = logits_CV.gather(1, target_C[:, None]).squeeze(1)
        exp_CV = logits_CV.exp_()
        sum_C = exp_CV.sum(dim=-1)
        return Softmax(exp_CV, sum_C, target_logits_C - sum_C.log(), slope_CV)

    def gradient(self, softmax: Softmax, slope_C: Tensor, hidden_CH: Tensor, target_C: Tensor) -> Tensor:
        """By the hidden states, (C, H), of a loss with this slope in the log-probabilities. The softmax is used up."""
        slope_C = slope_C / self.temperature
        if self.compiled:
            grad_CV = softmax.values_CV
            compiled_pass(into_gradient)(grad_CV, softmax.norm_C, slope_C, target_C, self.temperature, self.cap)
        else:
            grad_CV = softmax.values_CV.mul_((-slope_C / softmax.norm_C)[:, None])
            grad_CV.scatter_add_(1, target_C[:, None], slope_C[:, None])
            if softmax.slope_CV is not None:
                grad_CV.mul_(softmax.slope_CV)
        if self.grad_bias_V is not None:
            self.grad_bias_V += grad_CV.sum(dim=0, dtype=torch.float32)
        grad_CV = grad_CV.to(self.weight_VH.dtype)
        if self.grad_weight_VH is not None:
            add_product(self.grad_weight_VH, grad_CV.T, hidden_CH)
        return grad_CV @ self.weight_VH


def bent(logits_CV: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """cap tanh(logits / cap), and its slope."""
    tanh_CV = torch.tanh(logits_CV / cap)
    return cap * tanh_CV, 1 - tanh_CV * tanh_CV


def normalised(
    logits_CV: Tensor, target_C: Tensor, temperature: float, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """log of the sum of exp(logits / temperature), (C,), and the targets' log-probabilities, (C,): float32."""
    values_CV = logits_CV.float()
    if cap is not None:
        values_CV, _ = bent(values_CV, cap)
    values_CV = values_CV / temperature
    log_sum_C = torch.logsumexp(values_CV, dim=-1)
    return log_sum_C, values_CV.gather(1, target_C[:, None]).squeeze(1) - log_sum_C


def into_gradient(
    logits_CV: Tensor,
    log_sum_C: Tensor,
    slope_C: Tensor,
    target_C: Tensor,
    temperature: float,
    cap: float | None = None,
) -> None:
    """Put slope (onehot(target) - softmax) in the logits' place, times that of bending where there is a cap."""
    values_CV, bending = logits_CV.float(), None
    if cap is not None:
        values_CV, bending = bent(values_CV, cap)
    softmax_CV = torch.exp(values_CV / temperature - log_sum_C[:, None])
    is_target_CV = torch.arange(logits_CV.shape[1], device=logits_CV.device) == target_C[:, None]
    grad_CV = slope_C[:, None] * (is_target_CV.float() - softmax_CV)
    logits_CV.copy_(grad_CV if bending is None else grad_CV * bending)


@cache
def compiled_pass(one: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel for every number of tokens."""
    return torch.compile(one, dynamic=True)


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
    elif sum_VH.is_cuda:
        torch.addmm(sum_VH, one_VC, other_CH, out_dtype=torch.float32, out=sum_VH)
    else:
        sum_VH += one_VC @ other_CH


@torch.no_grad()
def linear_logps(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_R: Tensor,
    temperature: float,
    chunk_logits: int,
    *,
    cap: float | None = None,
    compiled: bool = False,
) -> Tensor:
    """log softmax((hidden @ weight.T + bias) / temperature) at the targets, (R,) float32, in chunks of the R tokens."""
    head = Head(weight_VH, bias_V, temperature, cap=cap, compiled=compiled)
    logps_R = torch.empty(hidden_RH.shape[0], dtype=torch.float32, device=hidden_RH.device)
    for cut in chunks(len(hidden_RH), max(1, chunk_logits // weight_VH.shape[0])):
        logps_R[cut] = head.softmax(hidden_RH[cut], target_R[cut]).logps_C
    return logps_R


def chunks(tokens: int, size: int) -> list[slice]:
    """Spans of tokens whose logits are in memory together: the last of full size, since a training keeps that one."""
    return [slice(max(0, end - size), end) for end in range(tokens, 0, -size)][::-1]
