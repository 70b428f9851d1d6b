"""Settings of training."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from spin_core.config.base import Execution, Fraction, Frozen, NonNegativeFloat, Schedule, at

Loss = Literal["logistic", "hinge", "exponential", "correlation", "t-spin", "space", "sft"]


class LoraConfig(Frozen):
    """Training of low-rank adapters in place of all weights."""

    rank: PositiveInt = 16
    """Rank of each adapter."""

    alpha: PositiveFloat = 32.0
    """Scale: an adapter's product counts alpha / rank times."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' inputs, in training alone."""

    targets: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter (`q_proj`, …); empty takes all but the output layer."""

    across: Literal["merge", "stack"] = "merge"
    """From one iteration to the next: the adapter is merged into the weights in float32, or stays beside those of θ_0,
    which then are stored once and never rounded. Inference engines take a stack through `spin export`."""


class SpeedConfig(Frozen):
    """How the same numbers are reached. Nothing here changes what is learned, but for rounding."""

    packing: bool = True
    """Lay sequences end to end in one row, so that no token is padding."""

    prefix_sharing: bool = True
    """Compute a prompt once for all its responses (needs `packing`)."""

    response_logits: bool = True
    """Project to the vocabulary at response tokens alone, a chunk at a time; off: all logits at once."""

    cached_scores: bool = True
    """Score the opponent once an iteration; off: keep it in memory and score it at every step."""

    compile: bool = False
    """Compile layers and the passes over logits with torch.compile. It takes half a minute; on a GPU a step of a model
    of 1B parameters then takes a fifth less, on a CPU large models gain nothing."""

    attention: Literal["auto", "sdpa", "varlen"] = "auto"
    """Kernel of packed attention: SDPA on gathered sequences, or FlashAttention of variable length, which wants a GPU
    and half precision. `auto` takes that where it can be had."""

    prefetch: bool = True
    """Lay out the next step's tensors while the present one computes."""

    ranks: PositiveInt = 1
    """Processes on each node, one a device. They train together, and those of the first node score together."""

    nodes: PositiveInt = 1
    """Machines that train together."""

    rendezvous: str = ""
    """`host:port` of the first node, where the others meet it; needed for more than one node. On node i, start
    `SPIN_NODE_RANK=i python -m spin_core.phases.train JOB`, with the job file that the first node's log names."""

    deepspeed: str = ""
    """A DeepSpeed configuration: `zero0` to `zero3`, `zero2-offload`, `zero3-offload`, or a JSON file of your own.
    Empty: none on one device, `zero2` on several. In bfloat16 `zero0` sums the gradients of a batch's parts in
    bfloat16, all others in float32."""

    @property
    def distributed(self) -> bool:
        """Several processes train together, or one trains under DeepSpeed."""
        return self.ranks * self.nodes > 1 or bool(self.deepspeed)

    @model_validator(mode="after")
    def _nodes_know_where_to_meet(self) -> Self:
        host, _, port = self.rendezvous.rpartition(":")
        if self.nodes > 1 and not (host and port.isdecimal()):
            raise ValueError("several nodes need train.speed.rendezvous: the first node's address as host:port")
        return self


class MonitorsConfig(Frozen):
    """What is watched in training, and what is done when it fires. Each acts once a run."""

    saturated: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """Reward accuracy stays near 1. `stop` ends training early and publishes the weights as they are; `roll-back`
    does too, with those of the last checkpoint before. With `keep_best` both publish the best so far."""

    exploded: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """Reward margins so large that the loss is flat."""

    fallen: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """log p of the real responses falls below where it started."""

    gradient: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """The gradient's norm leaps far above what it was."""

    length: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """The reward margin follows the difference in length."""

    not_finite: Literal["refuse", "roll-back"] = "refuse"
    """A loss or gradient that is not finite: end the run with an error, or with the weights that `roll-back` takes."""

    window: Annotated[int, Field(ge=2)] = 20
    """Steps over which a monitor looks, so that one odd batch does not set it off."""

    saturated_accuracy: Fraction = 0.99
    """`saturated`: the accuracy that all steps in the window reach."""

    exploded_margin: PositiveFloat = 20.0
    """`exploded`: the mean margin in the window."""

    fallen_nats: PositiveFloat = 1.0
    """`fallen`: how far the mean log p of the real responses may fall, in nats a response."""

    gradient_factor: PositiveFloat = 10.0
    """`gradient`: how many times the median norm in the window, three steps running."""

    length_correlation: Fraction = 0.8
    """`length`: correlation within a batch between reward margin and difference in length, its mean in the window."""


