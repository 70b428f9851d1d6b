"""Log-probabilities of responses. Labels are shifted here, and only here.

Shapes: S sequences, N rows of T tokens, R response tokens of all rows, H hidden size, V vocabulary, C of a chunk.

What is paid for: the network runs over every token, but the projection to the vocabulary only where a response token
is predicted, a chunk at a time and again in the backward pass, so that no (R, V) matrix ever exists in float32.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from spin_core import attention
from spin_core.batches import Ints, Sequences, TokenIds, micro_batches
from spin_core.config import SpeedConfig
from spin_core.errors import ConfigError
from spin_core.packing import Rows, packed_rows, padded_rows

log = logging.getLogger("spin_core")

CHUNK_LOGITS = 2**23
"""Logits in memory at a time: 32 MB in float32."""


class ResponseLogps(nn.Module):
    """The summed log-probability of each response under a model: `Rows` in, (S,) float32 out, differentiable.

    The weights are the model's own, so this follows them through training. Works for every causal language model of
    transformers; one whose logits are not simply a linear map of the last hidden state (softcapping, a scale) pays
    for its whole logits, and one whose attention cannot be told of packed rows pays for padding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float = 1.0,
        chunk_logits: int | None = CHUNK_LOGITS,
        *,
        pack: str | None = None,
    ) -> None:
        """`temperature` divides the logits; `chunk_logits=None` takes the model's own logits, all at a time.

        `pack` names an implementation of `attention.py`: the model is made to take packed rows, and from then on takes
        no others. Read `packed` to know whether it could be.
        """
        super().__init__()
        self.model, self.temperature, self.chunk_logits = model, temperature, chunk_logits
        self.direct = chunk_logits is not None and head_is_linear(model)
        if chunk_logits is not None and not self.direct:
            log.info("%s does more than project to its vocabulary: all its logits are computed", type(model).__name__)
        self.packed = pack is not None and attention.pack(model, pack)

    def forward(self, rows: Rows) -> Tensor:
        """(S,), in the order of the rows' sequences."""
        if self.direct:
            assert self.chunk_logits is not None
            hidden_NTH = hidden_states(self.model, rows)
            head: Any = self.model.get_output_embeddings()
            hidden_RH = hidden_NTH.flatten(0, 1).index_select(0, rows.at_R)
            logps_R = linear_logps(
                hidden_RH, head.weight, head.bias, rows.target_R, self.temperature, self.chunk_logits
            )
        else:
            logits_NTV = self.model(**attention.arguments(rows)).logits
            logits_RV = logits_NTV.flatten(0, 1).index_select(0, rows.at_R).float() / self.temperature
            logps_R = F.log_softmax(logits_RV, dim=-1).gather(1, rows.target_R[:, None]).squeeze(1)
        # Unlike index_add, this adds in one order on every device.
        return torch.segment_reduce(logps_R, "sum", lengths=rows.responses_S, initial=0.0)


def network_of(model: PreTrainedModel, speed: SpeedConfig) -> ResponseLogps:
    """The model as it scores responses, with the savings that the configuration leaves on."""
    if speed.attention == "flex" and model.device.type != "cuda":
        raise ConfigError("train.speed.attention flex trains on a GPU alone: set it to sdpa")
    kernel = attention.FLEX if speed.attention == "flex" else attention.PACKED
    chunk = CHUNK_LOGITS if speed.response_logits else None
    return ResponseLogps(model, chunk_logits=chunk, pack=kernel if speed.packing else None)


def hidden_states(model: PreTrainedModel, rows: Rows) -> Tensor:
    """The last hidden states, (N, T, H), as the vocabulary projection sees them."""
    hidden: Tensor = model.base_model(**attention.arguments(rows))[0]
    return hidden


