"""Drawing the next token. Shapes: N rows, V vocabulary, K random numbers of a row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spin_core.config.base import at
from spin_core.config.generate import GenerateConfig


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, and how many at most."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_strings: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    """In addition to those of the chat format."""

    @classmethod
    def of(cls, config: GenerateConfig, t: int, stop_strings: Sequence[str] = ()) -> "Sampling":
        """The configured sampling in iteration `t`, which also stops at the chat format's `stop_strings`."""
        return cls(
            at(config.temperature, t), config.top_p, config.top_k, config.max_new_tokens, config.min_p,
            config.repetition_penalty, (*config.stop_strings, *stop_strings), config.stop_ids,
        )  # fmt: skip


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each seed (0 <= seed < 2**128), (N, K) float64.

    Philox is a counter-based generator: number i of a seed depends neither on `count` nor on the other seeds.
    """
    rows_NK = [np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds]
    return torch.from_numpy(np.array(rows_NK, dtype=np.float64).reshape(len(seeds), count))


def penalised(logits_NV: Tensor, seen_NV: Tensor, penalty: float) -> Tensor:
    """Make the tokens that were `seen`, (N, V) bool, less likely by `penalty` (arXiv 1909.05858); (N, V) float32."""
    logits_NV = logits_NV.float()
    return torch.where(seen_NV, torch.where(logits_NV > 0, logits_NV / penalty, logits_NV * penalty), logits_NV)


def probabilities(
    logits_NV: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Tensor:
    """The distribution that tokens are drawn from, (N, V) float32, rows sum to 1: softmax(logits / temperature), cut.

    Args:
        logits_NV: Logits of the next token, (N, V).
        temperature: Divides the logits.
        top_p: Keeps the smallest set of likeliest tokens that holds this share of the probability left by the others.
        top_k: Keeps this many likeliest tokens, and those that tie with the last of them; 0 keeps all.
        min_p: Drops tokens less likely than this times the likeliest token.

    The cuts are made in vLLM's order: `min_p`, `top_k`, `top_p`.
    """
    logits_NV = logits_NV.float()
    # The largest logit becomes 0 before the division, so that the smallest temperature is the greedy choice, not NaN.
    scaled_NV = (logits_NV - logits_NV.amax(dim=-1, keepdim=True)) / max(temperature, 1e-30)
    if min_p > 0:
        scaled_NV = scaled_NV.masked_fill(scaled_NV < math.log(min_p), -torch.inf)
    if 0 < top_k < scaled_NV.shape[-1]:
        least_N1 = scaled_NV.topk(top_k, dim=-1).values[:, -1:]
        scaled_NV = scaled_NV.masked_fill(scaled_NV < least_N1, -torch.inf)
    probs_NV = scaled_NV.softmax(dim=-1)
    if top_p < 1:
        sorted_NV, order_NV = probs_NV.sort(dim=-1, descending=True, stable=True)
        before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
        # The likeliest token always stays, also where rounding moves the sums.
        before_NV[:, 0] = -1.0
        probs_NV = probs_NV.scatter(-1, order_NV, sorted_NV.masked_fill(before_NV >= top_p, 0.0))
        probs_NV = probs_NV / probs_NV.sum(dim=-1, keepdim=True)
    return probs_NV


def draw(probs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Draw a token by the inverse of the cumulative distribution, (N,) int64, from one number in [0, 1) a row.

    Takes the first token at which the cumulative probability exceeds `uniform_N` times the row's sum, so never a token
    of probability 0. Sums are in float64, since float32 would lose the rare tokens of a large vocabulary.
    """
    cumulated_NV = probs_NV.cumsum(dim=-1, dtype=torch.float64)
    target_N1 = uniform_N[:, None] * cumulated_NV[:, -1:]
    return torch.searchsorted(cumulated_NV, target_N1, right=True).squeeze(1)
