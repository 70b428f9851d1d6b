"""Settings of the data: sources, prompts and pairs."""

from typing import Literal

from pydantic import PositiveInt

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


class PromptsConfig(Frozen):
    """The SFT data: prompts and the human responses that the player learns to prefer."""

    source: SourceConfig = SourceConfig()
    """Where the rows come from."""

    format: Literal["auto", "messages", "prompt-response", "instruction", "spin", "text"] = "auto"
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
