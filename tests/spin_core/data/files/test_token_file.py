"""Token ids on disk are those of the table, in any order of rows, and take no memory for each token."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.data.files.token_file import TokenFile
from spin_core.errors import DataError

ROWS = [([1, 2], [3], [4, 5, 6]), ([7], [], [8]), ([9, 10, 11], [12, 13], [])]


def write(folder, rows):
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    names = ("prompt_ids", "real_ids", "generated_ids")
    ids = pa.list_(pa.int32())
    table = pa.table({name: pa.array(list(column), ids) for name, column in zip(names, columns, strict=True)})
    pq.write_table(table, folder / "pairs.parquet", row_group_size=2)
    return TokenFile.write(folder / "tokens", folder / "pairs.parquet", *names)


def test_each_row_reads_as_it_was_written(tmp_path):
    tokens = write(tmp_path, ROWS)
    assert len(tokens) == 3
    assert tokens.sides == 2
    for row in (2, 0, 1):
        assert [part.tolist() for part in tokens.read(row)] == list(ROWS[row])
    assert [prompt.tolist() for prompt in tokens.prompts(np.array([1, 0]))] == [[7], [1, 2]]


def test_another_process_opens_what_was_written(tmp_path):
    write(tmp_path, ROWS)
    assert [part.tolist() for part in TokenFile(tmp_path / "tokens").read(0)] == list(ROWS[0])


def test_sequences_come_side_by_side(tmp_path):
    sequences = write(tmp_path, ROWS).sequences(np.array([2, 0]))
    assert sequences.prompts_S.tolist() == [3, 2, 3, 2]
    assert sequences.lengths_S.tolist() == [5, 3, 3, 5]
    assert sequences.tokens.tolist() == [9, 10, 11, 12, 13, 1, 2, 3, 9, 10, 11, 1, 2, 4, 5, 6]


def test_responses_are_chosen_by_row_and_column(tmp_path):
    prompts, responses = write(tmp_path, ROWS).chosen_sequences(np.array([0, 2]), np.array([2, 1]))
    assert [ids.tolist() for ids in prompts] == [[1, 2], [9, 10, 11]]
    assert [ids.tolist() for ids in responses] == [[4, 5, 6], [12, 13]]


def test_a_table_without_rows_is_empty(tmp_path):
    tokens = write(tmp_path, [])
    assert len(tokens) == 0
    assert tokens.lengths_NC.shape == (0, 3)


def test_a_prompt_without_tokens_is_refused_with_its_row(tmp_path):
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        write(tmp_path, [ROWS[0], ([], [1], [2])])
