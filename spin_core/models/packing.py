"""How sequences of token ids are laid out for one pass through a network: packed into one row, or padded.

A packed row holds each prompt once, and after it all of the prompt's responses. No token is padding, and no prompt is
computed twice. Each token still attends as if its sequence were alone (`attention.py`), and positions restart with
each response, so that a packed row computes what its sequences would compute by themselves.

    two prompts, p p and q, with two responses each

    sequences S   0: p p a      1: q b b      2: p p c c c      3: q          (the response of 3 is empty)

    token T       0 1   2   3 4 5   6   7 8
    row           p p | a | c c c | q | b b |
    position      0 1   2   2 3 4   0   1 2

Attention cannot work on the row as it is, since `p p` belongs to two sequences. It works on slots: all sequences end
to end, each with its whole prompt. Sequences of similar length share a call of the kernel and are padded to the longest
of that call with copies of their last token:

    slot F        0 1 2 3 4   5 6 7 8 9   10 …         15 …
    sequence      2           0           1            3
    token         p p c c c   p p a a a   q b b b b    q q q q q
    token_F       0 1 3 4 5   0 1 2 2 2   6 7 8 8 8    6 6 6 6 6

The result of each token is read from one of its slots (`slot_T`). A shared prompt has several slots, which all give the
same result, because no token sees what comes after it. Its gradient, however, is the sum over all of them: the slots
beyond the first are in `repeats`.

Shapes: S sequences, N rows of T tokens, R response tokens of all sequences, G groups of sequences that share a prompt,
P prompt tokens of all groups, b sequences of L tokens in a call of attention, F slots of all calls.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spin_core.data.sequences import Ints, Sequences

_SIMILAR_LENGTH = 0.85
"""Sequences of at least this share of the longest one's length share a call of attention."""

_WORTH_A_CALL = 2**15
"""Query-key products of a head below which a call of attention is not worth the cost of starting it. Measured."""

_SHORTEST_ROW = 2
"""transformers takes a row of one token for a step of generation."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Which tokens of a packed row attend to each other; the module's docstring shows an example."""

    position_ids_1T: Tensor
    """The position of each token in its own sequence."""

    calls: tuple[tuple[int, int], ...]
    """(b, L) of each call of attention: how many sequences, and their common length with padding."""

    cu_seqlens: Tensor
    """The slot at which each sequence begins, and the end of the last one: int32, (S + 1,)."""

    token_F: Tensor
    """The token in each slot."""

    slot_T: Tensor
    """A slot of each token, from which its result is taken."""

    repeats: tuple[tuple[Tensor, Tensor], ...]
    """The other slots of shared prompts, as (tokens, slots): one entry for the second response to each prompt, one for
    the third, and so on. No token occurs twice within an entry, so adding at these tokens needs no scatter."""