class TrainConfig(Frozen):
    """How the player learns to tell real from generated."""

    loss: Loss = "logistic"
    """The loss on the margin: the paper's logistic; hinge, exponential and correlation, which its theory covers too;
    T-SPIN (arXiv 2601.08198) and SPACE (2512.07175); `sft` is continued fine-tuning on the real responses."""

    beta: Schedule[PositiveFloat] = 0.1
    """The paper's lambda. Larger keeps the player closer to the opponent. T-SPIN's alpha and the scale of SPACE's
    rewards too; their papers take 1 for both."""

    nll_weight: Schedule[NonNegativeFloat] = 0.0
    """Add so many times the real response's negative log-likelihood, a token's mean."""

    anchor: Schedule[Fraction] = 0.0
    """Part of θ_0 in the reference: log p_t gives way to (1 - anchor) log p_t + anchor log p_0 (arXiv 2404.04291)."""

    t_spin_weight: Schedule[NonNegativeFloat] = 0.1
    """T-SPIN: weight of the term that keeps the opponent's responses above θ_0's; iteration 0 has none."""

    space_mu: Schedule[PositiveFloat] = 1.0
    """SPACE: the ratio of generated to real samples that its noise contrast assumes."""

    learning_rate: Schedule[PositiveFloat] = 5e-7
    """Peak learning rate."""

    epochs: Schedule[PositiveInt] = 2
    """Passes over the pairs in one iteration."""

    batch_size: PositiveInt = 64
    """Pairs in an optimizer step, over all devices and accumulated micro-batches."""

    micro_batch_tokens: Execution[PositiveInt] = 16384
    """Tokens in one forward and backward pass of a device, padding counted; a batch is split to fit, but never the
    responses to one prompt. It may change at any time, as memory asks: it changes rounding alone, and what an adapter's
    dropout drops."""

    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSProp is the paper's choice."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""

    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""

    warmup: Fraction = 0.1
    """The part of the steps in which the learning rate rises; the first step has a rate already."""

    max_grad_norm: NonNegativeFloat = 1.0
    """Clip the gradient to this norm; 0 leaves it alone."""

    gradient_checkpointing: Execution[bool] = False
    """Recompute activations in the backward pass: less memory, a third more time, the same bits. It may change at any
    time."""

    lora: LoraConfig | None = None
    """Train adapters of low rank; None trains all weights."""

    speed: Execution[SpeedConfig] = SpeedConfig()
    """How the same numbers are reached."""

    save_every: PositiveInt = 100
    """Steps between checkpoints. A kill costs at most so many steps."""

    keep_checkpoints: Execution[PositiveInt] = 2
    """How many checkpoints stay. It may change at any time."""

    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Part of the prompts whose pairs are kept out of training, the same in all iterations, to measure the loss on."""

    evaluate_every: PositiveInt = 50
    """Steps between two measurements on the held-out pairs; the last step is measured in any case."""

    keep_best: Literal["", "loss", "rewards/accuracies", "rewards/margins", "logps/real"] = ""
    """Publish the weights that were best by this metric on the held-out pairs; empty publishes the last."""

    monitors: MonitorsConfig = MonitorsConfig()
    """What is watched, and what is done when it fires."""

    first_loss_tolerance: Execution[PositiveFloat] = 1e-3
    """How far apart player and opponent may be before the first step, in nats a token, in float32; bfloat16 allows 20
    times as much. The first loss may be as far from log 2, times beta / 0.1 where that is more than 1. It may change
    at any time."""

    def history_weight_in(self, t: int) -> float:
        """The weight of T-SPIN's second term in iteration `t`. It needs θ_0's answers, which iteration 0 trains on."""
        return at(self.t_spin_weight, t) if self.loss == "t-spin" and t > 0 else 0.0

    def anchor_in(self, t: int) -> float:
        """The part of θ_0 in the reference in iteration `t`. In iteration 0 the opponent is θ_0."""
        return at(self.anchor, t) if self.loss not in ("sft", "t-spin", "space") and t > 0 else 0.0


class SftTrainConfig(TrainConfig):
    """Training on the real responses alone."""

    loss: Loss = "sft"
    """Always `sft`."""

    learning_rate: Schedule[PositiveFloat] = 3e-3
    """Peak learning rate."""

    epochs: Schedule[PositiveInt] = 20
    """Passes over the SFT data."""

    optimizer: Literal["rmsprop", "adamw"] = "adamw"
    """RMSProp or AdamW."""

    @model_validator(mode="after")
    def _plays_no_game(self) -> Self:
        if self.loss != "sft":
            raise ValueError(f"sft.train.loss is always sft, not {self.loss}: leave it out")
        for name in ("nll_weight", "anchor"):
            value = getattr(self, name)
            if any(value) if isinstance(value, tuple) else value:
                raise ValueError(f"sft.train.{name} would do nothing, since sft plays against nobody: leave it out")
        return self
