"""Damaged files of every format: each gives rows with counted drops, or one line, and never another error."""

import copy
import csv
import gzip
import io
import json
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.conversations import ConversationReader
from spin_core.data.examples import ExampleBuilder
from spin_core.data.files.rows import Rows
from spin_core.data.sources import prompt_rows
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import SpinError

CALL = {"id": "call12345", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TURNS = [
    {"role": "system", "content": "Be brief.", "weight": None},
    {"role": "user", "content": [{"type": "text", "text": "Caf\u00e9?"}], "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "train": False},
    {"role": "tool", "content": "sunny", "tool_call_id": "call12345"},
    {"role": "assistant", "content": "It is sunny.", "weight": 1, "reasoning_content": "Look first."},
]
LAYOUTS = [
    [{"messages": TURNS, "tools": [CALL["function"]], "id": number} for number in range(3)],
    [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "Be kind."}] * 3,
    [{"prompt": "1 + 1 =", "response": str(number), "history": [["Hi", "Ho"]], "score": 0.5} for number in range(3)],
    [{"instruction": "Add.", "input": "1 + 1", "output": "2", "instances": None, "tags": ["a", "b"]}] * 3,
    [{"text": "### Human: Hi### Assistant: Ho### Human: Well?### Assistant: Well."}] * 3,
    [{"text": "Once upon a time there was a cat that slept all day and all of the following night."}] * 3,
    [{"real": TURNS[1:2] + TURNS[4:], "generated": TURNS[1:2]}] * 3,
]
ODD_VALUES = [
    None,
    "",
    " ",
    "x",
    "\ud800",
    0,
    -1,
    2**70,
    0.0,
    float("nan"),
    True,
    [],
    {},
    [[]],
    [None],
    {"role": "user"},
]
FORMATS = ("messages", "prompt-response", "instruction", "spin", "text")
RENAMES = ({"prompt": "response"}, {"text": "prompt", "id": "answer"}, {"output": "input"})
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz")


def written(rows, suffix):
    """The bytes of a file with these rows; None if the format does not hold them."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix.startswith(".jsonl"):
        return gzip.compress(lines) if suffix.endswith(".gz") else lines
    if suffix == ".json":
        return json.dumps({"data": rows}, indent=1).encode()
    if suffix == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(text, sorted({key for row in rows for key in row}), delimiter=";")
        table.writeheader()
        table.writerows(rows)
        return text.getvalue().encode(errors="surrogatepass")
    sink = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), sink)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        return None
    return sink.getvalue()


def damaged(data, rng):
    """Bytes that are flipped, cut off, cut out, repeated or inserted."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        kind, at = rng.randrange(5), rng.randrange(len(data) + 1)
        stop = min(len(data), at + rng.choice((1, 2, 8, 64)))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at:stop]
        elif kind == 3:
            data[at:at] = data[at:stop]
        else:
            data[at:at] = rng.choice((b"\0", b"\xff", b'"', b"[", b"{", b"\n", b"null", b"9" * 5000, b"\xed\xa0\x80"))
    return bytes(data)


def odd(value, rng):
    """A value in which one value is another, or a key is missing or has another name."""
    value = copy.deepcopy(value)
    inner, path = value, []
    while isinstance(inner, list | dict) and inner and (not path or rng.random() < 0.8):
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        path.append((inner, key))
        inner = inner[key]
    if not path:
        return rng.choice(ODD_VALUES)
    holder, key = path[-1]
    if isinstance(holder, dict) and rng.random() < 0.3:
        held = holder.pop(key)
        if rng.random() < 0.5:
            holder[rng.choice(("role", "content", "prompt", "answer", "messages", "text", "tools", "from"))] = held
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return value


def outcome(config, renderer, rows=None):
    """`rows`, or `refused`. Every other error is one of the reader."""
    name = config.source.path
    try:
        rows = prompt_rows(config)[0] if rows is None else Rows(rows, name)
        reader = ConversationReader(config, name)
        items = reader.read(rows)
        builder = ExampleBuilder(renderer, 10_000, 100)
        clean = [item for item in items if not builder.fault_of(item)]
        examples = builder.build(clean)
    except SpinError as error:
        message = str(error)
    else:
        # What is kept can be written, and what is not is counted.
        assert all(json.loads(example.messages) and example.response.encode() for example, _ in examples)
        assert len(items) + reader.drops.total() == len(rows) or any("instances" in row for row in rows)
        return "rows"
    assert len(message.splitlines()) == 1, message
    return "refused"


@pytest.fixture(scope="session")
def renderer(tool_model):
    return Renderer(load_tokenizer(tool_model, ModelConfig()), ChatConfig())


def damage_bytes(folder, renderer, seeds):
    """How often each outcome occurs with damaged files."""
    outcomes = []
    for seed in seeds:
        rng = Random(seed)
        suffix = SUFFIXES[seed % len(SUFFIXES)]
        path = folder / f"rows{suffix}"
        whole = [data for data in (written(rows, suffix) for rows in LAYOUTS) if data is not None]
        path.write_bytes(damaged(rng.choice(whole), rng))
        outcomes.append(outcome(PromptsConfig(source=SourceConfig(path=str(path))), renderer))
    return outcomes


def damage_values(folder, renderer, seeds):
    """How often each outcome occurs with odd values, in a file or as rows."""
    outcomes = []
    for seed in seeds:
        rng = Random(seed)
        rows = copy.deepcopy(rng.choice(LAYOUTS))
        for _ in range(rng.choice((1, 1, 2, 5))):
            number = rng.randrange(len(rows))
            rows[number] = odd(rows[number], rng)
        rows = [row for row in rows if isinstance(row, dict)]
        suffix = SUFFIXES[seed % len(SUFFIXES)]
        path = folder / f"rows{suffix}"
        format = rng.choice(FORMATS) if rng.random() < 0.3 else "auto"
        rename = rng.choice(RENAMES) if rng.random() < 0.3 else {}
        config = PromptsConfig(source=SourceConfig(path=str(path)), format=format, columns=rename)
        data = written(rows, suffix)
        if data is None:
            outcomes.append(outcome(config, renderer, rows))
            continue
        path.write_bytes(data)
        outcomes.append(outcome(config, renderer))
    return outcomes


@pytest.mark.parametrize("damage", [damage_bytes, damage_values])
def test_a_damaged_file_gives_rows_or_one_line(tmp_path, renderer, damage):
    outcomes = damage(tmp_path, renderer, range(200))
    assert min(outcomes.count("rows"), outcomes.count("refused")) > 20


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage_bytes, damage_values])
def test_thousands_of_damaged_files_give_rows_or_one_line(tmp_path, renderer, damage):
    outcomes = damage(tmp_path, renderer, range(1000, 4000))
    assert min(outcomes.count("rows"), outcomes.count("refused")) > 300
