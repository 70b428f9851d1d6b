"""Log-probabilities of responses. Labels are shifted in `packing.py` (`Rows.at_R`), and read only here.

Shapes: S sequences, N rows of T tokens, R response tokens of all rows, H hidden size, V vocabulary, G groups of
sequences that share a prompt; P responses to each of B items, P B = S.

    rows            token ids, and which hidden state predicts which response token
    model body      hidden states of all tokens, (N, T, H)
    at_R            those that predict a response token, (R, H)
    projection      log-softmax over the vocabulary at each target token, (R,): a chunk of tokens at a time
    sum             over each response's tokens, (S,)

The network runs over every token, but the projection to the vocabulary, often the most expensive layer, only over
response tokens, and in chunks, so that no (R, V) matrix ever exists in float32. In training, the projection, the loss
and the gradients of both are one step (`vocabulary_loss.py`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from spin_core.config.train import SpeedConfig
from spin_core.data.batches import micro_batches
from spin_core.data.sequences import Ints, Sequences, TokenIds
from spin_core.models.attention import choose_implementation
from spin_core.models.direct_gradients import DirectGradients
from spin_core.models.logit_transform import logit_transform_of
from spin_core.models.packing import Rows, packed_rows, padded_rows
from spin_core.models.packing_check import enable_packing
from spin_core.models.vocabulary_loss import ItemLosses, fused_loss, segment_sums
from spin_core.models.vocabulary_projection import CHUNK_LOGITS, linear_logps

log = logging.getLogger("spin_core")


class ResponseLogps(nn.Module):
    """The summed log-probability of each response under a model, and a loss of them.

    The weights are the model's own, so this follows them through training. It works for every causal language model of
    transformers, but not at the same cost: a model that does more to its logits than scale or cap them computes all of
    them at once (`direct` is False), and one that cannot take packed rows computes padding (`packed` is False).
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
        """Find out what the model can do, and prepare it.

        Args:
            model: stays the caller's; it is changed only where `pack` says so.
            temperature: divides the logits.
            chunk_logits: logits in memory at a time; None takes the model's own logits, all at once.
            pack: an attention implementation of `attention.py`. If the model can take packed rows it takes no others
                from then on. Read `packed` to know whether it does.
            compiled: go over chunks of logits in kernels of torch.compile.
        """
        super().__init__()
        self.model, self.temperature = model, temperature
        transform = None if chunk_logits is None else logit_transform_of(model)
        if chunk_logits is not None and transform is None:
            log.info("%s does more than project to its vocabulary: all its logits are computed", type(model).__name__)
        self.direct = transform is not None
        self.cap = None if transform is None else transform.cap
        # With a cap, the slopes of the capped logits are in memory next to these.
        self.chunk_logits = (chunk_logits or 1) // (1 if self.cap is None else 2)
        # A scale of the logits is the inverse of a temperature.
        self.chunk_temperature = temperature / (1 if transform is None else transform.scale)
        self.packed = pack is not None and enable_packing(model, pack)
        self.compiled = compiled
        self.gradients = DirectGradients({})

    def add_gradients_to(self, masters: Mapping[Tensor, Tensor]) -> None:
        """From now on, add the gradients of the vocabulary's weights straight to their masters' (`DirectGradients`)."""
        self.gradients = DirectGradients(masters)
        self.gradients.attach_to(self.model.get_input_embeddings())

    def forward(self, rows: Rows, losses: ItemLosses | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The log-probability of each response, (S,) float32, without gradient, in the order of the rows' sequences.

        With `losses`, returns two: the sum of all items' losses, a differentiable scalar, and the log-probabilities.
        """
        if losses is None:
            with torch.no_grad():
                return self._logps(rows)
        if not self.direct:
            logps_S = self._logps(rows)
            loss = losses.of(logps_S.view(losses.tokens_PB.shape), slice(None)).sum()
            return loss, logps_S.detach()
        hidden_RH, (weight_VH, bias_V) = self._hidden(rows), self._head()
        sum_VH = self.gradients.sum_of(weight_VH) if hidden_RH.requires_grad else None
        return fused_loss(
            hidden_RH, weight_VH, bias_V, rows.target_R, losses, self.chunk_temperature, self.chunk_logits, sum_VH,
            cap=self.cap, compiled=self.compiled,
        )  # fmt: skip

    def _logps(self, rows: Rows) -> Tensor:
        """The log-probability of each response, (S,). With a gradient only where the model's own logits are taken."""
        if self.direct:
            logps_R = linear_logps(
                self._hidden(rows), *self._head(), rows.target_R, self.chunk_temperature, self.chunk_logits,
                cap=self.cap, compiled=self.compiled,
            )  # fmt: skip
        else:
            logits_NTV = self.model(**rows.model_inputs()).logits
            logits_RV = logits_NTV.flatten(0, 1).index_select(0, rows.at_R).float() / self.temperature
            logps_R = F.log_softmax(logits_RV, dim=-1).gather(1, rows.target_R[:, None]).squeeze(1)
        return segment_sums(logps_R, rows.responses_S)

    @torch.no_grad()
    def at_temperatures(self, rows: Rows, temperatures: Sequence[float]) -> Tensor:
        """The log-probability of each response at each temperature, (K, S): the network runs once."""
        if not self.direct:
            logits_NTV = self.model(**rows.model_inputs()).logits
            logits_RV = logits_NTV.flatten(0, 1).index_select(0, rows.at_R).float()
            by_temperature = [
                F.log_softmax(logits_RV / temperature, dim=-1).gather(1, rows.target_R[:, None]).squeeze(1)
                for temperature in temperatures
            ]
        else:
            # Kept for all temperatures, unlike the logits, of which there may be many more.
            hidden_RH, head, scale = self._hidden(rows), self._head(), self.chunk_temperature / self.temperature
            by_temperature = [
                linear_logps(hidden_RH, *head, rows.target_R, temperature * scale, self.chunk_logits, cap=self.cap)
                for temperature in temperatures
            ]
        return torch.stack([segment_sums(logps_R, rows.responses_S) for logps_R in by_temperature])

    def _hidden(self, rows: Rows) -> Tensor:
        """The last hidden states that predict response tokens, (R, H)."""
        return hidden_states(self.model, rows).flatten(0, 1).index_select(0, rows.at_R)

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight, (V, H), and bias, (V,), of the projection."""
        head: Any = self.model.get_output_embeddings()
        return head.weight, head.bias


def response_logps(model: PreTrainedModel, speed: SpeedConfig) -> ResponseLogps:
    """The model as it scores responses, with the savings that the configuration leaves on."""
    implementation = choose_implementation(speed.attention, model)
    chunk = CHUNK_LOGITS[model.device.type] if speed.response_logits else None
    return ResponseLogps(
        model, chunk_logits=chunk, pack=implementation if speed.packing else None, compiled=speed.compile
    )


def hidden_states(model: PreTrainedModel, rows: Rows) -> Tensor:
    """The last hidden states, (N, T, H), as the vocabulary projection sees them."""
    hidden_NTH: Tensor = model.base_model(**rows.model_inputs())[0]
    return hidden_NTH


@torch.no_grad()
def sequence_logps(
    model: PreTrainedModel,
    prompt_ids: Sequence[TokenIds],
    response_ids: Sequence[TokenIds],
    micro_batch_tokens: int,
    temperature: float = 1.0,
) -> Tensor:
    """log p(response | prompt) of each pair, (S,) float32 on the CPU, in the order given, without gradients.

    Sums over all response tokens, including the end of turn where the ids have one. Sequences run in padded
    micro-batches of at most `micro_batch_tokens` tokens. An empty response has log-probability 0.
    """
    return score_sequences(
        ResponseLogps(model, temperature), Sequences.of(prompt_ids, response_ids), micro_batch_tokens
    )


@torch.no_grad()
def sequence_logps_at(
    model: PreTrainedModel,
    prompt_ids: Sequence[TokenIds],
    response_ids: Sequence[TokenIds],
    micro_batch_tokens: int,
    temperatures: Sequence[float],
) -> Tensor:
    """The same at several temperatures, (K, S), from one pass of the network."""
    logps, sequences = ResponseLogps(model), Sequences.of(prompt_ids, response_ids)
    result_KS = torch.empty(len(temperatures), len(sequences), dtype=torch.float32)
    for chosen_S, rows in _rows_of(sequences, micro_batch_tokens, logps.packed, None):
        logps_KS = logps.at_temperatures(rows.to(model.device), temperatures)
        result_KS[:, torch.from_numpy(chosen_S)] = logps_KS.cpu()
    return result_KS


@torch.no_grad()
def score_sequences(
    logps: ResponseLogps, sequences: Sequences, micro_batch_tokens: int, group_S: Ints | None = None
) -> Tensor:
    """The log-probability of each sequence's response, (S,) float32 on the CPU.

    Sequences with the same number in `group_S` have the same prompt, which a packed row computes once.
    """
    result_S = torch.empty(len(sequences), dtype=torch.float32)
    for chosen_S, rows in _rows_of(sequences, micro_batch_tokens, logps.packed, group_S):
        logps_S: Tensor = logps(rows.to(logps.model.device))
        result_S[torch.from_numpy(chosen_S)] = logps_S.cpu()
    return result_S


def _rows_of(
    sequences: Sequences, micro_batch_tokens: int, packed: bool, group_S: Ints | None
) -> Iterator[tuple[Ints, Rows]]:
    """All sequences, in as many passes as the budget needs: the indices of each pass, and its rows."""
    if not packed:
        for chosen_S in micro_batches(sequences.lengths_S, 1, micro_batch_tokens):
            yield chosen_S, padded_rows(sequences, chosen_S)
        return
    group_S, tokens_G = group_sequences(sequences, group_S)
    for groups in micro_batches(tokens_G, 1, micro_batch_tokens):
        chosen_S = np.flatnonzero(np.isin(group_S, groups))
        yield chosen_S, packed_rows(sequences, chosen_S, group_S[chosen_S])


def group_sequences(sequences: Sequences, group_S: Ints | None) -> tuple[Ints, Ints]:
    """Number the groups from 0, and count their tokens.

    Args:
        sequences: S sequences.
        group_S: any number for each sequence, the same for those that share a prompt; None if none do.

    Returns:
        The group of each sequence, (S,), and the tokens of each group, (G,), its prompt counted once.
    """
    _, first, group_S = np.unique(
        np.arange(len(sequences)) if group_S is None else group_S, return_index=True, return_inverse=True
    )
    responses_S = (sequences.lengths_S - sequences.prompts_S).astype(float)
    tokens_G = sequences.prompts_S[first] + np.bincount(group_S, weights=responses_S, minlength=len(first)).astype(int)
    return group_S, tokens_G
