"""θ_0, linked from a folder or the hub, or a new random model of the `sft` shape: the steps of phase `base`.

The result is a folder that `from_pretrained` loads. Configuration and tokenizer are written, with the padding token and
the end of sequence that the run is configured to use. The weights are links to the original files: nothing large is
copied. What would stop a later phase is found here: a missing padding token or chat template, or a tokenizer that is
larger than the model's vocabulary.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spin_core.config.base import may_be_hub_name
from spin_core.config.model import ChatConfig, ModelConfig, SftConfig
from spin_core.data.chat import Renderer
from spin_core.data.tokenizer import load_config, load_tokenizer, model_ends
from spin_core.errors import ConfigError, ModelError, first_line
from spin_core.models.files import save_model
from spin_core.models.skeleton import build_skeleton
from spin_core.models.weights import check_values, check_weights, read_headers, weight_files
from spin_core.runtime.progress import Progress
from spin_core.store.files import write_json
from spin_core.store.jobs import BaseJob
from spin_core.store.weights_index import WEIGHTS_INDEX

log = logging.getLogger("spin_core")

_TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")

_CONTEXT = 2048
"""The longest sequence of a new model. Its positions are rotary, so a longer one costs no weights."""

_PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
"""Tokens that serve as padding where a vocabulary has them, the likeliest first."""


def link_model(job: BaseJob, scratch: Path, progress: Progress) -> None:
    """Link the weights of the configured model into `scratch`, and write the rest as the run needs it."""
    source = locate(job.model.path, job.model)
    if job.model.trust_remote_code:
        log.warning("model.trust_remote_code is on: Python code that comes with %s will run", source)
    progress.check()
    weights, renderer = check_model(source, job.model, job.chat, progress)
    tokenizer = renderer.tokenizer
    for file in [*weights, *(sorted(source.glob("*.py")) if job.model.trust_remote_code else [])]:
        (scratch / file.name).symlink_to(file.resolve())
    for name in ("config.json", WEIGHTS_INDEX):
        if (source / name).exists():
            shutil.copyfile(source / name, scratch / name)
    tokenizer.save_pretrained(scratch)
    # A model's own sampling defaults (temperature, repetition penalty) would change the opponent's distribution.
    write_json(scratch / "generation_config.json", _generation_config(tokenizer, renderer.stop_ids))
    log.info("%s: %d files of weights linked", source, len(weights))


def check_model(
    source: Path, model: ModelConfig, chat: ChatConfig, progress: Progress | None = None
) -> tuple[list[Path], Renderer]:
    """The files with a model's weights, and the renderer of its prompts, after everything about the model is checked.

    Raises:
        ModelError: a file is missing or damaged, or files do not fit each other.
        ConfigError: the chat template cannot be used.
    """
    weights = weight_files(source)
    skeleton = build_skeleton(source, load_config(source, model), model)
    tokenizer = prepare_tokenizer(source, model)
    check_fit(source, skeleton, tokenizer)
    renderer = make_renderer(tokenizer, chat, model_ends(source))
    headers = read_headers(weights)
    check_values(headers, without=check_weights(source, skeleton, headers), progress=progress)
    return weights, renderer


def create_model(job: BaseJob, shape: SftConfig, scratch: Path) -> None:
    """Write a new random Llama of the configured shape into `scratch`, with the demo's tokenizer."""
    from spin_core.data import demo

    tokenizer = demo.build_tokenizer()
    settings = new_model_config(shape, tokenizer)
    Renderer(tokenizer, job.chat)
    torch.manual_seed(job.seed)
    save_model(LlamaForCausalLM(settings), tokenizer, scratch)


def new_model_config(shape: SftConfig, tokenizer: Any) -> LlamaConfig:
    """The configuration of a Llama of the configured shape."""
    if shape.hidden_size % (2 * shape.heads):
        # Rotary positions turn a head's dimensions in pairs.
        raise ModelError(
            f"sft.hidden_size {shape.hidden_size} is not a multiple of {2 * shape.heads}, twice sft.heads: "
            "change one of the two"
        )
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=_CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def folder_without_weights(model: ModelConfig, shape: SftConfig, scratch: Path) -> Path:
    """A folder with θ_0's configuration and tokenizer, and its weights if they are on this machine already.

    Those of a recipe's own model are written into `scratch`.
    """
    from spin_core.data import demo

    if model.path:
        return locate(model.path, model, weights=False)
    tokenizer = demo.build_tokenizer()
    new_model_config(shape, tokenizer).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch


def locate(name: str, config: ModelConfig, *, weights: bool = True) -> Path:
    """The folder of a model, or of a tokenizer alone: a local one, or a download from the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not may_be_hub_name(name):
        raise ModelError(f"{name} is not a folder: set model.path to a model's folder or a hub name")
    patterns = [
        *_TOKENIZER_FILES,
        *(["*.safetensors"] if weights else []),
        *(["*.py"] if config.trust_remote_code else []),
    ]
    try:
        return Path(snapshot_download(name, revision=config.revision, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{name} is not a folder here, and the hub did not provide it ({first_line(error)}): "
            "set model.path to a folder, fix the name, or connect to the hub"
        ) from error


def prepare_tokenizer(source: Path, config: ModelConfig) -> Any:
    """The tokenizer, with the configured EOS and padding token. Raises `ModelError` if it then lacks one."""
    folder = locate(config.tokenizer, config, weights=False) if config.tokenizer else source
    tokenizer = load_tokenizer(folder, config)
    for name in ("eos_token", "pad_token"):
        token = getattr(config, name)
        if token is not None:
            if token not in tokenizer.get_vocab():
                raise ModelError(f"model.{name} {token!r} is not in the tokenizer's vocabulary: name a token that is")
            setattr(tokenizer, name, token)
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer in {folder} has no end-of-sequence token: set model.eos_token to a token of its vocabulary"
        )
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        candidates = (*_PAD_TOKENS, tokenizer.unk_token, tokenizer.eos_token)
        likeliest = next(token for token in candidates if token in vocabulary)
        raise ModelError(
            f"the tokenizer in {folder} has no padding token: set model.pad_token, for instance to {likeliest!r}"
        )
    return tokenizer


def make_renderer(tokenizer: Any, chat: ChatConfig, ends: Sequence[int]) -> Renderer:
    """The renderer of a tokenizer's prompts. An error about its chat template names the folder that it is in."""
    try:
        return Renderer(tokenizer, chat, ends)
    except ConfigError as error:
        if chat.template != "tokenizer":
            raise
        raise ConfigError(f"{tokenizer.name_or_path}: {error}") from error


def check_fit(source: Path, skeleton: PreTrainedModel, tokenizer: Any) -> None:
    """Raise `ModelError` unless a model embeds each of the tokenizer's tokens."""
    rows, tokens = skeleton.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values()) + 1
    if tokens > rows:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, but the model in {source} embeds only {rows}: "
            "set model.tokenizer to the model's own, or resize the model's embeddings"
        )


def _generation_config(tokenizer: Any, stop_ids: tuple[int, ...]) -> dict[str, Any]:
    """What ends a response, and nothing about sampling: that is the run's configuration."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(stop_ids),
        "pad_token_id": tokenizer.pad_token_id,
    }
