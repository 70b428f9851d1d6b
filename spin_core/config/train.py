"""Settings of training."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from spin_core.config.base import Execution, Fraction, Frozen, NonNegativeFloat, Schedule, at

Loss = Literal["logistic", "hinge", "exponential", "correlation", "t-spin", "space", "sft"]


class LoraConfig(Frozen):
    """Training of low-rank adapters instead of all weights."""

    rank: PositiveInt = 16
    """Rank of each adapter."""

    alpha: PositiveFloat = 32.0
    """Scale: an adapter's product counts alpha / rank times."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' inputs, in training only."""

    targets: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter (`q_proj`, …); empty takes all except the output layer."""

    across: Literal["merge", "stack"] = "merge"
    """What happens to an adapter after its iteration. `merge`: it is merged into the weights in float32. `stack`: it is
    kept separate from θ_0's weights, which are stored once and never rounded; use `spin export` for inference
    engines."""


class SpeedConfig(Frozen):
    """How the training is computed. Nothing here changes the result, except for rounding."""

    packing: bool = True
    """Join sequences end to end in one row, so that no token is padding."""

    prefix_sharing: bool = True
    """Compute a prompt once for all its responses (needs `packing`)."""

    response_logits: bool = True
    """Project to the vocabulary at response tokens only, one chunk at a time; off: all logits at once."""

    cached_scores: bool = True
    """Compute the opponent's scores once for each iteration; off: keep it in memory and compute them at every step."""

    compile: bool = False
    """Compile layers and the passes over logits with torch.compile. It takes half a minute; then, on a GPU, a step of
    a model of 1B parameters takes a fifth less time. On a CPU large models gain nothing."""

    attention: Literal["auto", "sdpa", "varlen"] = "auto"
    """Kernel of packed attention: SDPA on gathered sequences, or FlashAttention of variable length, which needs a GPU
    and half precision. `auto` takes FlashAttention if it is available."""

    prefetch: bool = True
    """Prepare the next step's tensors during the current step."""

    ranks: PositiveInt = 1
    """Processes on each node, one for each device. All train together; those of the first node also score together."""

    nodes: PositiveInt = 1
    """Machines that train together."""

    rendezvous: str = ""
    """`host:port` of the first node, to which the others connect; needed for more than one node. On node i, start
    `SPIN_NODE_RANK=i python -m spin_core.phases.train JOB`, with the job file that the first node's log names."""

    deepspeed: str = ""
    """A DeepSpeed configuration: `zero0` to `zero3`, `zero2-offload`, `zero3-offload`, or the path of a JSON file.
    Empty: none on one device, `zero2` on several. In bfloat16 `zero0` sums the gradients of a batch's parts in
    bfloat16, all others in float32."""

    @property
    def distributed(self) -> bool:
        """Whether several processes train together, or one trains with DeepSpeed."""
        return self.ranks * self.nodes > 1 or bool(self.deepspeed)

    @model_validator(mode="after")
    def _nodes_have_a_rendezvous(self) -> Self:
        host, _, port = self.rendezvous.rpartition(":")
        if self.nodes > 1 and not (host and port.isdecimal()):
            raise ValueError("several nodes need train.speed.rendezvous: the first node's address as host:port")
        return self


class MonitorsConfig(Frozen):
    """Monitors of training, and what each does when it fires. Each acts once in a run."""

    saturated: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """Reward accuracy stays near 1. `stop` ends training early and publishes the weights as they are; `roll-back`
    does the same with the weights of the last checkpoint before. With `keep_best` both publish the best so far."""

    exploded: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """Reward margins are so large that the loss is flat."""

    fallen: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """log p of the real responses falls below its starting value."""

    gradient: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """The gradient's norm is suddenly much higher than before."""

    length: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """The reward margin depends mostly on the difference in length."""

    not_finite: Literal["refuse", "roll-back"] = "refuse"
    """A loss or gradient that is not finite: end the run with an error, or with the weights that `roll-back` takes."""

    window: Annotated[int, Field(ge=2)] = 20
    """Steps that a monitor takes into account, so that one unusual batch does not trigger it."""

    saturated_accuracy: Fraction = 0.99
    """`saturated`: it fires when all steps in the window reach this accuracy."""

    exploded_margin: PositiveFloat = 20.0
    """`exploded`: it fires when the mean margin in the window reaches this."""

    fallen_nats: PositiveFloat = 1.0
    """`fallen`: how far the mean log p of the real responses may fall, in nats a response."""

    gradient_factor: PositiveFloat = 10.0
    """`gradient`: how many times the window's median norm the norm must be, in three steps in a row."""

    length_correlation: Fraction = 0.8
    """`length`: correlation within a batch between reward margin and difference in length, its mean over the window."""


