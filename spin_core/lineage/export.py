"""Export what an iteration made, for other programs: its pairs as data sets, its model as weights or as an adapter."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.config.model import ModelConfig
from spin_core.errors import ConfigError, DataError
from spin_core.store.files import storage_errors, sync
from spin_core.store.tables import read_table

_Row = dict[str, Any]


def export_pairs(pairs_folder: Path, out_file: Path, format: Literal["dpo", "spin"]) -> int:
    """Write a published pair data set as JSONL or Parquet. The file appears whole or not at all.

    Args:
        pairs_folder: The published folder.
        out_file: The file to write. Its suffix says which kind it is.
        format: `dpo` writes `prompt`, `chosen` and `rejected`, as lists of turns if the prompt is a conversation,
            otherwise as text. `spin` writes `real` and `generated`, each the whole conversation as a list of turns.
            Where prompts have tools, both write `tools`: the schemas as JSON, or null.

    Returns:
        The number of rows.

    Raises:
        DataError: There are no pairs in the folder.
        ConfigError: The suffix is neither `.jsonl` nor `.parquet`.
    """
    source = pairs_folder / "pairs.parquet"
    if not source.exists():
        raise DataError(f"{pairs_folder} holds no pairs: name an iteration whose pairs are built")
    if out_file.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{out_file} cannot be written: give it the suffix .jsonl or .parquet")
    convert: Callable[[_Row], _Row] = {"dpo": _dpo_row, "spin": _spin_row}[format]
    rows = [convert(row) | _tools_of(row) for row in read_table(source).to_pylist()]
    scratch = out_file.with_name(f".{out_file.name}.{os.getpid()}")
    with storage_errors(out_file.parent):
        out_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(rows, scratch, out_file.suffix)
            scratch.replace(out_file)
        finally:
            scratch.unlink(missing_ok=True)
    return len(rows)


def export_model(player: Path, out: Path, format: Literal["adapter", "merged"], config: ModelConfig) -> None:
    """Write a published version as a new folder, which appears whole or not at all.

    Args:
        player: The published folder of the version.
        out: The folder to write, which must not exist.
        format: `merged` writes plain weights that `from_pretrained` and inference engines load, in the precision of
            `config.dtype`. `adapter` writes one adapter as peft loads it: of a stacked version, an adapter of θ_0
            with all iterations; of a merged version, an adapter of the version that it was trained from.
        config: The settings of the model.

    Raises:
        ConfigError: The folder exists, or the version has no adapter.
    """
    from transformers.utils.logging import disable_progress_bar

    from spin_core.data.tokenizer import load_tokenizer
    from spin_core.models.adapters import combine_adapters, read_adapters, write_adapter
    from spin_core.models.files import ADAPTERS, is_stacked, save_model
    from spin_core.models.loading import load_model

    disable_progress_bar()
    if format == "adapter" and not (player / ADAPTERS).is_dir():
        raise ConfigError(
            f"{player} was trained with all its weights, not train.lora: use --format merged, or "
            "publish without --adapter"
        )
    if out.exists():
        raise ConfigError(f"{out} exists already: name another folder with -o, or remove it")
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    with storage_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            if format == "merged":
                scratch.mkdir()
                model = load_model(player, config.model_copy(update={"device": "cpu"}))
                save_model(model, load_tokenizer(player, config), scratch)
            else:
                adapters = read_adapters(player)
                write_adapter(combine_adapters(adapters) if is_stacked(player) else adapters[-1], scratch)
            for path in scratch.rglob("*"):
                sync(path)
            scratch.replace(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write(rows: list[_Row], path: Path, suffix: str) -> None:
    """Write rows and flush them to disk."""
    with path.open("wb") as file:
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _tools_of(row: _Row) -> _Row:
    """The schemas of a pair's tools, where pairs have such a column."""
    # As JSON text, as TRL reads it: in a column of objects every schema would get the keys of all others.
    return {"tools": row["tools"]} if "tools" in row else {}


def _dpo_row(row: _Row) -> _Row:
    """A pair as a preference: the human response is the chosen one."""
    messages = json.loads(row["messages"])
    if not messages:
        return {"prompt": row["prompt"], "chosen": row["real"], "rejected": row["generated"]}
    return {"prompt": messages, "chosen": [_answer(row["real"])], "rejected": [_answer(row["generated"])]}


def _spin_row(row: _Row) -> _Row:
    """A pair as two conversations."""
    messages = json.loads(row["messages"]) or [{"role": "user", "content": row["prompt"]}]
    return {"real": [*messages, _answer(row["real"])], "generated": [*messages, _answer(row["generated"])]}


def _answer(text: str) -> dict[str, str]:
    """An assistant's turn."""
    # White space around a turn belongs to the template. A generated text has what its template wrote, a human text does
    # not, and the two should differ only in content.
    return {"role": "assistant", "content": text.strip()}
