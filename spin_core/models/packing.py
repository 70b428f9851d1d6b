"""How sequences of token ids are laid out for one pass through a network: end to end in one row, or padded.

Shapes: S sequences, N rows of T tokens, R response tokens of all sequences, G groups of sequences that share a prompt.

A packed row holds each group's prompt once, and behind it the group's responses. Attention sees S separate sequences
all the same (`attention.py`), and positions restart, so that a packed row computes what its sequences would alone.
"""

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spin_core.data.sequences import Ints, Sequences, micro_batches

ALIKE = 0.85
"""Sequences of at least so much of the longest one's length share a call of attention."""

WORTH_A_CALL = 2**15
"""Query-key products of a head below which a call of attention is not worth its own start. Measured."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Which tokens of a packed row attend to one another."""

    position_ids_1T: Tensor
    """The place of each token in its own sequence."""

    calls: tuple[tuple[int, int], ...]
    """Sequences b and length L of each call of attention."""

    bounds: Tensor
    """Where each sequence of all calls begins among their places, and where the last one ends: int32, (S + 1,)."""

    token_F: Tensor
    """The token at each place of all calls, laid end to end. A sequence's last token is repeated as padding."""

    place_T: Tensor
    """A place of each token. A shared prompt has several, and any will do for its result, which is the same in all."""

    again: tuple[tuple[Tensor, Tensor], ...]
    """The other places of shared prompts: tokens and their places, none of them twice, for each further response."""


