"""Broken models: each is one line with the file and the fix, from `spin check` and before a run."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spin_core.config.resolve import resolve
from spin_core.errors import SpinError
from spin_core.models import weights
from spin_core.models.base_model import check_model
from spin_core.preflight.check import check_run
from spin_core.preflight.prepare import prepare_run
from tests.support.helpers import character_tokenizer, save_tiny_model

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}assistant: "

Break = Callable[[Path], Any]

FIXES = ("copy or fetch", "fetch ", "set model.path", "set model.tokenizer", "set chat.template", "correct ", "is it a")
"""One of these ends each line."""


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory) -> Path:
    """A tiny model with a chat template, to be copied and broken."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    return save_tiny_model(tmp_path_factory.mktemp("whole") / "model", character_tokenizer(chat_template=template))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "question {i}?", "response": "answer {i}."}}\n' for i in range(12)))
    return file


@pytest.fixture
def configured(rows):
    """A small run's configuration for a model."""

    def configure(folder, *sets):
        own = (f"model.path={folder}", "model.device=cpu", f"prompts.source.path={rows}", "prompts.held_out=2")
        sizes = ("prompts.sample=null", "prompts.max_prompt_tokens=50", "generate.max_new_tokens=24")
        off = ("evaluate.exact=false", "evaluate.main_metric=heldout_nll", "controls={sft_continued: false}")
        return resolve("demo", sets=[*own, *sizes, *off, "chat.template=tokenizer", *sets])

    return configure


def setting(name: str, value: Any) -> Break:
    """Break a value in config.json; `...` removes it."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        if value is ...:
            del values[name]
        else:
            values[name] = value
        (folder / "config.json").write_text(json.dumps(values))

    return change


def content(file: str, data: bytes | str) -> Break:
    """Replace a file's content."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def cut(file: str, share: float) -> Break:
    """Cut a file short."""

    def change(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * share)])

    return change


