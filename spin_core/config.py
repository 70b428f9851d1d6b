"""Every setting of a run: frozen, and refusing fields it does not know.

A field's docstring is its help text. It reaches `spin check`, the README and the form in Prefect's UI. Settings of
generation, training and evaluation lie in files of their own, and are had from here like all others.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from spin_core.config_base import SCHEDULE, Fraction, Frozen, Location, NonNegativeFloat, Schedule, at
from spin_core.config_evaluate import (
    EvaluateConfig,
    EvaluateSpeedConfig,
    GateConfig,
    JudgeConfig,
    JudgeSpeedConfig,
    LmEvalConfig,
    MtBenchConfig,
    SuiteName,
)
from spin_core.config_generate import (
    GenerateConfig,
    GenerateSpeedConfig,
    OpponentsConfig,
    RayConfig,
    VllmConfig,
    VllmSpeedConfig,
)
from spin_core.config_metrics import MetricsConfig
from spin_core.config_nightly import NightlyConfig
from spin_core.config_push import PushConfig
from spin_core.config_train import LoraConfig, Loss, MonitorsConfig, SftTrainConfig, SpeedConfig, TrainConfig

__all__ = [
    "SCHEDULE",
    "ChatConfig",
    "ControlsConfig",
    "DpoConfig",
    "EvaluateConfig",
    "EvaluateSpeedConfig",
    "Fraction",
    "Frozen",
    "GateConfig",
    "GenerateConfig",
    "GenerateSpeedConfig",
    "JudgeConfig",
    "JudgeSpeedConfig",
    "LineageName",
    "LmEvalConfig",
    "LoraConfig",
    "Loss",
    "MetricsConfig",
    "ModelConfig",
    "MonitorsConfig",
    "MtBenchConfig",
    "NightlyConfig",
    "NonNegativeFloat",
    "OpponentsConfig",
    "PairsConfig",
    "PromptsConfig",
    "PushConfig",
    "RayConfig",
    "RunConfig",
    "Schedule",
    "SftConfig",
    "SftTrainConfig",
    "SourceConfig",
    "SpeedConfig",
    "SuiteName",
    "TrainConfig",
    "VllmConfig",
    "VllmSpeedConfig",
    "at",
]

LineageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class ModelConfig(Frozen):
    """Where θ_0, the SFT model, comes from."""

    path: Location = ""
    """A local folder or a hub name of a causal language model. Empty: train one as `sft` says."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    tokenizer: Location | None = None
    """Folder or hub name of the tokenizer, if it does not lie beside the model."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights in memory, for generation, scoring and training alike."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes a GPU if there is one."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off, unless you have read that code."""

    pad_token: str | None = None
    """The padding token, for a tokenizer that has none; it must be in the vocabulary already."""

    eos_token: str | None = None
    """The token that ends a response, if it is not the tokenizer's own end of sequence."""


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


class ChatConfig(Frozen):
    """How a prompt is written for the model."""

    template: Literal["tokenizer", "plain", "format"] = "tokenizer"
    """The tokenizer's own chat template; the bare text; or the `format` string."""

    format: str = "### Instruction: {prompt}\n\n### Response: "
    """With `template: format`: how one prompt becomes text."""

    system: str | None = None
    """A system prompt set before conversations that bring none."""

    add_bos: bool = True
    """With `plain` and `format`: begin with the tokenizer's BOS, where it has one."""


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


class SftConfig(Frozen):
    """How θ_0 is trained, for recipes that bring their own small Llama-shaped model."""

    hidden_size: PositiveInt = 32
    """Width of the model."""

    layers: PositiveInt = 2
    """Number of decoder layers."""

    heads: PositiveInt = 2
    """Attention heads."""

    intermediate_size: PositiveInt = 64
    """Width of the feed-forward layer."""

    train: SftTrainConfig = SftTrainConfig()
    """Its training on the SFT data."""


class DpoConfig(Frozen):
    """DPO of θ_0 on preference data, by the player's optimizer and batch."""

    source: SourceConfig
    """Where the preferences come from: rows with `chosen` and `rejected`, and perhaps `prompt` or `conversations`.
    `demo` is the built-in source's own."""

    columns: dict[str, str] = {}
    """New names for columns, `{"question": "prompt"}`, applied before anything else."""

    sample: PositiveInt | None = None
    """A seeded sample of so many preferences; None takes all."""

    beta: PositiveFloat = 0.1
    """DPO's beta. Larger keeps the model closer to θ_0."""

    learning_rate: PositiveFloat | None = None
    """Peak learning rate; None takes the player's own in iteration 0."""

    epochs: PositiveInt = 1
    """Passes over the preferences."""

    equal_steps: bool = False
    """From θ_0, train for as many steps as the iterations took together, whatever `epochs` says. DPO after the game
    keeps to `epochs`."""