@dataclass(frozen=True)
class Rows:
    """What one forward pass reads, and which of its hidden states predict which response tokens."""

    input_ids_NT: Tensor

    at_R: Tensor
    """Where each response token is predicted: an index into the N x T hidden states, laid end to end."""

    target_R: Tensor
    """The response tokens, sequence after sequence."""

    responses_S: Tensor
    """Response tokens of each sequence; they add up to R."""

    layout: Layout | None = None
    """Of a packed row; None for padded rows."""

    def model_inputs(self) -> dict[str, object]:
        """The arguments of the model's forward pass. The layout reaches `attention.py` as the keyword `packing`."""
        inputs: dict[str, object] = {"input_ids": self.input_ids_NT, "use_cache": False}
        if self.layout is not None:
            inputs |= {"position_ids": self.layout.position_ids_1T, "packing": self.layout}
        return inputs

    def to(self, device: torch.device) -> "Rows":
        """The same rows on a device."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        layout = self.layout
        if layout is not None:
            layout = Layout(
                position_ids_1T=move(layout.position_ids_1T),
                calls=layout.calls,
                cu_seqlens=move(layout.cu_seqlens),
                token_F=move(layout.token_F),
                slot_T=move(layout.slot_T),
                repeats=tuple((move(token), move(slot)) for token, slot in layout.repeats),
            )
        return Rows(move(self.input_ids_NT), move(self.at_R), move(self.target_R), move(self.responses_S), layout)


def padded_rows(sequences: Sequences, chosen_S: Ints) -> Rows:
    """One row for each chosen sequence, padded on the right.

    No attention mask is needed: padding comes after everything that counts, and a causal model does not look ahead. The
    token at t is predicted by the hidden state at t - 1.
    """
    starts_S, prompts_S, lengths_S = (
        values[chosen_S] for values in (sequences.starts_S, sequences.prompts_S, sequences.lengths_S)
    )
    at_T = np.arange(max(_SHORTEST_ROW, int(lengths_S.max(initial=0))))
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
    """One packed row of all chosen sequences.

    Args:
        sequences: where the token ids are.
        chosen_S: the indices of the sequences to pack.
        group_S: a number for each chosen sequence. Sequences of the same number have the same prompt, which is in the
            row once.
    """
    starts_S, prompts_S, lengths_S = (
        values[chosen_S] for values in (sequences.starts_S, sequences.prompts_S, sequences.lengths_S)
    )
    responses_S = lengths_S - prompts_S
    at = _arrange(prompts_S, responses_S, group_S)

    # The row's tokens come in two kinds: prompt tokens, copied from the first sequence of each group, and response
    # tokens, in the order of the sequences. Each `spans` below lists the same tokens, by another kind of index.
    first_G = at.first_G
    prompt_P, response_R = spans(at.prompt_S[first_G], prompts_S[first_G]), spans(at.response_S, responses_S)
    target_R = sequences.tokens[spans(starts_S + prompts_S, responses_S)]
    ids_T, position_T = np.zeros(at.width, np.int64), np.zeros(at.width, np.int64)
    ids_T[prompt_P] = sequences.tokens[spans(starts_S[first_G], prompts_S[first_G])]
    ids_T[response_R] = target_R
    position_T[prompt_P] = spans(np.zeros(len(first_G), np.int64), prompts_S[first_G])
    position_T[response_R] = spans(prompts_S, responses_S)

    # A token is predicted by the one before it. Before a response's first token that is the prompt's last one, which
    # is further back in the row where another response to the same prompt is in between.
    predicts_R = response_R - 1
    has_response_S = responses_S > 0
    first_token_S = np.cumsum(responses_S) - responses_S
    predicts_R[first_token_S[has_response_S]] = (at.prompt_S + prompts_S - 1)[has_response_S]

    return Rows(
        input_ids_NT=torch.from_numpy(ids_T[None]),
        at_R=torch.from_numpy(predicts_R),
        target_R=torch.from_numpy(target_R),
        responses_S=torch.from_numpy(responses_S),
        layout=_layout_of(at, prompts_S, responses_S, position_T),
    )


@dataclass(frozen=True)
class _Arrangement:
    """Where the sequences of a packed row are in it."""

    prompt_S: Ints
    """The token at which the sequence's prompt begins; the same one for all sequences of a group."""

    response_S: Ints
    """The token at which the sequence's response begins, or would if it had one."""

    number_S: Ints
    """0 for the first sequence of its group, 1 for the second, and so on."""

    first_G: Ints
    """The first sequence of each group, in the order of the row."""

    width: int
    """Tokens of the row, T."""


