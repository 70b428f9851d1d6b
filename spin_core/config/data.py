"""Settings of the data: sources, prompts and pairs."""

from typing import Literal

from pydantic import PositiveInt

from spin_core.config.base import Frozen, Location, Schedule


class SourceConfig(Frozen):
    """Where the prompts and the human responses come from."""

    path: Location = "demo"
    """A hub name, a local folder, or a JSON, JSONL, Parquet or CSV file. `demo` is the built-in source."""

    split: str = "train"
    """The split to read, where the source has several."""

    subset: str | None = None
    """The configuration of a hub data set, where it has several."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""


class PromptsConfig(Frozen):
    """The SFT data: prompts and the human responses that the player learns to prefer."""

    source: SourceConfig = SourceConfig()
    """Where the rows come from."""

    format: Literal["auto", "messages", "prompt-response", "instruction", "spin", "text"] = "auto"
    """Which columns hold what; `auto` looks at their names. `text` cuts each text in two at `text_prompt_chars`."""

    columns: dict[str, str] = {}
    """New names for columns, `{"question": "prompt", "answer": "response"}`, applied before anything else."""

    rounds: Literal["all", "first"] = "all"
    """Of a conversation, answer the last assistant turn (`all`), or only the first one (`first`, as the paper)."""

    text_prompt_chars: PositiveInt = 64
    """With `format: text`: the prompt is the text up to the last space within so many characters."""

    sample: PositiveInt | None = None
    """A seeded sample of so many training prompts; None takes all."""

    held_out: PositiveInt = 256
    """How many prompts are kept out of training, for evaluation."""

    held_out_source: SourceConfig | None = None
    """A separate source for the held-out prompts; None splits them off `source`."""

    max_prompt_tokens: PositiveInt = 512
    """Longest prompt, in tokens of the rendered prompt."""

    too_long: Literal["drop", "refuse"] = "drop"
    """What happens to a prompt that is longer: dropped and counted, or the run is refused."""


class PairsConfig(Frozen):
    """What becomes of real and generated responses before they train."""

    answers: Literal["all", "first", "nearest-length"] = "all"
    """Of several answers to a prompt (`generate.answers`): a pair of each, or one pair of those that hygiene keeps, of
    the first or of the one whose tokens are nearest in number to the real response's, so that length tells less."""

    mix_previous: Schedule[bool] = True
    """Train on D_{t-1} ∪ D_t, as the paper does, or on D_t alone."""

    drop_identical: bool = True
    """Drop pairs whose generated response equals the real one: their gradient is zero."""

    drop_empty: bool = True
    """Drop pairs with an empty response on either side."""

    drop_looping: bool = True
    """Drop pairs whose generated response repeats one phrase over and over."""

    drop_duplicates: bool = True
    """Drop pairs that occur a second time, token by token."""

    drop_cut: bool = False
    """Drop pairs whose generated response was cut at `max_new_tokens`."""
