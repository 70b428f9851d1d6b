"""`RunConfig`: every setting of a run.

A field's docstring is its help text. It reaches the reference in the docs, `spin recipes --settings` and the form in
Prefect's UI. Unknown fields are rejected.
"""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from spin_core.config.base import Frozen, at
from spin_core.config.controls import ControlsConfig
from spin_core.config.data import PairsConfig, PromptsConfig
from spin_core.config.evaluate import EvaluateConfig, GateConfig
from spin_core.config.generate import GenerateConfig
from spin_core.config.metrics import MetricsConfig
from spin_core.config.model import ChatConfig, ModelConfig, SftConfig
from spin_core.config.nightly import NightlyConfig
from spin_core.config.push import PushConfig
from spin_core.config.train import TrainConfig

LineageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class RunConfig(Frozen):
    """A complete run. A recipe is a named value of this."""

    recipe: str
    """The recipe that this configuration is based on."""

    iterations: PositiveInt = 3
    """How many iterations to run."""

    seed: NonNegativeInt = 0
    """The seed that every other seed comes from."""

    play_seed: NonNegativeInt = 0
    """Repeat a run with another number, from the same θ_0 on the same data: it is added to the seeds of the opponents'
    answers and of the order in which players and controls train."""

    model: ModelConfig = ModelConfig()
    """The SFT model."""

    sft_first: bool = False
    """Fine-tune the model at `model.path` on the SFT data first, as `sft.train` says, so that θ_0 has learnt the data
    that self-play then uses, as the paper's model has. A recipe without a model always trains θ_0."""

    sft: SftConfig = SftConfig()
    """Training of θ_0, if `model.path` is empty or `sft_first` is set."""

    prompts: PromptsConfig = PromptsConfig()
    """The SFT data."""

    chat: ChatConfig = ChatConfig()
    """How prompts are written for the model."""

    generate: GenerateConfig = GenerateConfig()
    """The opponent's answers."""

    pairs: PairsConfig = PairsConfig()
    """Pair building."""

    train: TrainConfig = TrainConfig()
    """The player's training."""

    evaluate: EvaluateConfig = EvaluateConfig()
    """Scoring."""

    gate: GateConfig = GateConfig()
    """Promotion of a player to the next opponent."""

    nightly: NightlyConfig = NightlyConfig()
    """When nightly runs stop by themselves."""

    metrics: MetricsConfig = MetricsConfig()
    """Curves in TensorBoard, W&B or MLflow."""

    push: PushConfig = PushConfig()
    """The lineage's copy in a store."""

    controls: ControlsConfig = ControlsConfig()
    """Controls that self-play is compared with."""

    @property
    def trains_base(self) -> bool:
        """Whether θ_0 is trained by SFT here, and not taken as it is."""
        return self.sft_first or not self.model.path

    @property
    def run_seed(self) -> int:
        """The seed of answers and trainings."""
        return self.seed + self.play_seed

    @model_validator(mode="after")
    def _sft_fits_the_model(self) -> Self:
        if self.sft_first and not self.model.path:
            raise ValueError("sft_first needs a model to fine-tune: set model.path, or leave sft_first out")
        if self.sft_first and (missing := {"learning_rate", "epochs"} - self.sft.train.model_fields_set):
            names = " and ".join(f"sft.train.{name}" for name in sorted(missing, reverse=True))
            raise ValueError(
                f"sft_first needs {names}: the defaults are for a new model; a trained one takes a learning rate of "
                "about 2e-5, and 1 to 3 epochs"
            )
        return self

    @model_validator(mode="after")
    def _loss_is_for_self_play(self) -> Self:
        if self.train.loss == "sft":
            raise ValueError(
                "train.loss sft is not a loss for self-play: set controls.sft_continued to compare with it"
            )
        return self

    @model_validator(mode="after")
    def _vllm_length_is_sufficient(self) -> Self:
        longest, most = self.prompts.max_prompt_tokens + self.generate.max_new_tokens, self.generate.vllm.max_length
        if most is not None and most < longest:
            raise ValueError(
                f"generate.vllm.max_length {most} is too short for prompts of {self.prompts.max_prompt_tokens} tokens "
                f"and answers of {self.generate.max_new_tokens}: raise it to {longest}, or lower "
                "prompts.max_prompt_tokens"
            )
        return self

    @model_validator(mode="after")
    def _anchor_is_usable(self) -> Self:
        if self.train.loss in ("t-spin", "space") and any(at(self.train.anchor, t) for t in range(self.iterations)):
            raise ValueError(
                f"train.anchor needs a loss of margins, and {self.train.loss} is not one, because the mixture is "
                "not normalised: set train.anchor to 0, or train.loss to logistic, hinge, exponential or correlation"
            )
        if not self.train.speed.cached_scores and any(self.train.anchor_in(t) for t in range(self.iterations)):
            raise ValueError("train.anchor is read from scores: set train.speed.cached_scores to true")
        return self
