"""A journal: a file of rows that are written one by one, so that the end of a process loses none of them."""

import json
import threading
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """Rows in a file, one JSON object a line. An added row stays, whatever ends this process afterwards."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # a kill in the middle of a line
            path.write_bytes(whole)
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]

    def add(self, row: Row) -> None:
        """Write one row. Can be called from any thread."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            self.rows.append(row)
