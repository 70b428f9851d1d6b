"""A version as a folder for other programs: weights, a tokenizer with the lineage's chat format, sampling."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from spin_core.config.base import at
from spin_core.config.model import ModelConfig
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError, printable
from spin_core.store.files import storage_errors, write_json
from spin_core.store.records import ModelVersion

CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's converter of model folders."""

GENERATION = "generation_config.json"


def write_model_folder(version: ModelVersion, config: RunConfig, out: Path, *, link: bool) -> list[str]:
    """Write a new folder from which `from_pretrained`, vLLM and others answer as the lineage does.

    Args:
        version: The version.
        config: The lineage's configuration.
        out: The folder to write, which does not exist.
        link: Link the files of weights instead of copying them, for a folder that lives for a while.

    Returns:
        Warnings about prompts that other programs write differently.

    Raises:
        SpinError: The version cannot be read.
    """
    from spin_core.data.chat import Renderer
    from spin_core.data.templates.portable import differs, portable_template
    from spin_core.data.tokenizer import load_tokenizer, model_ends

    tokenizer = load_tokenizer(version.path, config.model)
    renderer = Renderer(tokenizer, config.chat, model_ends(version.path))
    template = portable_template(renderer)
    is_other = differs(renderer, template)
    _write_weights(version.path, config.model, out, link=link)
    with storage_errors(out):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(out)
        write_json(out / GENERATION, generation_settings(config, version.t, renderer.stop_ids))
    return ["other programs write some prompts in another way than the lineage: compare its template"] * is_other


def find_converter() -> str:
    """The path of llama.cpp's converter. Raises `ConfigError` if it is not installed."""
    converter = shutil.which(CONVERTER)
    if converter is None:
        raise ConfigError(
            f"--gguf needs llama.cpp's {CONVERTER}, which is not on the PATH: fetch llama.cpp and install what its "
            "converter requires, then put its folder on the PATH"
        )
    return converter


def add_gguf(folder: Path, name: str, converter: str) -> Path:
    """Convert the weights in a model's folder to one GGUF file next to them.

    Raises:
        ConfigError: The converter does not know this kind of model.
    """
    out = folder / f"{name}.gguf"
    done = subprocess.run([converter, folder, "--outfile", out], capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigError(f"{converter} cannot convert this model ({printable(lines[-1])}): publish it without --gguf")
    return out


def generation_settings(config: RunConfig, t: int, stop_ids: tuple[int, ...]) -> dict[str, Any]:
    """The lineage's sampling in iteration t, as transformers and vLLM read it."""
    generate = config.generate
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": at(generate.temperature, t),
        "top_p": generate.top_p,
        "top_k": generate.top_k,
        "repetition_penalty": generate.repetition_penalty,
        "max_new_tokens": generate.max_new_tokens,
        "eos_token_id": sorted({*stop_ids, *generate.stop_ids}),
    }
    if generate.min_p:
        settings["min_p"] = generate.min_p
    return settings


def _write_weights(folder: Path, config: ModelConfig, out: Path, *, link: bool) -> None:
    """Write weights and their configuration: adapters merged, other files linked or copied."""
    from spin_core.lineage.export import export_model
    from spin_core.models.files import check_safetensors, is_stacked

    if is_stacked(folder):
        export_model(folder, out, "merged", config)
        return
    check_safetensors(folder)
    names = [path for pattern in ("*.safetensors", "*.safetensors.index.json", "config.json", "*.py")
             for path in folder.glob(pattern)]  # fmt: skip
    with storage_errors(out.parent):
        out.mkdir(parents=True)
        for path in names:
            if link:
                (out / path.name).symlink_to(path.resolve())
            else:
                shutil.copy2(path, out / path.name)
