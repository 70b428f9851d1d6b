"""Reading files: every format, compressed or not, and one line for what cannot be read."""

import bz2
import datetime
import gzip
import json
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.data import SourceConfig
from spin_core.data.files.opening import file_kind
from spin_core.data.files.reading import PART, read_parts
from spin_core.data.sources import on_hub, read_file
from spin_core.errors import DataError
from tests.support.lineages.built_prompts import rows_of

ROWS = rows_of(4)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in ROWS)
TEXTS = {".jsonl": LINES, ".ndjson": LINES, ".json": json.dumps(ROWS), ".csv": TABLE, ".tsv": TABLE.replace(",", "\t")}


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("upper", [False, True])
def test_every_suffix_is_read(tmp_path, suffix, compression, upper):
    name = f"{suffix}{compression}"
    path = tmp_path / f"rows{name.upper() if upper else name}"
    path.write_bytes(COMPRESSIONS[compression](TEXTS[suffix].encode()))
    assert read_file(path) == ROWS
    assert not on_hub(SourceConfig(path=f"owner/{path.name}")), "a missing file is not sought on the hub"


def test_a_parquet_files_suffix_may_be_in_upper_case(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "ROWS.PARQUET")
    assert read_file(tmp_path / "ROWS.PARQUET") == ROWS
    assert file_kind(tmp_path / "rows.parquet.gz") is None


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_come_in_parts_that_know_their_numbers(tmp_path, suffix):
    rows, path = rows_of(PART + 3), tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        path.write_text("prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = list(read_parts(path))
    assert [len(part) for part in parts] == [PART, 3]
    assert parts[1].place(2) == f"{path}, row {PART + 3}"
    parts[0].append_rows(parts[1])
    assert parts[0] == rows
    assert [parts[0].place(index) for index in (0, PART)] == [f"{path}, row 1", f"{path}, row {PART + 1}"]


# JSON


def test_rows_under_a_key_are_read(tmp_path):
    for number, text in enumerate([json.dumps({"version": 1, "data": ROWS}), json.dumps({"data": ROWS}, indent=2)]):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        assert [row for part in read_parts(path, {"prompt"}) for row in part] == ROWS


def test_the_split_chooses_among_several_lists(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1], "names": ["a"]}))
    assert [len(part) for part in read_parts(path, {"prompt"}, "test")] == [1]
    with pytest.raises(DataError, match=r"several lists of rows \(train, test\): set the source's split to one of"):
        list(read_parts(path, {"prompt"}, "validation"))


def test_one_object_with_a_known_column_is_one_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    (tmp_path / "row.json").write_text(json.dumps(row, indent=1))
    assert list(read_parts(tmp_path / "row.json", {"messages"})) == [[row]]


def test_one_object_without_rows_says_so(tmp_path):
    (tmp_path / "row.json").write_text('{\n"a": 1,\n"b": []}')
    with pytest.raises(DataError, match=r"is one object, and none of its keys \(a, b\) holds a list of rows: give"):
        list(read_parts(tmp_path / "row.json", {"messages"}))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": ' + "9" * 5000 + "}\n", "line 2 holds a number with too many digits"),
        ("b.json", '[{"a": ' + "9" * 5000 + "}]", "b.json holds a number with too many digits"),
        ("c.jsonl", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 1 is nested more than 100 levels deep"),
        ("d.json", "[" * 100_000, "d.json is nested more than 100 levels deep"),
        ("e.jsonl", '{"a": ' + '{"b":' * 200 + "1" + "}" * 201 + "\n", "line 1 is nested more than 100 levels deep"),
        ("f.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', "line 2 has the key 'a' twice in one object"),
        ("g.json", '\n\n{"a": [\n{"b" 1}]}', r"g.json, line 4 is not JSON \(Expecting ':'"),
        ("h.json", "\n[\n1 2]", r"h.json, line 3 is not JSON \(Expecting ','"),
        (
            "j.jsonl",
            '[{"role": "user", "content": "a"}]\n' * 2,
            "line 1 is a list of turns, not a JSON object: put each",
        ),
        ("i.jsonl", "7\n", "i.jsonl, line 1 is int, not a JSON object"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as refused:
        list(read_parts(tmp_path / name, {"prompt"}))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("between", ["", " ", "\n", "\r\n", "\r", "\n\n"])
def test_objects_follow_each_other_on_a_line_or_on_several(tmp_path, name, between):
    (tmp_path / name).write_bytes(between.join(map(json.dumps, ROWS)).encode())
    assert list(read_parts(tmp_path / name, {"prompt"})) == [ROWS]


def test_objects_and_arrays_over_several_lines_follow_each_other(tmp_path):
    (tmp_path / "a.json").write_text("".join(json.dumps(row, indent=1) for row in ROWS))
    (tmp_path / "b.json").write_text(json.dumps(ROWS[:1], indent=1) + json.dumps(ROWS[1:]))
    for name in ("a.json", "b.json"):
        assert list(read_parts(tmp_path / name, {"prompt"})) == [ROWS]


def test_objects_with_something_between_them_are_one_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}, {"prompt": "b"}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 1 is not JSON \(Extra data at column 16\): fix that line"):
        read_file(tmp_path / "a.jsonl")


TURNS = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in ("Ho", "He")]


@pytest.mark.parametrize(
    ("document", "rows"),
    [
        ({"messages": TURNS}, [{"messages": turns} for turns in TURNS]),
        ({"prompt": ["a", "b"], "response": ["c", "d"]}, [{"prompt": p, "response": r} for p, r in ("ac", "bd")]),
        (
            {"prompt": {"0": "a", "5": "b"}, "id": {"0": 1, "5": 2}},
            [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 2}],
        ),
        ({"messages": TURNS[0]}, [{"messages": TURNS[0]}]),
        ({"messages": TURNS[0], "history": [["a", "b"], ["c", "d"]]}, ...),
        ({"prompt": TURNS[0][0], "response": TURNS[0][1]}, ...),
    ],
)
def test_an_object_may_hold_a_column_of_values_under_each_name(tmp_path, document, rows):
    rows = [document] if rows is ... else rows
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(document, indent=indent))
        assert list(read_parts(tmp_path / "a.json", {"messages", "prompt", "response", "history"})) == [rows]


