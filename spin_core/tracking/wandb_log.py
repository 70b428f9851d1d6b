"""Read the file that W&B writes without a server: a log of protocol buffers in the format of LevelDB's logs.

After a header of 7 bytes, blocks of 32 KiB hold chunks: checksum (4 bytes), length (2), kind (1), data. A record is one
chunk (kind 1), or a first, middle ones and a last (2, 3, 4). https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _CHUNK_HEADER = 7, 2**15, 7
"""Bytes of the file's header, of a block, and of the header of a chunk."""

_WHOLE, _FIRST, _LAST = 1, 2, 4
"""Kinds of chunks. Kind 3 is a middle one."""


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The logged rows, up to where a kill cut the file short."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in read_records(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_records(content: bytes) -> Iterator[bytes]:
    """The records of a log, up to the first incomplete one."""
    offset, record = _HEADER, b""
    while offset + _CHUNK_HEADER <= len(content):
        if (left := _BLOCK - offset % _BLOCK) < _CHUNK_HEADER:  # no room for another chunk: zeros until the next block
            offset += left
            continue
        length, kind = int.from_bytes(content[offset + 4 : offset + 6], "little"), content[offset + 6]
        data = content[offset + _CHUNK_HEADER : offset + _CHUNK_HEADER + length]
        if len(data) < length or not _WHOLE <= kind <= _LAST:
            return
        offset += _CHUNK_HEADER + length
        record = data if kind in (_WHOLE, _FIRST) else record + data
        if kind in (_WHOLE, _LAST):
            yield record
