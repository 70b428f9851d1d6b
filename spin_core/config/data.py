"""Settings of the data: sources, prompts and pairs."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from spin_core.config.base import Frozen, Location, Schedule


class SourceConfig(Frozen):
    """Where the prompts and the human responses come from."""

    path: Location = "demo"
    """A hub name, a local folder, or a JSON, JSONL, Parquet or CSV file, perhaps compressed. `demo` is the built-in
    source."""

    split: str = "train"
    """The split to read, if the source has several."""

    subset: str | None = None
    """The configuration of a data set on the hub, if it has several."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""


Format = Literal["auto", "messages", "prompt-response", "instruction", "spin", "text"]


class MixedSource(SourceConfig):
    """One of several sources, with a layout of its own."""

    path: Location
    """A hub name, a local folder, or a file."""

    format: Format = "auto"
    """The layout of its columns, as in `prompts.format`."""

    columns: dict[str, str] = {}
    """New names for its columns, as in `prompts.columns`."""

    weight: PositiveFloat | None = None
    """Its share of all rows, relative to the other sources' weights. As many rows are taken as these proportions allow
    without repeating one."""

    rows: PositiveInt | None = None
    """Take this many of its rows, a seeded sample; None takes all."""


class PromptsConfig(Frozen):
    """The SFT data: prompts and the human responses that the player learns to prefer."""

    source: SourceConfig = SourceConfig()
    """Where the rows come from."""

    sources: dict[str, MixedSource] | None = None
    """Several sources by name, in the place of `source`. A list is named after its files. Held-out prompts are drawn
    from their mixture."""

    format: Format = "auto"
    """The layout of the columns; `auto` decides by their names. `text` splits each text at `text_prompt_chars`."""

    columns: dict[str, str] = {}
    """New names for columns, `{"ask": "prompt", "reply": "response"}`, applied before anything else. A name without a
    meaning, such as `unused`, leaves a column out."""

    rounds: Literal["all", "first"] = "all"
    """Which assistant turn of a conversation to answer: the last one (`all`) or only the first (`first`, as the
    paper)."""

    text_prompt_chars: PositiveInt = 64
    """With `format: text`: the prompt is the text up to the last space within this many characters."""

    sample: PositiveInt | None = None
    """Train on a seeded sample of this many prompts; None takes all."""

    held_out: PositiveInt = 256
    """How many prompts are kept out of training, for evaluation."""

    held_out_source: SourceConfig | None = None
    """A separate source for the held-out prompts; None splits them off `source`."""

    max_prompt_tokens: PositiveInt = 512
    """Longest prompt, in tokens of the rendered prompt."""

    too_long: Literal["drop", "refuse"] = "drop"
    """What happens to a longer prompt: `drop` leaves it out and counts it, `refuse` ends with an error."""

    @field_validator("sources", mode="before")
    @classmethod
    def _name_a_list(cls, value: Any) -> Any:
        """A list of sources, or of their paths, by the names of their files."""
        if isinstance(value, dict):
            return {name: {"path": item} if isinstance(item, str) else item for name, item in value.items()}
        if not isinstance(value, list | tuple):
            return value
        sources: dict[str, Any] = {}
        for item in value:
            source = {"path": item} if isinstance(item, str) else item
            if not isinstance(source, dict | SourceConfig):
                problem = f"prompts.sources cannot have {item!r} in it: give paths, or {{path: …}}"
                raise ValueError(problem)  # noqa: TRY004 (pydantic reports no other type)
            path = source.path if isinstance(source, SourceConfig) else str(dict(source).get("path", ""))
            name = re.sub(r"[^\w-]+", "-", Path(path).name.split(".")[0], flags=re.ASCII).strip("-") or "source"
            if name in sources:
                raise ValueError(f"prompts.sources has two files named {name}: give names, {{a: {{path: …}}, b: …}}")
            sources[name] = source
        return sources

    @model_validator(mode="after")
    def _mixture_is_clear(self) -> Self:
        if self.sources is None:
            return self
        if not self.sources:
            raise ValueError("prompts.sources is empty: name sources, or leave it out")
        for name, source in self.sources.items():
            if not re.fullmatch(r"[\w-]{1,50}", name, re.ASCII):
                raise ValueError(f"prompts.sources has the name {name!r}: use letters, digits, - and _")
            if source.path == "demo":
                raise ValueError(f"prompts.sources.{name} is the built-in demo, which cannot be mixed: leave it out")
        weighted = [name for name, source in self.sources.items() if source.weight is not None]
        counted = [name for name, source in self.sources.items() if source.rows is not None]
        if weighted and (counted or len(weighted) < len(self.sources)):
            raise ValueError("prompts.sources: give a weight to every source and rows to none, or weights to none")
        return self

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out while it is unset, so that it is not a part of older identities.
        values: dict[str, Any] = serialize(self)
        if self.sources is None:
            values.pop("sources", None)
        return values

    @property
    def is_demo(self) -> bool:
        """Whether the rows are those of the built-in source."""
        return self.sources is None and self.source.path == "demo"

    def parts(self) -> dict[str, "PromptsConfig"]:
        """The configuration of each source by itself: by its name, or by its path where there is one alone."""
        if self.sources is None:
            return {self.source.path: self}
        return {
            name: self.model_copy(
                update={
                    "source": SourceConfig(**source.model_dump(include=set(SourceConfig.model_fields))),
                    "format": source.format,
                    "columns": source.columns,
                    "sources": None,
                }
            )
            for name, source in self.sources.items()
        }


class PairsConfig(Frozen):
    """How real and generated responses become training pairs."""

    answers: Literal["all", "first", "nearest-length"] = "all"
    """With several answers to a prompt (`generate.answers`): which of those that the filters (`pairs.drop_*`) keep
    become pairs. `all`: each; `first`: the first; `nearest-length`: the one with the number of tokens nearest to the
    real response's, so that length gives less away."""

    mix_previous: Schedule[bool] = True
    """Train on D_{t-1} ∪ D_t, as the paper does, or on D_t alone."""

    drop_identical: bool = True
    """Drop pairs whose generated response equals the real one where their gradient is zero: for losses of the margin
    alone. With `sft`, `space`, `train.nll_weight` or T-SPIN's second term they count and are kept: without them the
    minimum would be away from the data."""

    drop_empty: bool = True
    """Drop pairs with an empty response on either side."""

    drop_looping: bool = True
    """Drop pairs whose generated response repeats one phrase many times."""

    drop_duplicates: bool = True
    """Drop pairs that have occurred before, compared token by token."""

    drop_cut: bool = False
    """Drop pairs whose generated response was cut at `max_new_tokens`."""
