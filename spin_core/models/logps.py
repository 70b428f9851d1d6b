"""Log-probabilities of responses. Labels are shifted here, and only here.

Shapes: S sequences, N rows of T tokens, R response tokens of all rows, H hidden size, V vocabulary, C of a chunk.

What is paid for: the network runs over every token, but the projection to the vocabulary only where a response token
is predicted, and a chunk at a time, so that no (R, V) matrix ever exists in float32 (`fused_loss.py` on training).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from spin_core.config.train import SpeedConfig
from spin_core.data.sequences import Ints, Sequences, TokenIds, micro_batches
from spin_core.models import attention
from spin_core.models.direct_gradients import DirectGradients
from spin_core.models.packing import Rows, packed_rows, padded_rows
from spin_core.models.vocabulary_loss import CHUNK_LOGITS, ItemLosses, fused_loss, linear_logps, sums

log = logging.getLogger("spin_core")


class ResponseLogps(nn.Module):
    """The summed log-probability of each response under a model, and a loss of them.

    The weights are the model's own, so this follows them through training. Works for every causal language model of
    transformers; one that does more to its logits than scale or cap them pays for all of them at once, and one whose
    attention cannot be told of packed rows pays for padding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float = 1.0,
        chunk_logits: int | None = CHUNK_LOGITS["cpu"],
        *,
        pack: str | None = None,
        compiled: bool = False,
    ) -> None:
        """`temperature` divides the logits; `chunk_logits=None` takes the model's own logits, all at a time.

        `compiled` passes over chunks of logits in kernels of torch.compile.
        `pack` names an implementation of `attention.py`: the model is made to take packed rows, and from then on takes
        no others. Read `packed` to know whether it could be.
        """
        super().__init__()
        self.model, self.temperature = model, temperature
        ending = None if chunk_logits is None else ending_of(model)
        if chunk_logits is not None and ending is None:
            log.info("%s does more than project to its vocabulary: all its logits are computed", type(model).__name__)
        self.direct = ending is not None
        self.cap = None if ending is None else ending.cap
        # Beside bent logits are their slopes.
        self.chunk_logits = (chunk_logits or 1) // (1 if self.cap is None else 2)
        self.chunk_temperature = temperature / (1 if ending is None else ending.scale)
        self.packed = pack is not None and attention.pack(model, pack)
        self.compiled = compiled
        self.gradients = DirectGradients({})

    def add_gradients_to(self, masters: Mapping[Tensor, Tensor]) -> None:
        """From now on, add the gradients of the vocabulary's weights straight to their masters' (`DirectGradients`)."""
        self.gradients = DirectGradients(masters)
        self.gradients.look_up_in(self.model.get_input_embeddings())

    def forward(self, rows: Rows, losses: ItemLosses | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The log-probability of each response, (S,) float32, without gradient, in the order of the rows' sequences.

        With `losses`, their sum, a differentiable scalar, comes before them.
        """
        if losses is None:
            with torch.no_grad():
                return self._logps(rows)
        if not self.direct:
            logps_S = self._logps(rows)
            whole = losses.of(logps_S.view(losses.tokens_PB.shape), slice(None)).sum()
            return whole, logps_S.detach()
        hidden_RH, (weight_VH, bias_V) = self._hidden(rows), self._head()
        sum_VH = self.gradients.of(weight_VH) if hidden_RH.requires_grad else None
        return fused_loss(
            hidden_RH, weight_VH, bias_V, rows.target_R, losses, self.chunk_temperature, self.chunk_logits, sum_VH,
            cap=self.cap, compiled=self.compiled,
        )  # fmt: skip

    def _logps(self, rows: Rows) -> Tensor:
        if self.direct:
            logps_R = linear_logps(
                self._hidden(rows), *self._head(), rows.target_R, self.chunk_temperature, self.chunk_logits,
                cap=self.cap, compiled=self.compiled,
            )  # fmt: skip
        else:
            logits_NTV = self.model(**attention.arguments(rows)).logits
            logits_RV = logits_NTV.flatten(0, 1).index_select(0, rows.at_R).float() / self.temperature
            logps_R = F.log_softmax(logits_RV, dim=-1).gather(1, rows.target_R[:, None]).squeeze(1)
        return sums(logps_R, rows.responses_S)

    def _hidden(self, rows: Rows) -> Tensor:
        """The last hidden states that predict response tokens, (R, H)."""
        return hidden_states(self.model, rows).flatten(0, 1).index_select(0, rows.at_R)

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight, (V, H), and bias, (V,), of the projection."""
        head: Any = self.model.get_output_embeddings()
        return head.weight, head.bias


def network_of(model: PreTrainedModel, speed: SpeedConfig) -> ResponseLogps:
    """The model as it scores responses, with the savings that the configuration leaves on."""
    kernel = attention.kernel_of(speed.attention, model)
    chunk = CHUNK_LOGITS[model.device.type] if speed.response_logits else None
    return ResponseLogps(model, chunk_logits=chunk, pack=kernel if speed.packing else None, compiled=speed.compile)


def hidden_states(model: PreTrainedModel, rows: Rows) -> Tensor:
    """The last hidden states, (N, T, H), as the vocabulary projection sees them."""
    hidden: Tensor = model.base_model(**attention.arguments(rows))[0]
    return hidden


SCALES, CAP = ("logit_scale", "logits_scaling", "lm_head_multiplier"), "final_logit_softcapping"
"""What configurations call a scale, by which some multiply and some divide, and a cap."""


@dataclass(frozen=True)
class Ending:
    """What a model does to the logits of its output layer: it multiplies them, or bends them to stay below a cap."""

    scale: float = 1.0
    cap: float | None = None

    def of(self, logits: Tensor) -> Tensor:
        """The model's logits."""
        return logits * self.scale if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@torch.no_grad()
def ending_of(model: PreTrainedModel) -> Ending | None:
    """What comes after the model's output layer; None if that is not known.

    Its configuration may name a scale (Cohere, Granite) or a cap (Gemma 2). Whether one is used, and nothing else, the
    model itself is asked.
    """
    head, body = model.get_output_embeddings(), model.base_model
    if type(head) is not nn.Linear or body is model:
        return None
    ids = torch.arange(1, 1 + min(8, head.out_features - 1), device=head.weight.device)[None]
    want = model(input_ids=ids, use_cache=False).logits
    hidden = body(input_ids=ids, use_cache=False)[0]
    if hidden.shape[-1] != head.in_features:
        return None
    settings, logits = model.config.get_text_config().to_dict(), head(hidden)
    scales = [settings[name] for name in SCALES if settings.get(name)]
    named = [Ending(scale=way) for scale in scales for way in (scale, 1 / scale)]
    named += [Ending(cap=settings[CAP])] if settings.get(CAP) else []
    near = 4 * torch.finfo(logits.dtype).eps
    return next((e for e in (*named, Ending()) if torch.allclose(e.of(logits), want.to(logits.dtype), near, 0)), None)


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
        found_S: Tensor = logps(rows.to(logps.model.device))
        result_S[torch.from_numpy(chosen_S)] = found_S.cpu()
    return result_S


def passes(
    sequences: Sequences, micro_batch_tokens: int, packed: bool, group_S: Ints | None
) -> Iterator[tuple[Ints, Rows]]:
    """All sequences, in as many rows as it takes."""
    if not packed:
        for chosen_S in micro_batches(sequences.lengths_S, 1, micro_batch_tokens):
            yield chosen_S, padded_rows(sequences, chosen_S)
        return
    group_S, tokens_G = grouped(sequences, group_S)
    for groups in micro_batches(tokens_G, 1, micro_batch_tokens):
        chosen_S = np.flatnonzero(np.isin(group_S, groups))
        yield chosen_S, packed_rows(sequences, chosen_S, group_S[chosen_S])


def grouped(sequences: Sequences, group_S: Ints | None) -> tuple[Ints, Ints]:
    """The group of each sequence, numbered from 0, and the tokens of each group, (G,), its prompt counted once.

    None for groups of one sequence each.
    """
    _, first, group_S = np.unique(
        np.arange(len(sequences)) if group_S is None else group_S, return_index=True, return_inverse=True
    )
    responses_S = (sequences.lengths_S - sequences.prompts_S).astype(float)
    tokens_G = sequences.prompts_S[first] + np.bincount(group_S, weights=responses_S, minlength=len(first)).astype(int)
    return group_S, tokens_G