def _arrange(prompts_S: Ints, responses_S: Ints, group_S: Ints) -> _Arrangement:
    """Place groups one after another, ordered by their number, and within a group its sequences in their order.

    The index arithmetic works in the order of the row (suffix O: the S sequences as the row has them), where each
    sequence takes its response's tokens, and the first of a group its prompt's as well. So starts are running sums.
    Assigning to `array_S[order]` takes a result back to the order in which the sequences were given.
    """
    order = np.argsort(group_S, kind="stable")
    opens_group_O = np.diff(group_S[order], prepend=-1) != 0
    prompts_O = np.where(opens_group_O, prompts_S[order], 0)
    tokens_O = prompts_O + responses_S[order]
    start_O = np.cumsum(tokens_O) - tokens_O
    # Which group each sequence is in, and where in the order that group begins.
    group_O, opening_G = np.cumsum(opens_group_O) - 1, np.flatnonzero(opens_group_O)
    prompt_S, response_S, number_S = (np.empty(len(order), np.int64) for _ in range(3))
    prompt_S[order] = start_O[opening_G][group_O]
    response_S[order] = start_O + prompts_O
    number_S[order] = np.arange(len(order)) - opening_G[group_O]
    return _Arrangement(prompt_S, response_S, number_S, order[opening_G], max(_SHORTEST_ROW, int(tokens_O.sum())))


def _layout_of(at: _Arrangement, prompts_S: Ints, responses_S: Ints, position_T: Ints) -> Layout:
    """The slots of attention for a row that is arranged like this."""
    lengths_S = prompts_S + responses_S
    calls: list[tuple[int, int]] = []
    tokens_of_calls = [np.zeros(0, np.int64)]
    slot_S, slots = np.zeros(len(lengths_S), np.int64), 0  # the slot at which each sequence begins
    for chosen in _similar_lengths(lengths_S):
        longest = max(1, int(lengths_S[chosen[0]]))
        # The place in its own sequence of what each slot holds: 0, 1, 2, …, and the last one again as padding.
        within_bL = np.minimum(np.arange(longest), lengths_S[chosen, None] - 1)
        after_prompt_bL = within_bL - prompts_S[chosen, None]
        tokens_bL = np.where(
            after_prompt_bL < 0, at.prompt_S[chosen, None] + within_bL, at.response_S[chosen, None] + after_prompt_bL
        )
        tokens_of_calls.append(tokens_bL.reshape(-1))
        slot_S[chosen] = slots + np.arange(len(chosen)) * longest
        calls.append((len(chosen), longest))
        slots += tokens_bL.size

    first_G = at.first_G
    slot_T = np.zeros(at.width, np.int64)
    slot_T[spans(at.prompt_S[first_G], prompts_S[first_G])] = spans(slot_S[first_G], prompts_S[first_G])
    slot_T[spans(at.response_S, responses_S)] = spans(slot_S + prompts_S, responses_S)
    repeats = []
    for number in range(1, int(at.number_S.max(initial=0)) + 1):
        others = np.flatnonzero(at.number_S == number)
        token, slot = (spans(begin_S[others], prompts_S[others]) for begin_S in (at.prompt_S, slot_S))
        repeats.append((torch.from_numpy(token), torch.from_numpy(slot)))
    lengths = [length for sequences, length in calls for _ in range(sequences)]
    return Layout(
        position_ids_1T=torch.from_numpy(position_T[None]),
        calls=tuple(calls),
        cu_seqlens=torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
        token_F=torch.from_numpy(np.concatenate(tokens_of_calls)),
        slot_T=torch.from_numpy(slot_T),
        repeats=tuple(repeats),
    )


def _similar_lengths(lengths_S: Ints) -> list[Ints]:
    """The sequences, longest first, cut where they become much shorter and the call is worth the cost of its start."""
    order = np.argsort(-lengths_S, kind="stable")
    falling_S = lengths_S[order]
    cuts, start = [], 0
    while start < len(order):
        longest = int(falling_S[start])
        end = start + int(np.searchsorted(-falling_S[start:], -longest * _SIMILAR_LENGTH, side="right"))
        end = max(end, start + -(-_WORTH_A_CALL // (longest * longest)))
        cuts.append(order[start:end])
        start = end
    return cuts


def spans(starts: Ints, lengths: Ints) -> Ints:
    """The ranges that begin at `starts`, end to end: starts 7, 3 and lengths 2, 3 give 7, 8, 3, 4, 5."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    # Along the result, each range's index minus its place is constant; repeat that constant, and add the place.
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