def test_columns_of_different_lengths_are_one_line(tmp_path):
    (tmp_path / "a.json").write_text('{"prompt": ["a", "b"], "response": ["c"]}')
    with pytest.raises(DataError, match=r"but they differ in length \(prompt 2, response 1\): give an object for each"):
        list(read_parts(tmp_path / "a.json", {"prompt"}))


@pytest.mark.parametrize("numbers", [("1", "0"), ("0", "2")])
def test_columns_that_number_their_rows_differently_are_one_line(tmp_path, numbers):
    document = {"prompt": {"0": "a", "1": "b"}, "response": dict.fromkeys(numbers, "c")}
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="but prompt and response number them differently: give an object for each"):
        list(read_parts(tmp_path / "a.json", {"prompt"}))


def test_a_long_conversation_is_not_nested_deeply(tmp_path):
    row = {"messages": [{"role": "user", "content": str(number)} for number in range(500)]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read_file(tmp_path / "a.jsonl") == [row]


# CSV


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("prompt;response\na, b;c\n", {"prompt", "response"}),
        ("prompt\tresponse\na, b\tc\n", {"prompt", "response"}),
        ("prompt|response\na, b|c\n", None),
        ('"prompt"; response\na, b;c\n', {"prompt", "response"}),
    ],
)
def test_the_separator_is_found_in_the_first_line(tmp_path, text, wanted):
    (tmp_path / "a.csv").write_text(text)
    assert list(read_parts(tmp_path / "a.csv", wanted)) == [[{"prompt": "a, b", "response": "c"}]]


def test_commas_separate_unless_others_find_columns_with_a_meaning(tmp_path):
    (tmp_path / "a.csv").write_text("a,b;c;d\n1,2;3;4\n")
    assert list(read_parts(tmp_path / "a.csv", {"prompt"})) == [[{"a": "1", "b;c;d": "2;3;4"}]]
    (tmp_path / "b.csv").write_text("prompt;response;notes, if any\n1;2;3\n")
    (rows,) = read_parts(tmp_path / "b.csv", {"prompt", "response"})
    assert rows == [{"prompt": "1", "response": "2", "notes, if any": "3"}]


