"""Settings of the controls that self-play is compared with."""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from spin_core.config.base import Frozen
from spin_core.config.data import SourceConfig


class DpoConfig(Frozen):
    """DPO of θ_0 on preference data, with the player's optimizer and batch size."""

    source: SourceConfig
    """Where the preferences come from: rows with `chosen` and `rejected`, and optionally `prompt` or `conversations`.
    `demo` is the preferences of the built-in source."""

    columns: dict[str, str] = {}
    """New names for columns, `{"question": "prompt"}`, applied before anything else."""

    sample: PositiveInt | None = None
    """Train on a seeded sample of this many preferences; None takes all."""

    beta: PositiveFloat = 0.1
    """DPO's beta. Larger keeps the model closer to θ_0."""

    learning_rate: PositiveFloat | None = None
    """Peak learning rate; None takes the player's rate of iteration 0."""

    epochs: PositiveInt = 1
    """Passes over the preferences."""

    equal_steps: bool = False
    """From θ_0, train for as many steps as the iterations took together, regardless of `epochs`. DPO of the last
    version always uses `epochs`."""


class ControlsConfig(Frozen):
    """What self-play is compared with, from the same θ_0 and scored in the same table."""

    sft_continued: bool = False
    """Continued fine-tuning on the real responses, for as many steps as the iterations took together."""

    sft_learning_rate: tuple[PositiveFloat, ...] = ()
    """Peak learning rates of continued fine-tuning, one control each; empty takes the player's rate."""

    dpo: DpoConfig | None = None
    """DPO of θ_0 on preference data labelled by people."""

    temperatures: tuple[PositiveFloat, ...] = ()
    """θ_0 sampled at other temperatures (needs `evaluate.exact`)."""

    sft_tokens: bool = False
    """Continued fine-tuning for as many tokens of prompts and responses as the iterations trained on together."""

    dpo_after: bool = False
    """DPO of the last version too, on the same preferences (needs `dpo`): the paper's table 3."""

    longer: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Iteration 0 trained for this many times its epochs, one control each, to compare with further iterations: the
    paper's figure 4."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Iteration 0 trained on this share of the prompts, and θ_0 fine-tuned further on that share and on all prompts:
    the paper's figure 5."""

    @property
    def trainings(self) -> int:
        """How many models are trained in addition to the players."""
        fine_tuned = self.sft_continued + self.sft_tokens + (len(self.shares) + 1 if self.shares else 0)
        others = (self.dpo is not None) + self.dpo_after + len(self.longer) + len(self.shares)
        return fine_tuned * max(1, len(self.sft_learning_rate)) + others

    @model_validator(mode="after")
    def _dpo_has_data(self) -> Self:
        if self.dpo_after and self.dpo is None:
            raise ValueError("controls.dpo_after needs preference data: set controls.dpo.source.path")
        return self
