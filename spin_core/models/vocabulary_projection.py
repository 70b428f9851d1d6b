"""The projection of hidden states to the vocabulary, its softmax, and their gradients, for one chunk of tokens.

A chunk is as many tokens as have `chunk_logits` logits together. Its logits are the only (C, V) matrix in memory: the
softmax overwrites them, and the gradient overwrites the softmax.

For the target y of a token, with logits z = f(W h + b) / temperature, where f is the cap if there is one:

    log p(y)           = z_y - log sum exp(z)
    d log p(y) / d z   = onehot(y) - softmax(z)

and from there the chain rule leads to h, W and b. A softmax is computed in float32, whatever the weights are, and
gradients of weights are added up in float32 over all chunks.

Shapes: R response tokens, C tokens of a chunk, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**28}
"""Logits in memory at a time: 64 MB in float32 on a CPU; a GPU needs larger products to be busy."""


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
    """log softmax((hidden @ weight.T + bias) / temperature) at the targets, (R,) float32, a chunk at a time."""
    projection = Projection(weight_VH, bias_V, temperature, cap=cap, compiled=compiled)
    logps_R = torch.empty(hidden_RH.shape[0], dtype=torch.float32, device=hidden_RH.device)
    for chunk in chunk_slices(len(hidden_RH), max(1, chunk_logits // weight_VH.shape[0])):
        logps_R[chunk] = projection.softmax(hidden_RH[chunk], target_R[chunk]).logps_C
    return logps_R


def chunk_slices(tokens: int, size: int) -> list[slice]:
    """Cut tokens into chunks of `size`. The first may be smaller; the last is full, since a training keeps that one."""
    return [slice(max(0, end - size), end) for end in range(tokens, 0, -size)][::-1]


class ChunkSoftmax(NamedTuple):
    """A chunk's softmax, with what the gradient by its logits needs.

    Without torch.compile the exponentials are kept, so that the backward pass is a few operations in place. Compiled,
    the logits are kept in the weights' precision, and one kernel computes everything from them again.
    """

    values_CV: Tensor
    """exp(logits - their largest), float32. Compiled: the logits."""
    norm_C: Tensor
    """The sum of the exponentials. Compiled: log sum exp(logits)."""
    logps_C: Tensor
    """The log-probabilities of the targets."""
    slope_CV: Tensor | None = None
    """The derivative of the capped logits by the uncapped ones. None without a cap, and where it is computed again."""


class Projection:
    """The projection, and the gradients by its weights summed over all chunks: in float32, whatever the weights are."""

    def __init__(
        self,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        temperature: float,
        grad_weight_VH: Tensor | None = None,
        *,
        cap: float | None = None,
        compiled: bool = False,
    ) -> None:
        """With `grad_weight_VH`, float32, gradients by the weight are added to that, else to nothing: see `watch`."""
        self.weight_VH, self.bias_V, self.temperature, self.compiled = weight_VH, bias_V, temperature, compiled
        self.cap = cap
        self.grad_weight_VH = grad_weight_VH
        self.grad_bias_V: Tensor | None = None

    def watch(self, *, weight: bool, bias: bool) -> None:
        """From now on, add up the gradients that are asked for, each from zero."""
        if weight:
            self.grad_weight_VH = torch.zeros_like(self.weight_VH, dtype=torch.float32)
        if bias and self.bias_V is not None:
            self.grad_bias_V = torch.zeros_like(self.bias_V, dtype=torch.float32)

    def softmax(self, hidden_CH: Tensor, target_C: Tensor) -> ChunkSoftmax:
        """The softmax of a chunk's logits, and the log-probabilities of its targets."""
        logits_CV = F.linear(hidden_CH, self.weight_VH, self.bias_V)
        if self.compiled:
            return ChunkSoftmax(logits_CV, *_compiled(_normalise)(logits_CV, target_C, self.temperature, self.cap))
        logits_CV, slope_CV = logits_CV.float(), None
        if self.cap is not None:
            logits_CV, slope_CV = _capped(logits_CV, self.cap)
        if self.temperature != 1:
            logits_CV.div_(self.temperature)
        logits_CV.sub_(logits_CV.amax(dim=-1, keepdim=True))
        target_logits_C = logits_CV.gather(1, target_C[:, None]).squeeze(1)
        exp_CV = logits_CV.exp_()
        sum_C = exp_CV.sum(dim=-1)
        return ChunkSoftmax(exp_CV, sum_C, target_logits_C - sum_C.log(), slope_CV)

    def gradient(self, softmax: ChunkSoftmax, slope_C: Tensor, hidden_CH: Tensor, target_C: Tensor) -> Tensor:
        """The gradient by a chunk's hidden states, (C, H); those by the weights are added to their sums.

        Args:
            softmax: of the same chunk. Its memory is overwritten.
            slope_C: the derivative of the loss by each log-probability.
            hidden_CH: the chunk's hidden states.
            target_C: the chunk's targets.
        """
        slope_C = slope_C / self.temperature
        if self.compiled:
            grad_CV = softmax.values_CV
            _compiled(_overwrite_with_gradient)(grad_CV, softmax.norm_C, slope_C, target_C, self.temperature, self.cap)
        else:
            # slope (onehot - softmax), in place: the exponentials times -slope / their sum, plus slope at the target.
            grad_CV = softmax.values_CV.mul_((-slope_C / softmax.norm_C)[:, None])
            grad_CV.scatter_add_(1, target_C[:, None], slope_C[:, None])
            if softmax.slope_CV is not None:
                grad_CV.mul_(softmax.slope_CV)
        if self.grad_bias_V is not None:
            self.grad_bias_V += grad_CV.sum(dim=0, dtype=torch.float32)
        grad_CV = grad_CV.to(self.weight_VH.dtype)
        if self.grad_weight_VH is not None:
            _add_product(self.grad_weight_VH, grad_CV.T, hidden_CH)
        return grad_CV @ self.weight_VH


