"""Layouts of rows, and how a batch is shared out."""

import numpy as np

from spin_core.data.sequences import Sequences
from spin_core.models.packing import _similar_lengths, packed_rows, spans

SEQUENCES = Sequences.of([[5, 6], [7], [5, 6], [7]], [[20], [21, 22], [30, 31, 32], []])
EVERYTHING, TWO_PROMPTS = np.arange(4), np.array([0, 1, 0, 1])


def test_a_row_holds_each_prompt_once_with_its_responses_behind_it():
    rows = packed_rows(SEQUENCES, EVERYTHING, TWO_PROMPTS)
    assert rows.input_ids_NT.tolist() == [[5, 6, 20, 30, 31, 32, 7, 21, 22]]
    assert rows.layout.position_ids_1T.tolist() == [[0, 1, 2, 2, 3, 4, 0, 1, 2]]


def test_attention_sees_each_sequence_whole_the_longest_first_and_padded_with_its_last_token():
    rows = packed_rows(SEQUENCES, EVERYTHING, TWO_PROMPTS)
    assert rows.layout.calls == ((4, 5),)
    assert rows.layout.cu_seqlens.tolist() == [0, 5, 10, 15, 20]
    seen = rows.input_ids_NT[0, rows.layout.token_F].view(4, 5).tolist()
    assert seen == [[5, 6, 30, 31, 32], [5, 6, 20, 20, 20], [7, 21, 22, 22, 22], [7, 7, 7, 7, 7]]


def test_responses_come_in_the_order_of_the_sequences_and_start_from_the_prompts_last_token():
    rows = packed_rows(SEQUENCES, EVERYTHING, TWO_PROMPTS)
    assert rows.responses_S.tolist() == [1, 2, 3, 0]
    assert rows.target_R.tolist() == [20, 21, 22, 30, 31, 32]
    assert rows.at_R.tolist() == [1, 6, 7, 1, 3, 4]


def test_without_sharing_each_sequence_has_its_own_prompt():
    rows = packed_rows(SEQUENCES, EVERYTHING, EVERYTHING)
    assert rows.input_ids_NT.tolist() == [[5, 6, 20, 7, 21, 22, 5, 6, 30, 31, 32, 7]]
    assert rows.at_R.tolist() == [1, 3, 4, 7, 8, 9]


def test_groups_may_be_of_unlike_size_and_in_any_order():
    rows = packed_rows(SEQUENCES, np.array([3, 2, 0, 1]), np.array([9, 4, 4, 9]))
    assert rows.input_ids_NT.tolist() == [[5, 6, 30, 31, 32, 20, 7, 21, 22]]
    assert rows.target_R.tolist() == [30, 31, 32, 20, 21, 22]
    assert rows.responses_S.tolist() == [0, 3, 1, 2]


def test_each_call_of_attention_holds_whole_sequences_and_every_token_finds_its_result():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 99, n) for n in rng.integers(1, 40, 12)]
    sequences = Sequences.of(prompts * 2, [rng.integers(5, 99, n) for n in rng.integers(0, 300, 24)])
    rows = packed_rows(sequences, np.arange(24), np.tile(np.arange(12), 2))
    tokens, layout = rows.input_ids_NT[0].numpy(), rows.layout
    flat_tokens = tokens[layout.token_F.numpy()]
    assert np.array_equal(flat_tokens[layout.slot_T.numpy()], tokens)
    whole = {tuple(row) for part, call in zip(np.split(flat_tokens, np.cumsum([b * n for b, n in layout.calls])[:-1]),
                                              layout.calls, strict=True) for row in part.reshape(call)}  # fmt: skip
    for start, length in zip(sequences.starts_S, sequences.lengths_S, strict=True):
        ids = tuple(sequences.tokens[start : start + length])
        assert any(row[:length] == ids and set(row[length:]) <= {ids[-1]} for row in whole)


def test_every_place_is_a_tokens_own_or_another_one_of_its_prompt_or_padding():
    layout = packed_rows(SEQUENCES, EVERYTHING, TWO_PROMPTS).layout
    assert [(token.tolist(), slot.tolist()) for token, slot in layout.repeats] == [([0, 1, 6], [0, 1, 15])]
    assert sorted(layout.slot_T.tolist()) == [2, 3, 4, 5, 6, 7, 10, 11, 12]
    assert layout.token_F.tolist() == [0, 1, 3, 4, 5, 0, 1, 2, 2, 2, 6, 7, 8, 8, 8, 6, 6, 6, 6, 6]


def test_long_rows_take_several_calls():
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 99, n) for n in (500, 400, 60)]
    rows = packed_rows(Sequences.of([[5]] * 3, ids), np.arange(3), np.arange(3))
    assert rows.layout.calls == ((1, 501), (1, 401), (1, 61))


def test_a_row_of_a_single_token_is_widened():
    rows = packed_rows(Sequences.of([[5]], [[]]), np.arange(1), np.arange(1))
    assert rows.input_ids_NT.shape == (1, 2)
    assert rows.at_R.tolist() == []


def test_short_sequences_share_a_call_and_long_ones_only_with_their_like():
    assert [part.tolist() for part in _similar_lengths(np.array([3, 9, 5, 1]))] == [[1, 2, 0, 3]]
    assert [part.tolist() for part in _similar_lengths(np.array([400, 500, 200, 490]))] == [[1, 3], [0], [2]]


def test_spans_lays_ranges_end_to_end():
    assert spans(np.array([7, 3, 9]), np.array([2, 0, 3])).tolist() == [7, 8, 9, 10, 11]
    assert spans(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