@torch.no_grad()
def head_is_linear(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its output layer applied to its last hidden state, and nothing else.

    Asked of the model itself, bit by bit, since configurations have many names for what may come after.
    """
    head, body = model.get_output_embeddings(), model.base_model
    if type(head) is not nn.Linear or body is model:
        return False
    ids = torch.arange(1, 1 + min(8, head.out_features - 1), device=head.weight.device)[None]
    want = model(input_ids=ids, use_cache=False).logits
    hidden = body(input_ids=ids, use_cache=False)[0]
    return hidden.shape[-1] == head.in_features and torch.equal(head(hidden), want)


def linear_logps(
    hidden_RH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_R: Tensor, temperature: float, chunk_logits: int
) -> Tensor:
    """log softmax((hidden @ weight.T + bias) / temperature) at the targets, (R,) float32, in chunks of the R tokens."""
    return _LinearLogps.apply(hidden_RH, weight_VH, bias_V, target_R, temperature, chunk_logits)  # type: ignore[no-any-return, no-untyped-call]


class _LinearLogps(torch.autograd.Function):
    """Keeps each token's log normaliser, (R,), in place of its logits, (R, V); the backward pass computes those again.

    The gradient of a target's log-probability by the logits is onehot(target) - softmax(logits).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_R: Tensor,
        temperature: float,
        chunk_logits: int,
    ) -> Tensor:
        ctx.temperature, ctx.chunk = temperature, max(1, chunk_logits // weight_VH.shape[0])
        logps_R = torch.empty(hidden_RH.shape[0], dtype=torch.float32, device=hidden_RH.device)
        normaliser_R = torch.empty_like(logps_R)
        for start in range(0, hidden_RH.shape[0], ctx.chunk):
            C = slice(start, start + ctx.chunk)
            logits_CV = logits_of(hidden_RH[C], weight_VH, bias_V, temperature)
            normaliser_R[C] = logits_CV.logsumexp(dim=-1)
            logps_R[C] = logits_CV.gather(1, target_R[C, None]).squeeze(1)
        ctx.save_for_backward(hidden_RH, weight_VH, bias_V, target_R, normaliser_R)
        return logps_R.sub_(normaliser_R)

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RH, weight_VH, bias_V, target_R, normaliser_R = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden_RH = torch.empty_like(hidden_RH) if need_hidden else None
        # Sums over chunks are in float32, whatever the weights are.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if need_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias else None
        for start in range(0, hidden_RH.shape[0], ctx.chunk):
            C = slice(start, start + ctx.chunk)
            scale_C1 = grad_R[C, None] / ctx.temperature
            probabilities_CV = logits_of(hidden_RH[C], weight_VH, bias_V, ctx.temperature)
            probabilities_CV.sub_(normaliser_R[C, None]).exp_()
            grad_CV = probabilities_CV.mul_(-scale_C1).scatter_add_(1, target_R[C, None], scale_C1)
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0)
            grad_CV = grad_CV.to(weight_VH.dtype)
            if grad_hidden_RH is not None:
                grad_hidden_RH[C] = grad_CV @ weight_VH
            if grad_weight_VH is not None:
                add_product(grad_weight_VH, grad_CV.T, hidden_RH[C])
        return (
            grad_hidden_RH,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
            None,
        )


def add_product(sum_VH: Tensor, one_VC: Tensor, other_CH: Tensor) -> None:
    """sum += one @ other, in place, without a product in memory where precisions allow."""
    if sum_VH.dtype == one_VC.dtype:
        sum_VH.addmm_(one_VC, other_CH)
    else:
        sum_VH += one_VC @ other_CH


def logits_of(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    """A chunk's logits in float32, divided by the temperature."""
    logits_CV = F.linear(hidden_CH, weight_VH, bias_V).float()
    return logits_CV if temperature == 1 else logits_CV.div_(temperature)


@torch.no_grad()
def sequence_logps(
    model: PreTrainedModel,
    prompt_ids: Sequence[TokenIds],
    response_ids: Sequence[TokenIds],
    micro_batch_tokens: int,
    temperature: float = 1.0,
) -> Tensor:
    """log p(response | prompt) of each pair, (S,) float32 on the CPU, in the order given, without gradients.

    Sums over all response tokens, the end-of-turn token among them where the ids hold one. Sequences run in padded
    micro-batches of at most `micro_batch_tokens` tokens. An empty response has log-probability 0.
    """
    return score_sequences(
        ResponseLogps(model, temperature), Sequences.of(prompt_ids, response_ids), micro_batch_tokens
    )


@torch.no_grad()
def score_sequences(
    logps: ResponseLogps, sequences: Sequences, micro_batch_tokens: int, group_S: Ints | None = None
) -> Tensor:
    """The log-probability of each sequence's response, (S,) float32 on the CPU.

    Sequences with the same number in `group_S` have the same prompt, which a packed row computes once.
    """
    result_S = torch.empty(len(sequences), dtype=torch.float32)
    for chosen_S, rows in passes(sequences, micro_batch_tokens, logps.packed, group_S):
        result_S[torch.from_numpy(chosen_S)] = logps(rows.to(logps.model.device)).cpu()
    return result_S


def passes(
    sequences: Sequences, micro_batch_tokens: int, packed: bool, group_S: Ints | None
) -> Iterator[tuple[Ints, Rows]]:
    """All sequences, in as many rows as it takes."""
    if not packed:
        for chosen_S in micro_batches(sequences.lengths_S, 1, micro_batch_tokens):
            yield chosen_S, padded_rows(sequences, chosen_S)
        return
    _, first, group_S = np.unique(
        np.arange(len(sequences)) if group_S is None else group_S, return_index=True, return_inverse=True
    )
    responses_S = (sequences.lengths_S - sequences.prompts_S).astype(float)
    tokens_G = sequences.prompts_S[first] + np.bincount(group_S, weights=responses_S, minlength=len(first)).astype(int)
    for groups in micro_batches(tokens_G, 1, micro_batch_tokens):
        chosen_S = np.flatnonzero(np.isin(group_S, groups))
        yield chosen_S, packed_rows(sequences, chosen_S, group_S[chosen_S])
