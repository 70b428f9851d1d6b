"""The tokenizer and the configuration that are stored next to a model's weights.

Both are needed to prepare data, long before the weights are loaded; so they are below `models/`. A damaged file is one
`ModelError` that names it, whatever transformers would make of it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from spin_core.config.model import ModelConfig
from spin_core.errors import ModelError, first_line, library_errors, printable
from spin_core.store.weights_index import read_model_json

CONFIG = "config.json"

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "head_dim")
_VOCABULARY = ("vocab_size",)
_CONTEXT = ("max_position_embeddings", "n_positions", "sliding_window")

_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Types of layers that do not see the whole text, and the settings of how much they see."""

_MOST = {
    **dict.fromkeys(_LAYERS, 5_000),
    **dict.fromkeys(_HEADS, 5_000),
    **dict.fromkeys(_WIDTHS, 2_000_000),
    **dict.fromkeys(_VOCABULARY, 50_000_000),
    **dict.fromkeys(_CONTEXT, 10**9),
}
"""The largest value of each size that is believed, far above any model's. A larger one is a damaged file, with which
transformers might compute for hours before it fails."""

_MOST_LAYERS_OF_ANY_KIND = 100_000
"""The largest value of any other setting that counts layers, heads or experts."""


def load_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises `ModelError` if it is missing or cannot be loaded."""
    # The tokenizer's kind may depend on the model's configuration.
    if (folder / CONFIG).exists():
        _read_sizes(folder / CONFIG)

    def failed(error: BaseException) -> ModelError:
        return _needs_code(folder, error) or ModelError(
            f"{folder} holds no tokenizer that loads ({first_line(error)}): fetch tokenizer.json and "
            "tokenizer_config.json again, or set model.tokenizer to a folder that has them"
        )

    with library_errors(failed):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    return tokenizer


def context_length(folder: Path, config: ModelConfig) -> int | None:
    """The longest sequence the model was built for, in tokens; None if its configuration does not say."""
    # A multimodal model has the settings of its language model in a part of their own.
    settings = load_config(folder, config).get_text_config()
    length = getattr(settings, "max_position_embeddings", None) or getattr(settings, "n_positions", None)
    return int(length) if length else None


def load_config(folder: Path, config: ModelConfig) -> Any:
    """The model's own configuration. Raises `ModelError` if it is missing, or has values that cannot be right."""

    def failed(error: BaseException) -> ModelError:
        return _needs_code(folder, error) or ModelError(
            f"{folder} holds no config.json of a model that transformers knows ({first_line(error)}): "
            "fetch config.json again, or set model.path to a causal language model"
        )

    if (folder / CONFIG).exists():
        _read_sizes(folder / CONFIG)
    with library_errors(failed):
        settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=config.trust_remote_code)
        text = settings.get_text_config()
    _check_windows(folder / CONFIG, text, "" if text is settings else "text_config.")
    return settings


def model_ends(folder: Path) -> tuple[int, ...]:
    """The tokens that end a response by the model's own settings, which may be several.

    They are in its `generation_config.json`, or else in its `config.json`, as transformers reads them.
    """
    for name in ("generation_config.json", CONFIG):
        ends = read_model_json(folder / name).get("eos_token_id") if (folder / name).exists() else None
        if ends is not None:
            return tuple(id for id in (ends if isinstance(ends, list) else [ends]) if type(id) is int and id >= 0)
    return ()


def _check_windows(path: Path, settings: Any, prefix: str) -> None:
    """Raise `ModelError` if layers attend to a part of the text whose length is not set."""
    kinds = list(getattr(settings, "layer_types", None) or ())
    for kind, name in _WINDOWS.items():
        if kind in kinds and getattr(settings, name, None) is None:
            raise ModelError(
                f"{path}: {prefix}{name} is null, but {kinds.count(kind)} of {len(kinds)} layers are of the type "
                f"{kind}, which needs it: correct it, or copy or fetch the file again"
            )


def _read_sizes(path: Path) -> None:
    """Raise `ModelError` for a size in a config.json that no model has, before anything is built in that size."""
    settings = read_model_json(path)
    for name, value, own in _sizes_in(settings):
        most = _MOST.get(name.rpartition(".")[2], _MOST_LAYERS_OF_ANY_KIND)
        if not isinstance(value, int) or isinstance(value, bool):
            problem = f"{name} is {printable(repr(value), 40)}, not a whole number"
        elif value > most:
            problem = f"{name} is {value:,}, more than the {most:,} that any model has"
        elif own and value < 1:
            problem = f"{name} is {value}, and must be at least 1"
        else:
            continue
        raise ModelError(f"{path}: {problem}: correct it, or copy or fetch the file again")


def _sizes_in(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """The dotted name and the value of each size, and whether it is one of the language model.

    Other parts of a model (a vision tower) may have sizes of 0, and a size may be a list with a value for each layer.
    """
    own = prefix in ("", "text_config.")
    for key, value in settings.items():
        if isinstance(value, dict) and not prefix:
            yield from _sizes_in(value, f"{key}.")
        elif key in _MOST and value is not None:
            for each in value if isinstance(value, list) and value else [value]:
                yield prefix + key, each, own
        elif isinstance(value, int) and any(word in key for word in ("layers", "heads", "experts")):
            yield prefix + key, value if not isinstance(value, bool) else 0, False


def _needs_code(folder: Path, error: BaseException) -> ModelError | None:
    """The error for a folder that does not load because it needs to run its own code, and may not."""
    if "trust_remote_code" not in str(error):
        return None
    return ModelError(
        f"{folder} needs Python code that comes with it: read that code, then set model.trust_remote_code"
    )