class ControlsConfig(Frozen):
    """What the game is compared with, from the same θ_0 and scored in the same table."""

    sft_continued: bool = False
    """Continued fine-tuning on the real responses, for as many steps as the iterations took together."""

    sft_learning_rate: tuple[PositiveFloat, ...] = ()
    """Peak learning rates of continued fine-tuning, one control each; empty takes the player's own."""

    dpo: DpoConfig | None = None
    """DPO on preference data that people have labelled, from θ_0."""

    temperatures: tuple[PositiveFloat, ...] = ()
    """θ_0 sampled at other temperatures (needs `evaluate.exact`)."""

    sft_tokens: bool = False
    """Continued fine-tuning for as many tokens of prompts and responses as the iterations trained on together."""

    dpo_after: bool = False
    """DPO of the last version too, on the same preferences (needs `dpo`): the paper's table 3."""

    longer: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Iteration 0 trained for so many times its epochs, one control each: beside playing on, the paper's figure 4."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Iteration 0 trained on such a share of the prompts, and θ_0 fine-tuned further on the same share and on all:
    the paper's figure 5."""

    @property
    def trainings(self) -> int:
        """How many models are trained beside the game."""
        fine_tuned = self.sft_continued + self.sft_tokens + (len(self.shares) + 1 if self.shares else 0)
        others = (self.dpo is not None) + self.dpo_after + len(self.longer) + len(self.shares)
        return fine_tuned * max(1, len(self.sft_learning_rate)) + others

    @model_validator(mode="after")
    def _dpo_has_data(self) -> Self:
        if self.dpo_after and self.dpo is None:
            raise ValueError("controls.dpo_after needs preference data: set controls.dpo.source.path")
        return self


class RunConfig(Frozen):
    """A complete run. A recipe is a named value of this."""

    recipe: str
    """The recipe that this configuration began as."""

    iterations: PositiveInt = 3
    """How many iterations of the game to play."""

    seed: int = 0
    """The seed that every other seed comes from."""

    play_seed: int = 0
    """Another number plays another game from the same θ_0 on the same data: it is added to the seed of what opponents
    answer and of the order in which players and controls train."""

    model: ModelConfig = ModelConfig()
    """The SFT model."""

    sft: SftConfig = SftConfig()
    """Training of θ_0, if `model.path` is empty."""

    prompts: PromptsConfig = PromptsConfig()
    """The SFT data."""

    chat: ChatConfig = ChatConfig()
    """Prompt rendering."""

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
    """When nights stop by themselves."""

    metrics: MetricsConfig = MetricsConfig()
    """Curves in TensorBoard, W&B or MLflow."""

    push: PushConfig = PushConfig()
    """The lineage's copy in a store."""

    controls: ControlsConfig = ControlsConfig()
    """Comparisons."""

    @property
    def game_seed(self) -> int:
        """The seed of answers and trainings."""
        return self.seed + self.play_seed

    @model_validator(mode="after")
    def _loss_is_a_game(self) -> Self:
        if self.train.loss == "sft":
            raise ValueError("train.loss sft is no game: set controls.sft_continued to compare with it")
        return self

    @model_validator(mode="after")
    def _vllm_has_room(self) -> Self:
        longest, most = self.prompts.max_prompt_tokens + self.generate.max_new_tokens, self.generate.vllm.max_length
        if most is not None and most < longest:
            raise ValueError(
                f"generate.vllm.max_length {most} has no room for prompts of {self.prompts.max_prompt_tokens} tokens "
                f"and answers of {self.generate.max_new_tokens}: raise it to {longest}, or lower "
                "prompts.max_prompt_tokens"
            )
        return self

    @model_validator(mode="after")
    def _anchor_holds(self) -> Self:
        if self.train.loss in ("t-spin", "space") and any(at(self.train.anchor, t) for t in range(self.iterations)):
            raise ValueError(
                f"train.anchor needs a loss of margins, and {self.train.loss} is none, since the mixture is not "
                "normalised: set train.anchor to 0, or train.loss to logistic, hinge, exponential or correlation"
            )
        if not self.train.speed.cached_scores and any(self.train.anchor_in(t) for t in range(self.iterations)):
            raise ValueError("train.anchor is read from scores: set train.speed.cached_scores to true")
        return self
