"""Sequences, micro-batches and the order of the data."""

import numpy as np
import pytest

from spin_core.data.sequences import DataOrder, Sequences, micro_batches, read_token_ids
from spin_core.errors import DataError

LENGTHS = np.random.default_rng(0).integers(1, 300, 200)


def test_sequences_lay_prompt_and_response_end_to_end():
    sequences = Sequences.of([[1, 2], [3]], [[4], [5, 6]])
    assert sequences.tokens.tolist() == [1, 2, 4, 3, 5, 6]
    assert (sequences.starts_S.tolist(), sequences.prompts_S.tolist(), sequences.lengths_S.tolist()) == (
        [0, 3], [2, 1], [3, 3],
    )  # fmt: skip


def test_a_prompt_without_tokens_is_refused_with_the_cure():
    with pytest.raises(DataError, match=r"prompt 1 has no tokens.*add_bos"):
        Sequences.of([[1], []], [[2], [3]])


@pytest.mark.parametrize("max_tokens", [1, 300, 1000, 10**6])
@pytest.mark.parametrize("rows_each", [1, 2])
def test_micro_batches_hold_each_item_once_within_the_budget(max_tokens, rows_each):
    parts = list(micro_batches(LENGTHS, rows_each, max_tokens))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LENGTHS)))
    assert all(LENGTHS[part].max() * rows_each * len(part) <= max_tokens or len(part) == 1 for part in parts)


def test_micro_batches_hold_little_padding():
    parts = list(micro_batches(LENGTHS, 2, 16384))
    padded = sum(LENGTHS[part].max() * len(part) for part in parts)
    assert LENGTHS.sum() / padded > 0.85
    assert LENGTHS.sum() / (LENGTHS.max() * len(LENGTHS)) < 0.55  # what one padded batch would hold


def test_equal_lengths_share_passes_as_large_as_the_budget():
    assert [len(part) for part in micro_batches(np.full(10, 7), 1, 28)] == [4, 4, 2]


def test_no_items_make_no_micro_batches():
    assert list(micro_batches(np.zeros(0, np.int64), 2, 100)) == []


def test_an_epoch_holds_each_item_once_and_epochs_differ():
    order = DataOrder(items=10, batch_size=4, seed=1)
    epochs = [np.concatenate([order.batch(3 * epoch + i) for i in range(3)]).tolist() for epoch in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert len(order.batch(2)) == 2


def test_a_batch_depends_on_its_step_alone():
    one, other = DataOrder(10, 4, seed=1), DataOrder(10, 4, seed=1)
    assert one.batch(7).tolist() == [other.batch(step) for step in (0, 4, 7)][-1].tolist()
    assert one.batch(7).tolist() != DataOrder(10, 4, seed=2).batch(7).tolist()


def test_token_ids_are_read_as_they_were_written(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [[1, 2], [], [3]]
    pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int32()))}), tmp_path / "x.parquet")
    (read,) = read_token_ids(tmp_path / "x.parquet", "ids")
    assert [ids.tolist() for ids in read] == rows