class TrainConfig(Frozen):
    """How the player learns to tell real from generated."""

    loss: Loss = "logistic"
    """The loss on the margin: the paper's logistic; hinge, exponential and correlation, which its theory covers too;
    T-SPIN (arXiv 2601.08198) and SPACE (2512.07175); `sft` is continued fine-tuning on the real responses."""

    beta: Schedule[PositiveFloat] = 0.1
    """The paper's lambda. Larger keeps the player closer to the opponent. It is also T-SPIN's alpha and the scale of
    SPACE's rewards; their papers use 1 for both."""

    nll_weight: Schedule[NonNegativeFloat] = 0.0
    """Add this many times the real response's negative log-likelihood, as the mean over its tokens."""

    anchor: Schedule[Fraction] = 0.0
    """Weight of θ_0 in the reference: log p_t becomes (1 - anchor) log p_t + anchor log p_0 (arXiv 2404.04291)."""

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

    micro_batch_tokens: Execution[PositiveInt | Literal["auto"]] = "auto"
    """Tokens in one forward and backward pass of a device, including padding; a batch is split to fit, but never
    the responses to one prompt. `auto` takes what fits into the free memory, at most 16,384 on a CPU and 32,768 on a
    GPU, and halves it when memory runs out. It may change at any time, for example to save memory: it changes only
    rounding and what an adapter's dropout drops."""

    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSProp is the paper's choice."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""

    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""

    warmup: Fraction = 0.1
    """The fraction of the steps in which the learning rate rises; it is above zero from the first step on."""

    max_grad_norm: NonNegativeFloat = 1.0
    """Clip the gradient to this norm; 0 turns clipping off."""

    gradient_checkpointing: Execution[bool] = False
    """Recompute activations in the backward pass: less memory, a third more time, identical results. It may change at
    any time."""

    lora: LoraConfig | None = None
    """Train low-rank adapters; None trains all weights."""

    speed: Execution[SpeedConfig] = SpeedConfig()
    """How the training is computed."""

    save_every: PositiveInt = 100
    """Steps between checkpoints. A kill costs at most this many steps."""

    keep_checkpoints: Execution[PositiveInt] = 2
    """How many checkpoints to keep. It may change at any time."""

    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Fraction of the prompts whose pairs are used to measure the loss, not to train; the same in all iterations."""

    evaluate_every: PositiveInt = 50
    """Steps between two measurements on the held-out pairs; the last step is always measured."""

    keep_best: Literal["", "loss", "rewards/accuracies", "rewards/margins", "logps/real"] = ""
    """Publish the weights that were best by this metric on the held-out pairs; empty publishes the last."""

    monitors: MonitorsConfig = MonitorsConfig()
    """Monitors of training, and what each does when it fires."""

    first_loss_tolerance: Execution[PositiveFloat] = 1e-3
    """How much player and opponent may differ before the first step, in nats a token, in float32; bfloat16 allows 20
    times as much. The first loss may differ from log 2 by the same amount, times beta / 0.1 if that is more
    than 1. It may change at any time."""

    def history_weight_in(self, t: int) -> float:
        """The weight of T-SPIN's second term in iteration `t`. It needs θ_0's answers, which iteration 0 trains on."""
        return at(self.t_spin_weight, t) if self.loss == "t-spin" and t > 0 else 0.0

    def needs_identical_pairs(self, t: int) -> bool:
        """Whether pairs of equal responses have a gradient in iteration `t`. Those of a margin loss have none."""
        other_terms = at(self.nll_weight, t) or self.history_weight_in(t)
        return self.loss in ("sft", "space") or bool(other_terms)

    def anchor_in(self, t: int) -> float:
        """The weight of θ_0 in the reference in iteration `t`. In iteration 0 the opponent is θ_0."""
        return at(self.anchor, t) if self.loss not in ("sft", "t-spin", "space") and t > 0 else 0.0


class SftTrainConfig(TrainConfig):
    """Training on the real responses only."""

    loss: Loss = "sft"
    """Always `sft`."""

    learning_rate: Schedule[PositiveFloat] = 3e-3
    """Peak learning rate."""

    epochs: Schedule[PositiveInt] = 20
    """Passes over the SFT data."""

    optimizer: Literal["rmsprop", "adamw"] = "adamw"
    """RMSProp or AdamW."""

    @model_validator(mode="after")
    def _has_no_self_play_settings(self) -> Self:
        if self.loss != "sft":
            raise ValueError(f"sft.train.loss is always sft, not {self.loss}: leave it out")
        for name in ("nll_weight", "anchor"):
            value = getattr(self, name)
            if any(value) if isinstance(value, tuple) else value:
                raise ValueError(f"sft.train.{name} has no effect, because sft has no opponent: leave it out")
        return self
