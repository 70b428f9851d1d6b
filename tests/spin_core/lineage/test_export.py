"""Exported pairs and models, as other programs read them."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.model import ModelConfig
from spin_core.data.pairs import SCHEMA
from spin_core.errors import ConfigError, DamagedArtifact, DataError, StorageError
from spin_core.lineage.export import export_model, export_pairs

CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Name a colour — any."},
]


@pytest.fixture
def pairs(tmp_path):
    """Two pairs, of conversations or of bare text."""

    def write(messages=CONVERSATION, count=2):
        rows = [
            {
                "id": f"{i}",
                "t": 0,
                "prompt": f"prompt {i}",
                "messages": json.dumps(messages),
                "real": f"réel {i}\n",
                "generated": f" made {i}",
                "prompt_ids": [1],
                "real_ids": [3, 2],
                "generated_ids": [4, 2],
                "real_finish": "stop",
                "generated_finish": "stop",
            }
            for i in range(count)
        ]
        folder = tmp_path / "pairs"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "pairs.parquet")
        return folder

    return write


def load(path):
    """The file as `datasets` reads it."""
    import datasets

    kind = "json" if path.suffix == ".jsonl" else "parquet"
    cache = path.parent / "cache"
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache)).to_list()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_conversations_become_conversational_preferences(pairs, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    assert export_pairs(pairs(), out, "dpo") == 2
    first, _ = load(out)
    assert first == {
        "prompt": CONVERSATION,
        "chosen": [{"role": "assistant", "content": "réel 0"}],
        "rejected": [{"role": "assistant", "content": "made 0"}],
    }


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_bare_text_becomes_preferences_of_text(pairs, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    export_pairs(pairs(messages=[]), out, "dpo")
    assert load(out)[1] == {"prompt": "prompt 1", "chosen": "réel 1\n", "rejected": " made 1"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_spins_own_format_holds_whole_conversations(pairs, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    export_pairs(pairs(), out, "spin")
    first, _ = load(out)
    assert first == {
        "real": [*CONVERSATION, {"role": "assistant", "content": "réel 0"}],
        "generated": [*CONVERSATION, {"role": "assistant", "content": "made 0"}],
    }
    export_pairs(pairs(messages=[]), out, "spin")
    assert load(out)[0]["real"][0] == {"role": "user", "content": "prompt 0"}


@pytest.mark.parametrize("messages", [CONVERSATION, []])
def test_trl_recognises_the_preferences(pairs, tmp_path, messages):
    data_utils = pytest.importorskip("trl.data_utils")
    out = tmp_path / "out.jsonl"
    export_pairs(pairs(messages=messages), out, "dpo")
    row = load(out)[0]
    assert data_utils.is_conversational(row) == bool(messages)
    assert set(row) == {"prompt", "chosen", "rejected"}
    if not messages:
        return
    from tests.support.helpers import character_tokenizer

    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    text = data_utils.maybe_apply_chat_template(row, character_tokenizer(chat_template=template))
    assert text["prompt"].endswith("user: Name a colour — any.</s>assistant: ")
    assert (text["chosen"], text["rejected"]) == ("réel 0</s>", "made 0</s>")


def test_a_second_export_replaces_the_first(pairs, tmp_path):
    out = tmp_path / "deep" / "out.jsonl"
    export_pairs(pairs(), out, "dpo")
    export_pairs(pairs(count=1), out, "dpo")
    assert len(out.read_text().splitlines()) == 1
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_an_export_that_fails_leaves_the_earlier_file(pairs, tmp_path):
    out = tmp_path / "out.jsonl"
    export_pairs(pairs(), out, "dpo")
    before = out.read_bytes()
    folder = pairs()
    (folder / "pairs.parquet").write_bytes(b"broken")
    with pytest.raises(DamagedArtifact, match=r"pairs\.parquet is damaged"):
        export_pairs(folder, out, "dpo")
    assert out.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(pairs, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        export_pairs(pairs(), tmp_path / "locked" / "out.jsonl", "dpo")


def test_a_folder_without_pairs_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no pairs: name an iteration whose pairs are built"):
        export_pairs(tmp_path, tmp_path / "out.jsonl", "dpo")


def test_another_suffix_is_rejected(pairs, tmp_path):
    with pytest.raises(ConfigError, match=r"give it the suffix .jsonl or .parquet"):
        export_pairs(pairs(), tmp_path / "out.csv", "dpo")


def test_a_version_is_exported_with_its_weights_and_tokenizer_and_nothing_else(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = ModelConfig(device="cpu", dtype="bfloat16")
    export_model(tiny_model, tmp_path / "out" / "model", "merged", config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert str(model.dtype) == "torch.bfloat16"
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").eos_token == "</s>"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_a_version_without_an_adapter_has_none_to_export(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"trained with all its weights, not train\.lora: use --format merged"):
        export_model(tiny_model, tmp_path / "out", "adapter", ModelConfig())


def test_an_exported_model_takes_no_folders_place(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="exists already: name another folder with -o, or remove it"):
        export_model(tiny_model, tmp_path, "merged", ModelConfig())


def test_tools_are_exported_as_trl_reads_them(pairs, tmp_path):
    folder = pairs()
    table = pq.read_table(folder / "pairs.parquet")
    schemas = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    pq.write_table(
        table.append_column("tools", pa.array([json.dumps(schemas), None], pa.string())), folder / "pairs.parquet"
    )
    for suffix in ("jsonl", "parquet"):
        for format in ("dpo", "spin"):
            out = tmp_path / f"{format}.{suffix}"
            export_pairs(folder, out, format)
            first, second = load(out)
            assert json.loads(first["tools"]) == schemas
            assert second["tools"] is None