def tensors(change: Callable[[dict[str, Any]], Any]) -> Break:
    """Change the weights, which are numpy arrays by name."""

    def rewrite(folder: Path) -> None:
        arrays = dict(load_file(folder / "model.safetensors"))
        change(arrays)
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def index(weight_map: Any) -> Break:
    """Replace the single file by an index."""
    return content("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def header(value: Any) -> Break:
    """Replace the weights by a safetensors file with this header and no data."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return content("model.safetensors", struct.pack("<Q", len(data)) + data)


NORM, HEAD = "model.norm.weight", "lm_head.weight"


def poison(value: float) -> Break:
    def change(arrays: dict[str, Any]) -> None:
        arrays[NORM][3] = value

    return tensors(change)


def cast_all(dtype: str) -> Break:
    return tensors(lambda arrays: arrays.update({name: array.astype(dtype) for name, array in arrays.items()}))


SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings",
)  # fmt: skip
WRONG = ("text", 0, -1, 10**12, 1.5, True, [], {})

BROKEN: dict[str, tuple[Break, str]] = {
    **{f"{name}={value!r}": (setting(name, value), "config.json") for name in SIZES for value in WRONG},
    **{
        f"{name}={value!r}": (setting(name, value), "config.json")
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        for value in (None, 10**7)
    },
    **{f"{name} absent": (setting(name, ...), "do not fit its config.json") for name in ("hidden_size", "vocab_size")},
    "layers absent": (setting("num_hidden_layers", ...), "lack model.layers.10."),
    "heads do not divide the width": (setting("num_attention_heads", 3), "config.json"),
    "eps is text": (setting("rms_norm_eps", "small"), "config.json"),
    "positions are text": (setting("rope_parameters", "linear"), "config.json"),
    "unknown positions": (setting("rope_parameters", {"rope_type": "new", "rope_theta": 1e4}), "config.json"),
    "unknown activation": (setting("hidden_act", "best"), "config.json"),
    "padding outside the vocabulary": (setting("pad_token_id", 10**6), "config.json"),
    "unknown type": (setting("model_type", "from-tomorrow"), "config.json"),
    **{f"window={value!r}": (setting("sliding_window", value), "sliding_window is") for value in ("wide", 0, -1)},
    "type is a number": (setting("model_type", 3), "config.json"),
    "type is absent": (setting("model_type", ...), "config.json"),
    "another type": (setting("model_type", "gpt2"), "lack transformer.h.0."),
    "quantised": (setting("quantization_config", {"quant_method": "gptq", "bits": 4}), "model whose weights are not"),
    "config is cut": (cut("config.json", 0.5), "config.json"),
    "config is empty": (content("config.json", ""), "config.json"),
    "config is a list": (content("config.json", "[1]"), "config.json holds a JSON list"),
    "config is not text": (content("config.json", b"\xff\xfe\x00"), "config.json"),
    "config is deep": (content("config.json", "[" * 200_000), "config.json"),
    "config is absent": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "one weight is missing": (tensors(lambda arrays: arrays.pop(NORM)), f"lack {NORM}"),
    "output is missing": (tensors(lambda arrays: arrays.pop(HEAD)), f"lack {HEAD}"),
    "wrong shape": (
        tensors(lambda arrays: arrays.update({NORM: np.ones(7, np.float32)})),
        f"{NORM} is 7 where the configuration says 16",
    ),
    "NaN": (poison(float("nan")), f"model.safetensors: {NORM} holds NaN or infinity in 1 of 16 values"),
    "infinity": (poison(float("-inf")), f"model.safetensors: {NORM} holds NaN or infinity in 1 of 16 values"),
    "integers": (cast_all("int8"), "is stored as I8, which cannot be trained"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no safetensors weights"),
    "weights are a folder": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
        "lacks model.safetensors",
    ),
    "weights are empty": (content("model.safetensors", b""), "model.safetensors is not a whole safetensors file"),
    "weights are cut in the header": (cut("model.safetensors", 0.01), "model.safetensors is not a whole"),
    "weights are cut in the data": (cut("model.safetensors", 0.99), "model.safetensors is not a whole"),
    "weights are a pointer": (content("model.safetensors", "version https://git-lfs\noid 1\n"), "is not a whole"),
    "a header of 2^63 bytes": (content("model.safetensors", b"\xff" * 7 + b"\x7f{}"), "is not a whole"),
    "a header without tensors": (header({}), "model.safetensors holds no weights"),
    "a header that is a list": (header([]), "model.safetensors is not a whole safetensors file"),
    "a header beyond the data": (
        header({"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}),
        "model.safetensors is not a whole safetensors file",
    ),
    "a header with an unknown type": (
        header({"w": {"dtype": "Q9", "shape": [0], "data_offsets": [0, 0]}}),
        "model.safetensors is not a whole safetensors file",
    ),
    "index without weight_map": (content("model.safetensors.index.json", "{}"), "index.json has no weight_map"),
    "index is cut": (content("model.safetensors.index.json", '{"weight_map": {"a'), "index.json cannot be read"),
    "index is a list": (content("model.safetensors.index.json", "[]"), "index.json holds a JSON list"),
    "index maps to a number": (index({"a": 3}), "index.json names 3, which is not the bare name"),
    "index is a map of nothing": (index({}), "index.json has no weight_map"),
    "index names a missing file": (index({"a": "model-2.safetensors"}), "lacks model-2.safetensors"),
    "index names an absolute path": (index({"a": "/etc/passwd.safetensors"}), "index.json names '/etc/passwd"),
    "index leads out of the folder": (index({"a": "../model.safetensors"}), "index.json names '../model.safetensors'"),
    "index leads into a folder": (index({"a": "sub/model.safetensors"}), "index.json names 'sub/model.safetensors'"),
    "index names a pickle": (index({"a": "pytorch_model.bin"}), "index.json names 'pytorch_model.bin'"),
    "index names two lines": (index({"a": "a\nb.safetensors"}), "index.json names"),
    "index names too long a name": (index({"a": "a" * 5000 + ".safetensors"}), "index.json names"),
    "tokenizer is cut": (cut("tokenizer.json", 0.5), "tokenizer.json"),
    "tokenizer is empty": (content("tokenizer.json", "{}"), "tokenizer.json"),
    "tokenizer is a list": (content("tokenizer.json", "[]"), "tokenizer.json"),
    "tokenizer is not text": (content("tokenizer.json", b"\x00\xff"), "tokenizer.json"),
    "tokenizer's settings are cut": (cut("tokenizer_config.json", 0.5), "tokenizer_config.json"),
    "tokenizer's settings are a list": (content("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "template with a mistake": (content("chat_template.jinja", "{% if %}"), "model: the chat template cannot write"),
    "template that calls nothing": (content("chat_template.jinja", "{{ nothing() }}"), "the chat template cannot"),
    "template that divides by 0": (content("chat_template.jinja", "{{ 1 / 0 }}"), "the chat template cannot write"),
    "template that loops": (
        content("chat_template.jinja", "{% for i in range(10 ** 9) %}x{% endfor %}"),
        "the chat template cannot write",
    ),
    "template that says two lines": (
        content("chat_template.jinja", "{{ raise_exception('no\nsuch thing') }}"),
        "the chat template cannot write",
    ),
    "more tokens than the model embeds": (
        lambda folder: character_tokenizer(
            ("<pad>", "<s>", "</s>", "<unk>", "<more>"), chat_template=TEMPLATE
        ).save_pretrained(folder),
        "the tokenizer has 101 tokens, but the model in",
    ),
}  # fmt: skip
"""How a model is broken, and part of the error."""


def broken(whole_model: Path, folder: Path, change: Break) -> Path:
    shutil.copytree(whole_model, folder / "model")
    change(folder / "model")
    return folder / "model"


def test_the_model_that_is_broken_below_is_ready(configured, whole_model, tmp_path):
    result = check_run(configured(whole_model), tmp_path)
    assert [finding.text for finding in result.findings if finding.level == "wrong"] == []


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_model_is_a_one_line_error_with_its_fix(configured, whole_model, tmp_path, change, says):
    folder = broken(whole_model, tmp_path, change)
    config = configured(folder)
    result = check_run(config, tmp_path)
    (line,) = [finding.text for finding in result.findings if finding.level == "wrong"]
    assert says in line
    assert str(folder) in line
    assert line.isprintable()
    assert len(line) < 600
    assert any(word in line.rpartition(": ")[2] for word in FIXES), "the fix follows a colon"
    with pytest.raises(SpinError) as raised:
        check_model(folder, config.model, config.chat)
    assert str(raised.value) == line


@pytest.mark.parametrize("name", ["one weight is missing", "wrong shape", "NaN", "num_attention_heads=0"])
def test_a_run_does_not_start_with_a_broken_model(configured, whole_model, tmp_path, name):
    change, says = BROKEN[name]
    folder = broken(whole_model, tmp_path, change)
    with pytest.raises(SpinError, match=says.split(":")[0]):
        prepare_run(configured(folder), tmp_path / "runs", "tale")
    assert not (tmp_path / "runs" / "tale" / "lineage.json").exists()


def test_values_of_a_large_model_are_read_on_request(configured, whole_model, tmp_path, monkeypatch):
    folder = broken(whole_model, tmp_path, poison(float("nan")))
    monkeypatch.setattr(weights, "VALUES_LIMIT", 1000)
    result = check_run(configured(folder), tmp_path)
    assert result.ok
    assert any("are not read; spin check --weights" in finding.text for finding in result.findings)
    assert not check_run(configured(folder), tmp_path, all_values=True).ok


WINDOWS = {
    "wide": "sliding_window is 'wide', not a whole number: correct it",
    0: "sliding_window is 0, and must be at least 1: correct it",
    -1: "sliding_window is -1, and must be at least 1: correct it",
    None: "sliding_window is null, but 1 of 2 layers are of the type sliding_attention, which needs it: correct it",
}


@pytest.mark.parametrize("value", WINDOWS)
@pytest.mark.parametrize("is_part", [False, True])
def test_a_window_that_no_layer_can_have_is_named_with_its_place(configured, whole_model, tmp_path, value, is_part):
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    text = {"model_type": "gemma3_text", "vocab_size": 100, "layer_types": ["sliding_attention", "full_attention"]}
    text |= {**small, "num_key_value_heads": 1, "sliding_window": value}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {}} if is_part else text
    folder = broken(whole_model, tmp_path, content("config.json", json.dumps(config)))
    [line] = [finding.text for finding in check_run(configured(folder), tmp_path).findings if finding.level == "wrong"]
    assert line.startswith(f"{folder}/config.json: {'text_config.' if is_part else ''}{WINDOWS[value]}")


def test_a_model_whose_layers_need_no_window_may_have_none(configured, whole_model, tmp_path):
    assert check_run(configured(broken(whole_model, tmp_path, setting("sliding_window", None))), tmp_path).ok


def test_weights_that_the_model_does_not_use_may_hold_anything(configured, whole_model, tmp_path):
    def add(arrays):
        arrays["model.layers.0.masked_bias"] = np.full(3, -np.inf, np.float32)

    assert check_run(configured(broken(whole_model, tmp_path, tensors(add))), tmp_path).ok
