"""Reading rows: files, folders, and what is wrong with them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.data import SourceConfig
from spin_core.data.files.folders import commit_of
from spin_core.data.sources import read_rows
from spin_core.errors import DataError
from tests.support.lineages.built_prompts import rows_of, write_jsonl

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


def test_a_folder_with_a_card_gives_its_own_rows_after_another_of_the_same_name(tmp_path):
    def response(folder: Path) -> str:
        return read_rows(SourceConfig(path=str(folder)))[0][0]["response"]

    assert response(folder_with_card(tmp_path / "one", "2")) == "2"
    assert response(folder_with_card(tmp_path / "two", "3")) == "3"
    assert response(folder_with_card(tmp_path / "one", "4")) == "4", "edited since"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv", "folder", "folder-on-disk", "json-lines"])
def test_every_kind_of_source_holds_the_same_rows(build, tmp_path, suffix):
    import datasets

    rows = rows_of(4)
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "json-lines":
        path = write_jsonl(tmp_path / "lines.json", rows)
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        path.write_text("prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows))
    elif suffix == "folder":
        path.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), path / "train-00000-of-00001.parquet")
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(path))
    assert build(path).pairs == sorted((row["prompt"], row["response"]) for row in rows)


def test_a_csv_keeps_numbers_as_they_are_written(build, tmp_path):
    path = tmp_path / "sums.csv"
    path.write_text('prompt,response\n"1,5+2=",3.50\n4+4=,08\n')
    assert build(path).pairs == [("1,5+2=", "3.50"), ("4+4=", "08")]


def test_an_unknown_source_is_named(build):
    with pytest.raises(DataError, match=r"no/such/file.jsonl does not exist: set prompts.source.path"):
        build("no/such/file.jsonl")


def test_a_hub_name_that_cannot_be_reached_is_named(build):
    with pytest.raises(DataError, match=r"nobody/nothing is neither a file or folder here nor on the hub"):
        build("nobody/nothing")


def test_the_error_for_an_unknown_kind_of_file_lists_known_kinds(build, tmp_path):
    (tmp_path / "data.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"one of the suffixes .json, .jsonl, .ndjson, .csv, .tsv, .parquet"):
        build(tmp_path / "data.xlsx")


def test_empty_data_are_rejected(build):
    with pytest.raises(DataError, match="holds no rows"):
        build([])


def test_bytes_that_are_not_utf8_are_named_by_their_line(build, tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "a", "response": "b"}\n{"prompt": "caf\u00e9", "response": "c"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl, line 2 is not UTF-8 \(byte 0xe9\): save the file as UTF-8"):
        build(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"prompt": "a", "response": "b"}\n\n{"prompt": \n',
            r"a.jsonl, line 3 is not JSON \(Expecting value",
        ),
        ("b.jsonl", '{"prompt": "a"}\n[1]\n', "b.jsonl, line 2 is list, not a JSON object"),
        ("c.json", '[{"prompt": "a"},\n{"prompt" "b"}]', r"c.json, line 2 is not JSON \(Expecting ':'"),
        ("d.json", '[{"prompt": "a"}, 7]', "d.json, row 2 is int, not a JSON object"),
        ("e.csv", "prompt,response\na,b\nc\n", "e.csv, line 3 has fewer or more fields than the first line"),
        ("f.csv", 'prompt,response\na,"b" c\n', "f.csv, line 2 is not CSV"),
        ("g.parquet", "not parquet", "g.parquet is not a Parquet file"),
    ],
)
def test_broken_files_are_named_by_their_line(build, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        build(tmp_path / name)


def test_an_unknown_split_names_the_ones_there_are(build, tmp_path):
    import datasets

    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows_of(2))}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"has no split 'train': set prompts.source.split to one of test"):
        build(tmp_path / "data")


def test_the_hub_commit_is_read_from_the_files_that_were_fetched():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert commit_of({f"hf://datasets/owner/name@{commit}/train.parquet": {}}) == commit
    assert commit_of(None) is None
