"""Examples on disk: in the same bytes as those that are written at once, and chosen by row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.data.examples import Example
from spin_core.data.files import example_files
from spin_core.data.files.example_files import TOOLS, ExampleFile, table_of


def example(number: int) -> Example:
    ids = np.arange(number % 5 + 1, dtype=np.int32)
    return Example(f"{number:016x}", f"p{number}", "[]", f"r{number}", ids, ids + 1, "length" if number % 2 else "stop")


EXAMPLES = [example(number) for number in range(50)]


def test_parts_have_the_bytes_of_the_whole(tmp_path):
    with ExampleFile(tmp_path / "parts.parquet") as file:
        for first in range(0, len(EXAMPLES), 7):
            file.add(EXAMPLES[first : first + 7])
        file.add([])
    whole = table_of(EXAMPLES).append_column(TOOLS, pa.nulls(len(EXAMPLES), pa.string()))
    pq.write_table(whole, tmp_path / "whole.parquet")
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert [f"{id:016x}" for id in file.ids] == [row.id for row in EXAMPLES]
    assert sum(file.is_cut) == 25


@pytest.mark.parametrize("group", [1, 7, 50, 64])
def test_rows_are_chosen_across_groups(tmp_path, monkeypatch, group):
    monkeypatch.setattr(example_files, "GROUP", group)
    with ExampleFile(tmp_path / "all.parquet") as file:
        for first in range(0, len(EXAMPLES), 3):
            file.add(EXAMPLES[first : first + 3])
    chosen = [0, 6, 7, 8, 21, 48, 49]
    file.copy(chosen, tmp_path / "chosen.parquet")
    assert pq.read_table(tmp_path / "chosen.parquet") == table_of([EXAMPLES[row] for row in chosen])
    file.copy([], tmp_path / "none.parquet")
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_each_row_has_the_name_of_its_source_where_there_are_several(tmp_path):
    with ExampleFile(tmp_path / "all.parquet", with_source=True) as file:
        file.add(EXAMPLES[:2], "a")
        file.add(EXAMPLES[2:3], "b")
    file.copy([1, 2], tmp_path / "some.parquet")
    assert pq.read_table(tmp_path / "some.parquet")["source"].to_pylist() == ["a", "b"]


def test_tools_have_a_column_only_where_a_row_has_some(tmp_path):
    with ExampleFile(tmp_path / "all.parquet", with_source=True) as file:
        file.add(EXAMPLES[:2], "a")
        file.add([EXAMPLES[2]._replace(tools='[{"type": "function"}]')], "b")
    file.copy([1, 2], tmp_path / "some.parquet")
    assert pq.read_table(tmp_path / "some.parquet")["tools"].to_pylist() == [None, '[{"type": "function"}]']
