"""Reading folders: which files they give, and one line for what cannot be read."""

import gzip
import json

import pytest

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.data.conversations import conversations
from spin_core.data.sources import prompt_rows, read_rows
from spin_core.errors import DataError
from tests.support.lineages.built_prompts import rows_of, write_jsonl


@pytest.mark.parametrize("name", ["m [v2]", "a*b?", "{x}", "plain"])
def test_a_folders_name_is_not_a_pattern(tmp_path, name):
    for other, rows in ((name, rows_of(3)), ("m v", rows_of(1)), ("axxb1", rows_of(1))):
        (tmp_path / other).mkdir()
        write_jsonl(tmp_path / other / "train.jsonl", rows)
    assert read_rows(SourceConfig(path=str(tmp_path / name)))[0] == rows_of(3)


def test_files_of_different_types_are_read_together_where_nothing_uses_the_difference(build, tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train-0.jsonl", [{**row, "note": None} for row in rows_of(2)])
    write_jsonl(tmp_path / "data" / "train-1.jsonl", [{**row, "note": [1], "extra": 2} for row in rows_of(4)[2:]])
    built = build(tmp_path / "data")
    assert len(built.pairs) == 4
    assert built.fields["unused_columns"] == ["extra", "note"]


def test_a_row_of_a_folder_is_named_by_its_file_and_number(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train-0.jsonl", rows_of(2))
    write_jsonl(tmp_path / "data" / "train-1.jsonl", [*rows_of(1), {"prompt": 5, "response": "x"}])
    config = PromptsConfig(source=SourceConfig(path=str(tmp_path / "data")))
    with pytest.raises(DataError, match=r"data/train-1.jsonl, row 2: prompt is int 5, not text"):
        conversations(prompt_rows(config)[0], config, "data")


def test_splits_are_found_by_the_names_of_files_of_any_kind(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    (tmp_path / "data" / "test.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "b"}\n'))
    for split, prompt in (("train", "a"), ("test", "b")):
        assert read_rows(SourceConfig(path=str(tmp_path / "data"), split=split))[0] == [{"prompt": prompt}]
    with pytest.raises(DataError, match=r"has no split 'x': set prompts.source.split to one of train, test"):
        read_rows(SourceConfig(path=str(tmp_path / "data"), split="x"))


def test_a_numbers_text_in_a_folders_csv_stays_as_it_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("prompt;response\n4+4=;08\n")
    config = PromptsConfig(source=SourceConfig(path=str(tmp_path / "data")))
    assert prompt_rows(config)[0] == [{"prompt": "4+4=", "response": "08"}]


def test_a_card_that_says_how_to_read_the_files_is_followed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n  sep: "~"\n---\n'
    )
    (tmp_path / "data" / "rows.csv").write_text("prompt~response\na~b\n")
    assert read_rows(SourceConfig(path=str(tmp_path / "data")))[0] == [{"prompt": "a", "response": "b"}]


def test_a_folder_of_plain_text_is_read_by_line(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("one\ntwo\n")
    assert read_rows(SourceConfig(path=str(tmp_path / "data")))[0] == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("files", [[], ["README.md"]])
def test_a_folder_without_data_is_named(tmp_path, files):
    (tmp_path / "data").mkdir()
    for name in files:
        (tmp_path / "data" / name).write_text("# Nothing yet\n")
    with pytest.raises(DataError, match=r"/data holds no data: set prompts\.source\.path to a file or to a folder"):
        read_rows(SourceConfig(path=str(tmp_path / "data")))


def test_the_subsets_of_a_card_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two"))
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for number, name in enumerate(("one", "two"), start=1):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows_of(number))
    with pytest.raises(DataError, match=r"has several subsets: set prompts\.source\.subset to one of one, two$"):
        read_rows(SourceConfig(path=str(tmp_path / "data")))
    assert read_rows(SourceConfig(path=str(tmp_path / "data"), subset="two"))[0] == rows_of(2)


def test_a_folder_with_a_script_is_rejected_in_one_line(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("import datasets\nraise SystemExit('this ran')\n")
    write_jsonl(tmp_path / "old" / "train.jsonl", rows_of(2))
    with pytest.raises(DataError, match=r"old holds a data set script, old.py, which is not run: set prompts.source.p"):
        read_rows(SourceConfig(path=str(tmp_path / "old")))


def test_a_folder_whose_card_is_not_yaml_is_rejected_in_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("---\nconfigs: [\n---\n")
    write_jsonl(tmp_path / "data" / "train.jsonl", rows_of(2))
    with pytest.raises(DataError, match="cannot be read as a data set") as refused:
        read_rows(SourceConfig(path=str(tmp_path / "data")))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["train-1.jsonl", "more", "LICENSE.txt"])
def test_a_link_that_leads_nowhere_is_one_line(tmp_path, name):
    write_jsonl(tmp_path / "train-0.jsonl", rows_of(2))
    (tmp_path / name).symlink_to("blobs/gone")
    with pytest.raises(DataError, match=rf"{name} is a link to blobs/gone, which does not exist: restore that, remove"):
        read_rows(SourceConfig(path=str(tmp_path)))


def test_links_that_lead_back_end(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", rows_of(2))
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert read_rows(SourceConfig(path=str(tmp_path / "data")))[0] == rows_of(2)


def test_a_saved_data_set_reads_only_what_is_used(build, tmp_path):
    import datasets
    import pyarrow as pa

    table = pa.Table.from_pylist(rows_of(2000)).append_column("when", pa.array([2**62] * 2000, pa.timestamp("s")))
    datasets.Dataset(table).save_to_disk(str(tmp_path / "[saved]"))
    built = build(tmp_path / "[saved]")
    assert len(built.pairs) == 2000
    assert json.loads(json.dumps(built.fields["unused_columns"])) == ["when"]


def test_notes_and_licences_beside_the_data_are_not_read(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows_of(3))
    for name in ("notes.txt", "LICENSE.txt", "more.txt"):
        (tmp_path / name).write_text("Permission is hereby granted, free of charge, to any person.\n" * 9)
    assert read_rows(SourceConfig(path=str(tmp_path)))[0] == rows_of(3)


def test_a_folder_with_data_of_several_types_is_rejected_with_the_files_that_would_be_left_out(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, rows_of(3))
    (tmp_path / "c.csv").write_text("prompt,response\na,b\n")
    with pytest.raises(DataError, match=r"several types, of which c\.csv would not be read: move these elsewhere"):
        read_rows(SourceConfig(path=str(tmp_path)))


@pytest.mark.parametrize("name", ["test", "latest", "my-test-1", "train", "validation"])
def test_a_file_gives_its_rows_whatever_its_name_and_the_split(tmp_path, name):
    file = write_jsonl(tmp_path / f"{name}.jsonl", rows_of(2))
    for split in ("train", "test"):
        assert read_rows(SourceConfig(path=str(file), split=split))[0] == rows_of(2)


def test_a_split_is_a_whole_word_of_a_files_name(tmp_path):
    for folder in ("words", "test-data"):
        (tmp_path / folder).mkdir()
        for name in ("latest", "contest", "attestation", "developer", "strain", "evaluations"):
            write_jsonl(tmp_path / folder / f"{name}.jsonl", rows_of(1))
        assert len(read_rows(SourceConfig(path=str(tmp_path / folder)))[0]) == 6
        with pytest.raises(DataError, match=r"has no split 'test': set prompts.source.split to one of train"):
            read_rows(SourceConfig(path=str(tmp_path / folder), split="test"))


def test_files_without_a_split_next_to_one_with_a_split_are_named(tmp_path):
    for name in ("my-test", "latest"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows_of(1))
    with pytest.raises(
        DataError,
        match=r"files with and without a split in their names \(my-test\.jsonl is split test\), of which "
        r"latest\.jsonl would not be read",
    ):
        read_rows(SourceConfig(path=str(tmp_path)))


def test_files_of_text_alone_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert read_rows(SourceConfig(path=str(tmp_path)))[0] == [{"text": "one"}, {"text": "two"}]
