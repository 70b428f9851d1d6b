"""The answers of a generation in its shards, read a part at a time: memory does not grow with their number."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data.files.digests import Digests, digests_of
from spin_core.data.sequences import Ints
from spin_core.store.records import GenerationBatch

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("answer", pa.int32()),  # its number among the answers to this prompt
        ("opponent", pa.int32()),  # the version t that gave it
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),  # `stop` or `length`
    ]
)
"""The columns of a shard."""


class AnswerFiles:
    """The answers of a generation, numbered through all its shards."""

    def __init__(self, batch: GenerationBatch) -> None:
        """Read the ids of the answers. Only digests of them stay in memory."""
        self._paths = sorted(batch.path.glob("shard-*.parquet"))
        ids = [id_digests(pq.read_table(path, columns=["id"])["id"]) for path in self._paths]
        self._ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
        self.ids: Digests = np.concatenate([np.zeros(0, np.uint64), *ids])
        """A digest of the id of each answer's prompt."""
        self._in_memory: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints, columns: list[str]) -> pa.Table:
        """Some columns of some answers, in this order; a row of nulls for -1."""
        shards = np.searchsorted(self._ends, rows, side="right")
        needed = np.unique(shards[rows >= 0])
        # Prompts are answered in order, so the next call needs the last shards of this one.
        self._in_memory = {
            shard: self._in_memory[shard] if shard in self._in_memory else pq.read_table(self._paths[shard])
            for shard in needed.tolist()
        }
        tables = [self._in_memory[shard].select(columns) for shard in needed.tolist()]
        tables = tables or [SCHEMA.empty_table().select(columns)]
        begin_of_needed = np.cumsum([0, *map(len, tables)])[:-1]
        begins = np.concatenate([[0], self._ends])
        at = np.zeros(len(rows), np.int64)
        is_row = rows >= 0
        at[is_row] = begin_of_needed[np.searchsorted(needed, shards[is_row])] + rows[is_row] - begins[shards[is_row]]
        return pa.concat_tables(tables).take(pa.array(at, pa.int64(), mask=~is_row))


def id_digests(ids: pa.ChunkedArray) -> Digests:
    """A digest of each id, (N,)."""
    return digests_of(id.encode() for chunk in ids.iterchunks() for id in chunk.to_pylist())
