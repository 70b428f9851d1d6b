"""The part of `spin check` that reads the model: its sizes, its adapter, its tokenizer, and what rows it can take."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_core.config.base import at
from spin_core.config.run import RunConfig
from spin_core.errors import ModelError
from spin_core.preflight.estimate import Shape
from spin_core.preflight.findings import Looks, count


def look_for_model(_looks: Looks, config: RunConfig, scratch: Path) -> Path:
    """The model's folder, with a tokenizer. Weights that are on the hub, or still to be made, are not in it."""
    from spin_core.data import demo
    from spin_core.models import base_model

    if config.model.path:
        return base_model.locate(config.model.path, config.model, weights=False)
    tokenizer = demo.build_tokenizer()
    base_model.new_model_config(config.sft, tokenizer).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch


def look_at_model(looks: Looks, config: RunConfig, folder: Path) -> Shape:
    """Sizes, from the weights' headers where weights are here, and from the configuration where not."""
    from spin_core.data.tokenizer import load_config
    from spin_core.models import base_model
    from spin_core.runtime.devices import device_of

    model = config.model
    settings = load_config(folder, model)
    skeleton = base_model.skeleton(folder, settings, model)
    parameters = sum(weight.numel() for weight in skeleton.parameters())
    if not model.path:
        origin = f"made here, and trained on the data for {count(at(config.sft.train.epochs, 0), 'epoch')}"
    elif Path(model.path).expanduser().is_dir() or any(folder.glob("*.safetensors")):
        parameters, stored = read_headers(base_model.weight_files(folder))
        origin = f"{model.path}, stored as {stored}"
    else:
        origin = f"{model.path}, fetched from the hub when the run begins"
    looks.add("model", f"{parameters:,} parameters, {model.dtype} on {device_of(model)}: {origin}")
    if model.trust_remote_code:
        looks.add("model", "model.trust_remote_code is on: Python code that comes with the model will run", "warn")
    return Shape.of(settings, parameters, model.dtype)


def look_at_adapter(looks: Looks, config: RunConfig, folder: Path, shape: Shape) -> Shape:
    """The sizes with those of the adapter, if one is to be trained: the layers that get it are there."""
    from spin_core.data.tokenizer import load_config
    from spin_core.models import base_model
    from spin_core.training.lora import adapted_layers

    lora = config.train.lora
    if lora is None:
        return shape
    skeleton = base_model.skeleton(folder, load_config(folder, config.model), config.model)
    layers: list[Any] = [skeleton.get_submodule(name) for name in adapted_layers(skeleton, lora.targets)]
    trained = sum(lora.rank * sum(layer.weight.shape) for layer in layers)
    scale = f"rank {lora.rank}, alpha {lora.alpha:g}"
    looks.add("model", f"trains an adapter of {scale} on {count(len(layers), 'layer')}: {trained:,} parameters")
    return replace(shape, adapter=trained)


def look_at_logits(looks: Looks, config: RunConfig, folder: Path) -> RunConfig:
    """Whether the model's logits can be made a chunk at a time; the configuration by which its costs are reckoned."""
    from spin_core.data.tokenizer import load_config
    from spin_core.models import probe

    speed, model = config.train.speed, config.model
    if not (speed.response_logits and probe.needs_all_logits(load_config(folder, model), model.trust_remote_code)):
        return config
    looks.add("model", "computes all logits at once, because it does more to them than scale or cap them", "warn")
    whole = config.train.model_copy(update={"speed": speed.model_copy(update={"response_logits": False})})
    return config.model_copy(update={"train": whole})


def look_at_packing(looks: Looks, config: RunConfig, folder: Path) -> RunConfig:
    """Whether the model can take packed rows; the configuration by which its costs are reckoned, without them if not.

    Nothing is said of a model of which no tiny one can be made.
    """
    from spin_core.data.tokenizer import load_config
    from spin_core.models import probe

    speed = config.train.speed
    if not speed.packing:
        return config
    reason = probe.why_not_packed(load_config(folder, config.model), config.model.trust_remote_code)
    if reason is None:
        return config
    if not reason:
        looks.add("model", "trains on packed rows")
        return config
    looks.add("model", f"trains on padded rows, because {reason}", "warn")
    padded = config.train.model_copy(update={"speed": speed.model_copy(update={"packing": False})})
    return config.model_copy(update={"train": padded})


def read_headers(files: Iterable[Path]) -> tuple[int, str]:
    """How many numbers safetensors files hold, and of what kind. `ModelError` if a file is cut short."""
    from safetensors import SafetensorError, safe_open

    kinds: Counter[str] = Counter()
    for path in files:
        try:
            with safe_open(path, "np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it has no iterator)
                    part = tensors.get_slice(name)
                    kinds[part.get_dtype()] += math.prod(part.get_shape())
        except SafetensorError as error:
            raise ModelError(f"{path} is no whole safetensors file ({error}): copy or fetch it again") from error
    return kinds.total(), " and ".join(sorted(kinds))


def look_at_tokenizer(looks: Looks, config: RunConfig, folder: Path) -> Any:
    """A renderer: the tokenizer loads, fits the model, and can write what the configuration asks for."""
    from spin_core.data.chat import Renderer
    from spin_core.data.tokenizer import load_config
    from spin_core.models import base_model

    tokenizer = base_model.prepare_tokenizer(folder, config.model)
    base_model.check_fit(folder, load_config(folder, config.model), tokenizer, config.model)
    renderer = Renderer(tokenizer, config.chat)
    template = {"tokenizer": "its chat template", "plain": "bare text", "format": f"format {config.chat.format!r}"}
    tokens = f"{len(tokenizer):,} tokens; pad {tokenizer.pad_token}, responses end in {renderer.frame.end_of_turn}"
    looks.add("tokenizer", f"{tokens}; prompts are written as {template[config.chat.template]}")
    return renderer