def _capped(logits_CV: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """cap tanh(logits / cap), and its derivative."""
    tanh_CV = torch.tanh(logits_CV / cap)
    return cap * tanh_CV, 1 - tanh_CV * tanh_CV


def _add_product(sum_VH: Tensor, grad_VC: Tensor, hidden_CH: Tensor) -> None:
    """sum += grad @ hidden, in place, without the product in memory where the precisions allow."""
    if sum_VH.dtype == grad_VC.dtype:
        sum_VH.addmm_(grad_VC, hidden_CH)
    elif sum_VH.is_cuda:
        torch.addmm(sum_VH, grad_VC, hidden_CH, out_dtype=torch.float32, out=sum_VH)
    else:
        sum_VH += grad_VC @ hidden_CH


# The two passes over a chunk's logits that torch.compile makes one kernel each of.


def _normalise(
    logits_CV: Tensor, target_C: Tensor, temperature: float, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """log of the sum of exp(logits / temperature), (C,), and the targets' log-probabilities, (C,): float32."""
    values_CV = logits_CV.float()
    if cap is not None:
        values_CV, _ = _capped(values_CV, cap)
    values_CV = values_CV / temperature
    log_sum_C = torch.logsumexp(values_CV, dim=-1)
    return log_sum_C, values_CV.gather(1, target_C[:, None]).squeeze(1) - log_sum_C


def _overwrite_with_gradient(
    logits_CV: Tensor,
    log_sum_C: Tensor,
    slope_C: Tensor,
    target_C: Tensor,
    temperature: float,
    cap: float | None = None,
) -> None:
    """Overwrite logits with slope (onehot(target) - softmax), times the cap's derivative where there is a cap."""
    values_CV, cap_slope_CV = logits_CV.float(), None
    if cap is not None:
        values_CV, cap_slope_CV = _capped(values_CV, cap)
    softmax_CV = torch.exp(values_CV / temperature - log_sum_C[:, None])
    is_target_CV = torch.arange(logits_CV.shape[1], device=logits_CV.device) == target_C[:, None]
    grad_CV = slope_C[:, None] * (is_target_CV.float() - softmax_CV)
    logits_CV.copy_(grad_CV if cap_slope_CV is None else grad_CV * cap_slope_CV)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel for every number of tokens."""
    return torch.compile(function, dynamic=True)
