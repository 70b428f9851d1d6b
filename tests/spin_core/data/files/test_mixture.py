"""Several sources in one run: layouts of their own, numbers and weights, and what is recorded of each."""

import json
from collections import Counter

import numpy as np
import pytest

from spin_core.config.data import MixedSource, PromptsConfig
from spin_core.config.model import ModelConfig
from spin_core.config.resolve import resolve
from spin_core.data.chat import Renderer
from spin_core.data.files.mixture import mix_rows, mixture_counts
from spin_core.data.files.preview import preview, read_beginning
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DataError
from spin_core.store.identity import identity_of
from spin_core.store.records import PromptSet
from tests.support.lineages.built_prompts import job_of, rows_of, write_jsonl


@pytest.fixture
def two(tmp_path):
    """Two sources of different layouts: 30 sums and 10 greetings."""
    sums = [{"ask": f"{i} + 1 =", "reply": str(i + 1)} for i in range(30)]
    turns = [[{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Hello"}] for i in range(10)]
    return {
        "sums": {
            "path": str(write_jsonl(tmp_path / "sums.jsonl", sums)),
            "columns": {"ask": "prompt", "reply": "response"},
        },
        "chat": {"path": str(write_jsonl(tmp_path / "chat.jsonl", [{"messages": t, "id": 1} for t in turns]))},
    }


def with_each(sources, **values):
    return {name: {**source, **{key: value[name] for key, value in values.items()}} for name, source in sources.items()}


def counts_of(built):
    return Counter(row["source"] for row in built.train + built.held_out)


def test_sources_have_layouts_of_their_own_and_each_row_its_sources_name(build, two):
    built = build("unused", sources=two, held_out=8)
    assert counts_of(built) == {"sums": 30, "chat": 10}
    assert all(row["source"] == ("chat" if row["prompt"].startswith("Hi") else "sums") for row in built.train)
    assert built.fields["source"] == "sums, chat"
    record = PromptSet(path="x", digest="y", **{key: built.fields[key] for key in built.fields})
    assert record.sources["chat"].path == two["chat"]["path"]
    assert record.sources["chat"].unused_columns == ("id",) == record.unused_columns
    assert sum(source.rows for source in record.sources.values()) == len(built.train) == 32
    assert sum(source.held_out for source in record.sources.values()) == 8


def test_a_list_of_paths_is_named_after_the_files():
    config = PromptsConfig(sources=["a/one.jsonl.gz", {"path": "b/the two.csv", "rows": 3}])
    assert {name: source.path for name, source in config.sources.items()} == {
        "one": "a/one.jsonl.gz",
        "the-two": "b/the two.csv",
    }
    assert resolve("demo", sets=["prompts.sources=[a.jsonl]", "evaluate.exact=false"]).prompts.sources["a"].rows is None


def test_numbers_of_rows_are_a_seeded_sample_and_a_smaller_one_is_a_part(build, two):
    small = build("unused", sources=with_each(two, rows={"sums": 10, "chat": 4}), seed=5)
    large = build("unused", sources=with_each(two, rows={"sums": 20, "chat": 4}), seed=5)
    again = build("unused", sources=with_each(two, rows={"sums": 10, "chat": 4}), seed=5)
    other = build("unused", sources=with_each(two, rows={"sums": 10, "chat": 4}), seed=6)
    assert counts_of(small) == {"sums": 10, "chat": 4}
    assert small.drops == {"not-in-mixture": 26}
    assert small.bytes == again.bytes
    assert small.pairs != other.pairs
    assert {*small.pairs} < {*large.pairs}


def test_weights_are_proportions_without_repeating_a_row(build, two):
    assert counts_of(build("unused", sources=with_each(two, weight={"sums": 1, "chat": 1}))) == {"sums": 10, "chat": 10}
    assert counts_of(build("unused", sources=with_each(two, weight={"sums": 9, "chat": 1}))) == {"sums": 30, "chat": 3}


@pytest.mark.parametrize(
    ("weights", "available", "counts"),
    [
        ((1, 1), (100, 1000), (100, 100)),
        ((0.2, 0.8), (100, 1000), (100, 400)),
        ((1e-9, 1), (5, 10), (1, 10)),
        ((1e300, 1e300), (5, 10), (5, 5)),
    ],
)
def test_counts_follow_the_weights(weights, available, counts):
    sources = {name: MixedSource(path="x", weight=weight) for name, weight in zip("ab", weights, strict=True)}
    assert mixture_counts(sources, dict(zip("ab", available, strict=True))) == dict(zip("ab", counts, strict=True))


def test_rows_of_the_mixture_stay_in_their_order():
    sources = {name: MixedSource(path="x", rows=2) for name in "ab"}
    rows = mix_rows(sources, list("aaabbb"), np.arange(6, dtype=np.uint64), seed=0)
    assert rows.tolist() == sorted(rows)
    assert [row < 3 for row in rows] == [True, True, False, False]


def test_a_row_of_two_sources_is_taken_once(build, tmp_path):
    first, second = (write_jsonl(tmp_path / name, rows_of(count)) for name, count in (("a.jsonl", 6), ("b.jsonl", 9)))
    built = build("unused", sources=[str(first), str(second)])
    assert counts_of(built) == {"a": 6, "b": 3}
    assert built.fields["sources"]["b"].drops == {"duplicate": 6}
    assert built.drops == {"duplicate": 6}


def test_held_out_prompts_can_come_from_elsewhere(build, two, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(4))
    built = build("unused", sources=two, held_out=4, held_out_source=other)
    assert len(built.train) == 40
    assert "source" not in built.held_out[0]
    assert built.fields["sources"]["sums"].held_out == 0


def test_too_few_rows_are_refused(build, two):
    with pytest.raises(DataError, match=r"prompts.sources.chat.rows is 11, but .*chat.jsonl has only 10 usable rows"):
        build("unused", sources=with_each(two, rows={"sums": 1, "chat": 11}))


def test_a_fault_names_the_sources_setting(build, two, tmp_path):
    with pytest.raises(DataError, match=r"Name them in prompts.sources.sums.columns"):
        build("unused", sources={**two, "sums": {"path": two["sums"]["path"]}})
    with pytest.raises(DataError, match=r"nowhere.jsonl does not exist: set prompts.sources.sums.path"):
        build("unused", sources={**two, "sums": {"path": "nowhere.jsonl"}})
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty.jsonl holds no rows: set prompts.sources.e.path"):
        build("unused", sources={**two, "e": {"path": str(empty)}})


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("{}", "prompts.sources is empty"),
        ("[a/x.jsonl, b/x.jsonl]", "prompts.sources has two files named x"),
        ("{a: demo}", "prompts.sources.a is the built-in demo, which cannot be mixed"),
        ("{a b: x.jsonl}", "prompts.sources has the name 'a b'"),
        ("{a: {path: x, weight: 1}, b: {path: y}}", "give a weight to every source and rows to none"),
        ("{a: {path: x, weight: 1, rows: 5}}", "give a weight to every source and rows to none"),
        ("{a: {path: x, weight: 0}}", "prompts.sources.a.weight"),
        ("{a: {path: x, wieght: 1}}", "wieght"),
        ("{a: {}}", "prompts.sources.a.path"),
        ("5", "prompts.sources"),
    ],
)
def test_settings_that_are_not_clear_are_refused(sources, message):
    with pytest.raises(ConfigError) as refused:
        resolve("demo", sets=[f"prompts.sources={sources}"])
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_one_source_has_the_identity_that_it_had(tiny_model):
    identity = identity_of(job_of(tiny_model, "rows.jsonl"))
    assert "sources" not in identity["config"]
    mixed = identity_of(job_of(tiny_model, "rows.jsonl", sources={"a": {"path": "x"}}))
    assert mixed["config"]["sources"]["a"]["path"] == "x"


def test_a_preview_has_the_proportions_of_the_mixture(two, tiny_model):
    job = job_of(tiny_model, "unused", sources=with_each(two, weight={"sums": 2, "chat": 1}), held_out=3)
    rows = {name: read_beginning(part, 10**9) for name, part in job.config.parts().items()}
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()), job.chat)
    whole = preview(job, rows, renderer, characters=10**9)
    assert (whole.prompts, whole.held_out, whole.read, len(whole.train)) == (27, 3, 40, 27)
    held_out = [share.held_out for share in whole.shares.values()]
    assert [share.train + held for share, held in zip(whole.shares.values(), held_out, strict=True)] == [20, 10]
    assert sum(held_out) == 3
    part = preview(job, rows, renderer, characters=200)
    assert part.read < 40
    assert sum(example.prompt.startswith("Hi") for example in part.train) * 2 <= len(part.train)
    assert json.loads(json.dumps(whole.unused_columns)) == ["id"]
    with pytest.raises(DataError, match=r"prompts.held_out is 50, but the data have only 30 different prompts"):
        preview(
            job.model_copy(update={"config": job.config.model_copy(update={"held_out": 50})}),
            rows,
            renderer,
            characters=9**9,
        )