@dataclass(frozen=True)
class Rows:
    """What one forward pass reads, and which of its hidden states predict which response tokens."""

    input_ids_NT: Tensor

    at_R: Tensor
    """Where a response token is predicted: index into the N x T hidden states, laid end to end."""

    target_R: Tensor
    """The response tokens, sequence after sequence."""

    responses_S: Tensor
    """Response tokens of each sequence; they add up to R."""

    layout: Layout | None = None
    """Of a packed row; None for padded ones."""

    def to(self, device: torch.device) -> "Rows":
        """The same on a device."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        layout = self.layout
        if layout is not None:
            layout = Layout(
                position_ids_1T=move(layout.position_ids_1T),
                calls=layout.calls,
                bounds=move(layout.bounds),
                token_F=move(layout.token_F),
                place_T=move(layout.place_T),
                again=tuple((move(token), move(place)) for token, place in layout.again),
            )
        return Rows(move(self.input_ids_NT), move(self.at_R), move(self.target_R), move(self.responses_S), layout)


def padded_rows(sequences: Sequences, chosen: Ints) -> Rows:
    """One row for each chosen sequence, padded on the right.

    No attention mask is needed: padding comes after all that counts, and a causal model does not look ahead. The
    token at t is predicted by the hidden state at t - 1.
    """
    starts_S, prompts_S, lengths_S = (
        values[chosen] for values in (sequences.starts_S, sequences.prompts_S, sequences.lengths_S)
    )
    at_T = np.arange(max(2, int(lengths_S.max(initial=0))))
    inside_NT = at_T < lengths_S[:, None]
    ids_NT = np.where(inside_NT, sequences.tokens.take(starts_S[:, None] + at_T, mode="clip"), 0)
    response_NT = inside_NT & (at_T >= prompts_S[:, None])
    response_R = np.flatnonzero(response_NT)
    return Rows(
        input_ids_NT=torch.from_numpy(ids_NT),
        at_R=torch.from_numpy(response_R - 1),
        target_R=torch.from_numpy(ids_NT.reshape(-1)[response_R]),
        responses_S=torch.from_numpy(lengths_S - prompts_S),
    )


def packed_rows(sequences: Sequences, chosen_S: Ints, group_S: Ints) -> Rows:
    """One row of all chosen sequences. Those of one group have the same prompt, which is there once."""
    order = np.argsort(group_S, kind="stable")
    prompts_S, lengths_S = sequences.prompts_S[chosen_S], sequences.lengths_S[chosen_S]
    responses_S = lengths_S - prompts_S
    opens = np.diff(group_S[order], prepend=-1) != 0  # the first of its group, before which the prompt lies
    tokens = responses_S[order] + np.where(opens, prompts_S[order], 0)
    start = np.cumsum(tokens) - tokens
    group = np.cumsum(opens) - 1
    prompt_at_S, response_at_S = (np.empty(len(order), np.int64) for _ in range(2))
    prompt_at_S[order] = start[opens][group]
    response_at_S[order] = start + np.where(opens, prompts_S[order], 0)
    first_S = order[opens]
    side_S = np.empty(len(order), np.int64)
    side_S[order] = np.arange(len(order)) - np.flatnonzero(opens)[group] + 1

    width = max(2, int(tokens.sum()))  # transformers takes a row of one token for a step of generation
    ids_T, position_T = np.zeros(width, np.int64), np.zeros(width, np.int64)
    at = spans(prompt_at_S[first_S], prompts_S[first_S])
    ids_T[at] = sequences.tokens[spans(sequences.starts_S[chosen_S[first_S]], prompts_S[first_S])]
    position_T[at] = spans(np.zeros(len(first_S), np.int64), prompts_S[first_S])
    at_R = spans(response_at_S, responses_S)
    target_R = sequences.tokens[spans(sequences.starts_S[chosen_S] + prompts_S, responses_S)]
    ids_T[at_R] = target_R
    position_T[at_R] = spans(prompts_S, responses_S)
    calls, tokens_of_calls, starts_S, places = [], [np.zeros(0, np.int64)], np.zeros(len(order), np.int64), 0
    for chosen in alike(lengths_S):
        longest = max(1, int(lengths_S[chosen[0]]))
        at_bL = np.minimum(np.arange(longest), lengths_S[chosen, None] - 1)
        behind_bL = at_bL - prompts_S[chosen, None]
        tokens_bL = np.where(behind_bL < 0, prompt_at_S[chosen, None] + at_bL, response_at_S[chosen, None] + behind_bL)
        tokens_of_calls.append(tokens_bL.reshape(-1))
        starts_S[chosen] = places + np.arange(len(chosen)) * longest
        calls.append((len(chosen), longest))
        places += tokens_bL.size
    place_T = np.zeros(width, np.int64)
    place_T[at] = spans(starts_S[first_S], prompts_S[first_S])
    place_T[at_R] = spans(starts_S + prompts_S, responses_S)
    again = []
    for side in range(2, int(side_S.max(initial=1)) + 1):
        others = np.flatnonzero(side_S == side)
        token, place = (spans(begin[others], prompts_S[others]) for begin in (prompt_at_S, starts_S))
        again.append((torch.from_numpy(token), torch.from_numpy(place)))
    layout = Layout(
        position_ids_1T=torch.from_numpy(position_T[None]),
        calls=tuple(calls),
        bounds=torch.tensor(np.cumsum([0, *(length for b, length in calls for _ in range(b))]), dtype=torch.int32),
        token_F=torch.from_numpy(np.concatenate(tokens_of_calls)),
        place_T=torch.from_numpy(place_T),
        again=tuple(again),
    )

    # A response's first token is predicted by the prompt's last one, which all of its group share.
    there = responses_S > 0
    predicts_R = at_R - 1
    predicts_R[(np.cumsum(responses_S) - responses_S)[there]] = (prompt_at_S + prompts_S - 1)[there]
    return Rows(
        input_ids_NT=torch.from_numpy(ids_T[None]),
        at_R=torch.from_numpy(predicts_R),
        target_R=torch.from_numpy(target_R),
        responses_S=torch.from_numpy(responses_S),
        layout=layout,
    )


def alike(lengths_S: Ints) -> list[Ints]:
    """The sequences, longest first, cut where they become much shorter and the call is worth its start."""
    order = np.argsort(-lengths_S, kind="stable")
    falling_S = lengths_S[order]
    cuts, start = [], 0
    while start < len(order):
        longest = int(falling_S[start])
        end = start + int(np.searchsorted(-falling_S[start:], -longest * ALIKE, side="right"))
        end = max(end, start + -(-WORTH_A_CALL // (longest * longest)))
        cuts.append(order[start:end])
        start = end
    return cuts


def spans(starts: Ints, lengths: Ints) -> Ints:
    """The ranges that begin at `starts`, end to end."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def deal(tokens_B: Ints, ranks: int, max_tokens: int) -> list[list[Ints]]:
    """Share out a batch's items: for each rank, its micro-batches of packed rows of at most `max_tokens` tokens.

    All ranks get equally many micro-batches, of loads as equal as dealing the longest items first makes them. An item
    that is longer than `max_tokens` goes alone. A micro-batch can be empty, if there are fewer items than ranks.
    """
    each = max(1, -(-int(tokens_B.clip(max=max_tokens).sum()) // (ranks * max_tokens)))
    order = np.argsort(-tokens_B, kind="stable")
    while True:
        bins: list[list[int]] = [[] for _ in range(ranks * each)]
        loads = [(0, index) for index in range(len(bins))]
        full = False
        for item in order:
            load, index = heapq.heappop(loads)
            full |= bool(bins[index]) and load + int(tokens_B[item]) > max_tokens
            bins[index].append(int(item))
            heapq.heappush(loads, (load + int(tokens_B[item]), index))
        if not full:
            break
        each += 1
    parts = [np.array(sorted(items), np.int64) for items in bins]
    return [parts[rank::ranks] for rank in range(ranks)]


def share(tokens_G: Ints, ranks: int) -> Ints:
    """The rank of each group, (G,), by loads as equal as dealing the groups of most tokens first makes them."""
    rank_G = np.empty(len(tokens_G), np.int64)
    loads = [(0, rank) for rank in range(ranks)]
    for group in np.argsort(-tokens_G, kind="stable"):
        load, rank_G[group] = loads[0]
        heapq.heapreplace(loads, (load + int(tokens_G[group]), int(rank_G[group])))
    return rank_G


def deal_padded(lengths_B: Ints, sides: int, ranks: int, max_tokens: int) -> list[list[Ints]]:
    """The same for padded rows: items of like length go to all ranks in turn."""
    order = np.argsort(-lengths_B, kind="stable")
    shares = [order[rank::ranks] for rank in range(ranks)]
    parts = [[mine[cut] for cut in micro_batches(lengths_B[mine], sides, max_tokens)] for mine in shares]
    most = max(map(len, parts))
    return [part + [np.zeros(0, np.int64)] * (most - len(part)) for part in parts]