@pytest.mark.parametrize("stated", ["sep=;", "SEP=;", '"sep=;"'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_first_line_may_state_the_separator(tmp_path, stated, end):
    (tmp_path / "a.csv").write_bytes(end.join([stated, "prompt;response", "a, b;c", "d"]).encode())
    with pytest.raises(
        DataError, match="line 4 has fewer or more fields than the first line: quote fields that hold s"
    ):
        read_file(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(end.join([stated, "prompt;response", "a, b;c"]).encode())
    assert read_file(tmp_path / "a.csv") == [{"prompt": "a, b", "response": "c"}]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('"What a day\tR\nwonderful"\tS\n', [['"What a day', "R"], ['wonderful"', "S"]]),
        ('"Hi" she said\tR\n"Hi\tS\n\nx\ty', [['"Hi" she said', "R"], ['"Hi', "S"], ["x", "y"]]),
        ('Q\t"a\nb"\r\nx\ty', [["Q", "a\nb"], ["x", "y"]]),
        ('"a\tb"\tR\n"say ""x"""\t"S"\n', [["a\tb", "R"], ['say "x"', "S"]]),
        ('"' + "x\ty\n" * 300, [['"x', "y"]] + [["x", "y"]] * 299),
    ],
)
def test_quotes_among_tabs_are_text_unless_they_make_a_row(tmp_path, text, rows):
    (tmp_path / "a.tsv").write_bytes(f"prompt\tresponse\n{text}".encode())
    assert [list(row.values()) for row in read_file(tmp_path / "a.tsv")] == rows


def test_a_line_with_too_few_tabs_is_named_by_its_number(tmp_path):
    (tmp_path / "a.tsv").write_text('prompt\tresponse\n"a\nb"\tc\n"Hi\tR\nx\n')
    with pytest.raises(DataError, match=r"a.tsv, line 5 has fewer or more fields than the first line: quote fields"):
        read_file(tmp_path / "a.tsv")


def test_doubled_columns_are_rejected(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response, response\na,b,c\n")
    with pytest.raises(DataError, match=r"a.csv has two columns named response: rename one of them"):
        read_file(tmp_path / "a.csv")
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["prompt", "response", "response"])
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet has two columns named response: rename one of them"):
        read_file(tmp_path / "b.parquet")


def test_columns_without_a_name_may_be_several(tmp_path):
    (tmp_path / "a.csv").write_text(",prompt,\n1,a,\n")
    assert read_file(tmp_path / "a.csv") == [{"": "", "prompt": "a"}]


# Parquet


def test_a_column_that_nothing_uses_is_not_read(build, tmp_path):
    far = pa.array([2**60] * 4, pa.timestamp("us"))
    table = pa.Table.from_pylist(ROWS).append_column("when", far)
    pq.write_table(table, tmp_path / "rows.parquet")
    built = build(tmp_path / "rows.parquet")
    assert len(built.pairs) == 4
    assert built.fields["unused_columns"] == ["when"]
    with pytest.raises(DataError, match="the column when cannot be read"):
        build(tmp_path / "rows.parquet", columns={"when": "response", "response": "unused"})


def test_a_parquet_file_without_known_columns_names_those_it_has(build, tmp_path):
    pq.write_table(pa.table({"ask": ["a"], "when": [datetime.date(2024, 1, 1)]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="has the columns ask, when, but needs one of"):
        build(tmp_path / "rows.parquet")


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows_of(2000)), path)
    data = bytearray(path.read_bytes())
    data[40:1000] = bytes(960)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rows.parquet is damaged at or after row 1 \(.*\): write it again") as refused:
        read_file(path)
    assert len(str(refused.value).splitlines()) == 1


# Compressed files


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2"])
def test_a_truncated_or_damaged_compression_is_one_line(tmp_path, compression):
    # Without a checksum, as here, some damage leaves text of other digits. That of these bytes is found.
    random = Random(0)
    path = tmp_path / f"rows.jsonl{compression}"
    data = COMPRESSIONS[compression](
        b"".join(json.dumps({"prompt": random.randbytes(99).hex()}).encode() for _ in range(99))
    )
    for damaged in (data[: len(data) // 2], b"plain text", data[:99] + bytes(99) + data[198:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"rows.jsonl.* cannot be read|is not UTF-8|is not JSON"):
            read_file(path)


def test_a_line_that_is_not_utf8_is_named_in_a_compressed_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n{"a": "\xe9"}\n'))
    with pytest.raises(DataError, match=r"a.jsonl.gz, line 2 is not UTF-8 \(byte 0xe9\)"):
        read_file(tmp_path / "a.jsonl.gz")


def test_a_file_that_may_not_be_read_is_one_line(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"a.jsonl cannot be read \(.*directory"):
        read_file(tmp_path / "a.jsonl")


def test_a_json_document_that_is_too_large_to_read_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("spin_core.data.files.json_rows._LARGEST", 100)
    file = tmp_path / "rows.json"
    file.write_text("[\n" + ",\n".join('{"prompt": "a", "response": "b"}' for _ in range(9)) + "\n]")
    with pytest.raises(DataError, match=r"rows\.json is one JSON document of more than 100 characters.*jq -c '\.\[\]'"):
        read_file(file)
    file.with_suffix(".jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 9)
    assert len(read_file(file.with_suffix(".jsonl"))) == 9
