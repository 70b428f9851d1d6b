"""The tokenizer and the configuration that are stored next to a model's weights.

Both are needed to prepare data, long before the weights are loaded; so they are below `models/`.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from spin_core.config.model import ModelConfig
from spin_core.errors import ModelError, first_line


def load_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises `ModelError` if it is missing or cannot be loaded."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        _refuse_code(folder, error)
        raise ModelError(
            f"{folder} holds no tokenizer that loads ({first_line(error)}): set model.tokenizer to a folder that does"
        ) from error
    return tokenizer


def context_length(folder: Path, config: ModelConfig) -> int | None:
    """The longest sequence the model was built for, in tokens; None if its configuration does not say."""
    settings = load_config(folder, config)
    length = getattr(settings, "max_position_embeddings", None) or getattr(settings, "n_positions", None)
    return int(length) if length else None


def load_config(folder: Path, config: ModelConfig) -> Any:
    """The model's own configuration. Raises `ModelError` if it is missing or cannot be loaded."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        _refuse_code(folder, error)
        raise ModelError(
            f"{folder} holds no config.json of a model that transformers knows ({first_line(error)}): is it a model?"
        ) from error


def _refuse_code(folder: Path, error: Exception) -> None:
    """Raise `ModelError` if something does not load because it needs to run its own code, and may not."""
    if "trust_remote_code" in str(error):
        raise ModelError(
            f"{folder} needs Python code that comes with it: read that code, then set model.trust_remote_code"
        ) from error
