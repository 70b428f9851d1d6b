"""Rows of a folder: those that are in it now."""

import json
from pathlib import Path

from spin_core.config.data import SourceConfig
from spin_core.data.sources import _from_datasets

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.jsonl
---
"""


def folder_with_card(parent: Path, answer: str) -> Path:
    """A data set as the hub lays one out."""
    folder = parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(CARD)
    (folder / "train.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "response": answer}) + "\n")
    return folder


def test_a_folder_with_a_card_gives_its_own_rows_though_another_of_that_name_was_read_before(tmp_path):
    def response(folder: Path) -> str:
        return _from_datasets(folder, SourceConfig(path=str(folder)), "prompts.source")[0][0]["response"]

    assert response(folder_with_card(tmp_path / "one", "2")) == "2"
    assert response(folder_with_card(tmp_path / "two", "3")) == "3"
    assert response(folder_with_card(tmp_path / "one", "4")) == "4", "edited since"
