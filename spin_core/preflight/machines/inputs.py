"""What a forecast starts from: the shape of the model and the lengths of the texts, without weights or a network."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from spin_core.config.model import ModelConfig
from spin_core.config.run import RunConfig
from spin_core.data.sources import on_hub
from spin_core.errors import ConfigError
from spin_core.preflight.data import inspect_source, inspect_texts
from spin_core.preflight.findings import Inspection
from spin_core.preflight.machines.profiles import shape_of_known
from spin_core.preflight.model import build_model, find_model, inspect_tokenizer
from spin_core.preflight.sizes import Shape, Texts

PROMPT_TOKENS, RESPONSE_TOKENS = 200, 250
"""Mean lengths of chat data that are not here, as those of the benchmarks (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens that the user gives; None to measure or assume them."""

    prompt: float | None = None
    response: float | None = None


@dataclass(frozen=True)
class Inputs:
    """The sizes, and what was assumed about them."""

    shape: Shape
    texts: Texts
    assumed: bool
    """Whether the lengths of texts are assumed, because the data are not here."""


def read_inputs(config: RunConfig, lengths: Lengths) -> Inputs:
    """The sizes of a run.

    Raises:
        ConfigError: The shape of the model or the number of rows is not known.
    """
    here = not config.model.path or Path(config.model.path).expanduser().is_dir()
    known = None if here else shape_of_known(config.model)
    sources = [part.source for part in config.prompts.parts().values()]
    if here and lengths == Lengths() and not any(map(on_hub, sources)):
        return _measured(config)
    return Inputs(known or _shape_here(config), _assumed(config, lengths), lengths == Lengths())


def _measured(config: RunConfig) -> Inputs:
    """The sizes of a model and of data that are both here."""
    inspection = Inspection()
    with tempfile.TemporaryDirectory(prefix="spin-check-") as scratch:
        folder = find_model(inspection, config, Path(scratch))
        skeleton = build_model(inspection, config, folder)
        renderer = inspect_tokenizer(inspection, config, folder, skeleton)
        texts = inspect_texts(inspection, config, inspect_source(inspection, config), folder, renderer)
    assert texts is not None, "the number of rows that are here is known"
    return Inputs(_shape_of(skeleton, config.model), texts, assumed=False)


def _shape_here(config: RunConfig) -> Shape:
    """The shape of a model in a folder, or of one that the recipe makes."""
    if config.model.path and not Path(config.model.path).expanduser().is_dir():
        raise ConfigError(
            f"the sizes of {config.model.path} are not known without its files: set model.path to a folder with its "
            "config.json and tokenizer"
        )
    inspection = Inspection()
    with tempfile.TemporaryDirectory(prefix="spin-check-") as scratch:
        return _shape_of(build_model(inspection, config, find_model(inspection, config, Path(scratch))), config.model)


def _shape_of(skeleton: "object", model: ModelConfig) -> Shape:
    return Shape.of(skeleton.config, skeleton.num_parameters(), model.dtype)  # type: ignore[attr-defined]


def _assumed(config: RunConfig, lengths: Lengths) -> Texts:
    """Texts of the given or usual lengths, as many as the configuration samples."""
    prompts = config.prompts.sample
    if prompts is None:
        raise ConfigError("the number of prompts is not known without the data: set prompts.sample")
    most_prompt, most_response = config.prompts.max_prompt_tokens, config.generate.max_new_tokens
    return Texts(
        prompts=prompts,
        held_out=config.prompts.held_out,
        prompt_tokens=min(lengths.prompt or PROMPT_TOKENS, most_prompt),
        response_tokens=min(lengths.response or RESPONSE_TOKENS, most_response),
        longest_prompt=most_prompt,
        longest=most_prompt + most_response,
    )
