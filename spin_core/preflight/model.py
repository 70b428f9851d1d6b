"""The findings of `spin check` about the model: its sizes, its adapter, its tokenizer, and the rows it can train on."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_core.config.base import at
from spin_core.config.model import ModelConfig
from spin_core.config.run import RunConfig
from spin_core.errors import ModelError, count
from spin_core.preflight.findings import Inspection, size
from spin_core.preflight.sizes import Shape


def find_model(_inspection: Inspection, config: RunConfig, scratch: Path) -> Path:
    """The model's folder, with a tokenizer. It has no weights if they are on the hub, or not made yet."""
    from spin_core.models import base_model

    return base_model.folder_without_weights(config.model, config.sft, scratch)


def build_model(_inspection: Inspection, config: RunConfig, folder: Path) -> Any:
    """The model of the folder's configuration, on the meta device."""
    from spin_core.data.tokenizer import load_config
    from spin_core.models.skeleton import build_skeleton

    return build_skeleton(folder, load_config(folder, config.model), config.model)


def inspect_model(inspection: Inspection, config: RunConfig, folder: Path, skeleton: Any, all_values: bool) -> Shape:
    """The model's sizes, and whether its weights fit its configuration if they are here.

    Args:
        inspection: collects findings.
        config: the run's settings.
        folder: the model's folder.
        skeleton: the model on the meta device.
        all_values: look for NaN and infinity in the weights of a large model too.
    """
    from spin_core.models import weights
    from spin_core.runtime.devices import device_of

    model, settings = config.model, skeleton.config
    parameters = sum(weight.numel() for weight in skeleton.parameters())
    trained = f"trained on the data for {count(at(config.sft.train.epochs, 0), 'epoch')} first"
    origin = f"made here, and {trained}"
    is_read = True
    if model.path and (Path(model.path).expanduser().is_dir() or any(folder.glob("*.safetensors"))):
        headers = weights.read_headers(weights.weight_files(folder))
        unused = weights.check_weights(folder, skeleton, headers)
        is_read = weights.check_values(headers, without=unused, most=math.inf if all_values else weights.VALUES_LIMIT)
        _, stored = weights.count_weights(headers)
        origin = f"{model.path}, stored as {stored}"
    elif model.path:
        origin = f"{model.path}, fetched from the hub when the run begins"
    if model.path and config.sft_first:
        origin += f"; {trained}"
    inspection.add("model", f"{parameters:,} parameters, {model.dtype} on {device_of(model)}: {origin}")
    if not is_read:
        limit = size(weights.VALUES_LIMIT)
        inspection.add("model", f"values of more than {limit} are not read; spin check --weights looks for NaN in them")
    if settings.get_text_config() is not settings:
        _inspect_text_only(inspection, folder, settings, model)
    if model.trust_remote_code:
        inspection.add("model", "model.trust_remote_code is on: Python code that comes with the model will run", "warn")
    return Shape.of(settings, parameters, model.dtype)


def _inspect_text_only(inspection: Inspection, folder: Path, settings: Any, model: ModelConfig) -> None:
    """A multimodal model answers and trains on text alone."""
    from spin_core.models import probe

    reason = probe.why_not_on_text(settings, model.trust_remote_code)
    if reason:
        raise ModelError(f"{folder} does not train on text alone ({reason}): set model.path to a text model")
    inspection.add("model", "reads more than text (images or sound): only its language model is used and trained")


def inspect_adapter(inspection: Inspection, config: RunConfig, skeleton: Any, shape: Shape) -> Shape:
    """The sizes with those of the adapter, if one is trained. Its layers exist."""
    from spin_core.training.lora import adapted_layers, adapter_parameters

    lora = config.train.lora
    if lora is None:
        return shape
    layers = adapted_layers(skeleton, lora.targets)
    trained = adapter_parameters(skeleton, layers, lora)
    scale = f"rank {lora.rank}, alpha {lora.alpha:g}"
    inspection.add("model", f"trains an adapter of {scale} on {count(len(layers), 'layer')}: {trained:,} parameters")
    return replace(shape, adapter=trained)


def inspect_logits(inspection: Inspection, config: RunConfig, skeleton: Any) -> RunConfig:
    """Whether the logits can be computed in chunks. Returns the configuration that costs are estimated with."""
    from spin_core.models import probe

    speed, model = config.train.speed, config.model
    if not (speed.response_logits and probe.needs_all_logits(skeleton.config, model.trust_remote_code)):
        return config
    inspection.add("model", "computes all logits at once, because it does more to them than scale or cap them", "warn")
    whole = config.train.model_copy(update={"speed": speed.model_copy(update={"response_logits": False})})
    return config.model_copy(update={"train": whole})


def inspect_packing(inspection: Inspection, config: RunConfig, skeleton: Any) -> RunConfig:
    """Whether the model can train on packed rows. Returns the configuration that its costs are estimated with.

    There is no finding if no tiny model of its kind can be made to try it.
    """
    from spin_core.models import probe

    speed = config.train.speed
    if not speed.packing:
        return config
    reason = probe.why_not_packed(skeleton.config, config.model.trust_remote_code)
    if reason is None:
        return config
    if not reason:
        inspection.add("model", "trains on packed rows")
        return config
    inspection.add("model", f"trains on padded rows, because {reason}", "warn")
    padded = config.train.model_copy(update={"speed": speed.model_copy(update={"packing": False})})
    return config.model_copy(update={"train": padded})


def inspect_tokenizer(inspection: Inspection, config: RunConfig, folder: Path, skeleton: Any) -> Any:
    """The tokenizer loads, fits the model, and can write prompts as configured. Returns its renderer."""
    from spin_core.data.tokenizer import model_ends
    from spin_core.models import base_model

    tokenizer = base_model.prepare_tokenizer(folder, config.model)
    base_model.check_fit(folder, skeleton, tokenizer)
    renderer = base_model.make_renderer(tokenizer, config.chat, model_ends(folder))
    template = {"tokenizer": "its chat template", "plain": "bare text", "format": f"format {config.chat.format!r}"}
    tokens = f"{len(tokenizer):,} tokens; pad {tokenizer.pad_token}, responses end in {renderer.frame.end_of_turn}"
    inspection.add("tokenizer", f"{tokens}; prompts are written as {template[config.chat.template]}")
    for end in renderer.ends.strings:
        inspection.add(
            "tokenizer", f"has no token for {end!r}, the template's end of turn: answers end in several tokens", "warn"
        )
    return renderer
