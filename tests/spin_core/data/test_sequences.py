"""Sequences, micro-batches and the order of the data."""

import pytest

from spin_core.data.sequences import Sequences, read_token_ids
from spin_core.errors import DataError


def test_sequences_lay_prompt_and_response_end_to_end():
    sequences = Sequences.of([[1, 2], [3]], [[4], [5, 6]])
    assert sequences.tokens.tolist() == [1, 2, 4, 3, 5, 6]
    assert (sequences.starts_S.tolist(), sequences.prompts_S.tolist(), sequences.lengths_S.tolist()) == (
        [0, 3], [2, 1], [3, 3],
    )  # fmt: skip


def test_a_prompt_without_tokens_is_rejected_with_the_fix():
    with pytest.raises(DataError, match=r"prompt 1 has no tokens.*add_bos"):
        Sequences.of([[1], []], [[2], [3]])


def test_token_ids_are_read_as_they_were_written(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [[1, 2], [], [3]]
    pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int32()))}), tmp_path / "x.parquet")
    (read,) = read_token_ids(tmp_path / "x.parquet", "ids")
    assert [ids.tolist() for ids in read] == rows
