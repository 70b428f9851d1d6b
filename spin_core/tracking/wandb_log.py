"""Reading the file that W&B writes where it has no server: a log of protocol buffers, framed as LevelDB frames its own.

After a header of 7 bytes, blocks of 32 KiB hold chunks: checksum (4 bytes), length (2), kind (1), data. A record is one
chunk (kind 1), or a first, middle ones and a last (2, 3, 4). https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, CHUNK = 7, 2**15, 7

WHOLE, FIRST, LAST = 1, 2, 4


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """What was logged, row by row, up to where a kill cut the file short."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in read_records(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_records(content: bytes) -> Iterator[bytes]:
    """The records of a log."""
    place, record = HEADER, b""
    while place + CHUNK <= len(content):
        if (left := BLOCK - place % BLOCK) < CHUNK:  # too little for another chunk: zeros
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data = content[place + CHUNK : place + CHUNK + length]
        if len(data) < length or not WHOLE <= kind <= LAST:
            return
        place += CHUNK + length
        record = data if kind in (WHOLE, FIRST) else record + data
        if kind in (WHOLE, LAST):
            yield record
