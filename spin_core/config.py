"""Every setting of a run: frozen, and refusing fields it does not know.

A field's docstring is its help text. It reaches `spin check`, the README and the form in Prefect's UI.
"""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

T = TypeVar("T")

SCHEDULE = "schedule"
Schedule = Annotated[Union[T, Annotated[tuple[T, ...], Field(min_length=1)]], SCHEDULE]
"""One value, or one value an iteration; past its end, the last value holds."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Loss = Literal["logistic", "hinge", "exponential", "correlation", "t-spin", "space", "sft"]
LineageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Frozen(BaseModel):
    """Base of all configuration and records: immutable, strict about fields, documented by docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


def at(schedule: T | tuple[T, ...], t: int) -> T:
    """The value that a schedule has in iteration `t`."""
    if isinstance(schedule, tuple):
        return schedule[min(t, len(schedule) - 1)]
    return schedule


class ModelConfig(Frozen):
    """Where θ_0, the SFT model, comes from."""

    path: str = ""
    """A local folder or a hub name of a causal language model. Empty: train one as `sft` says."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    tokenizer: str | None = None
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

    path: str = "demo"
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


class VllmSpeedConfig(Frozen):
    """What vLLM may take of the machine. Nothing here changes what is said, but for rounding."""

    tensor_parallel: PositiveInt = 1
    """GPUs that hold one copy of the model together, for a model that does not fit on one."""

    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Part of a GPU's memory for weights, keys and values."""

    cache_gb: PositiveFloat | None = None
    """GiB for keys and values; None takes what `memory_fraction` leaves on a GPU, and 2 on a CPU."""

    batch_size: PositiveInt = 256
    """Answers in flight at a time, at most."""

    prefix_caching: bool = True
    """Compute once what prompts have in common: a system prompt, or the prompt of several answers."""

    eager: bool = False
    """Skip CUDA graphs: a faster start, slower steps. A CPU has none."""


class VllmConfig(Frozen):
    """vLLM, in a virtual environment of its own: `make vllm` installs it."""

    python: str = ""
    """Its interpreter. Empty: `.venv-vllm/bin/python` beside the virtual environment that Spin runs in."""

    dtype: Literal["model", "float32", "bfloat16", "float16"] = "model"
    """Precision in which it computes; `model` is `model.dtype`."""

    quantization: str = ""
    """A method that vLLM knows (`fp8`, `bitsandbytes`, …). The opponent's answers are then the rounded model's, while
    scores and training take the weights as they are. Empty: none beyond what the model's own configuration says."""

    adapters: Literal["merge", "apply"] = "merge"
    """For versions that stack adapters: merge them into a copy of the weights in a temporary folder, the very weights
    that scores and training see; or let vLLM apply them beside θ_0's, which takes no space on disk."""

    max_length: PositiveInt | None = None
    """Longest prompt and answer together, in tokens; None takes the model's own context. A lower one needs less memory
    to start."""

    speed: VllmSpeedConfig = VllmSpeedConfig()
    """What it may take of the machine."""


class OpponentsConfig(Frozen):
    """Which versions answer in an iteration. What the player starts from and is measured against stays θ_t."""

    kind: Literal["current", "mixture", "best"] = "current"
    """`current`: θ_t. `mixture`: each prompt is answered by one of θ_t and the versions that it came from, by its seed
    (arXiv 2404.04291). `best`: the version that is best so far by `evaluate.main_metric`."""

    history: PositiveInt = 3
    """`mixture`: how many versions, θ_t among them."""


class RayConfig(Frozen):
    """Workers on a Ray cluster whose machines see the runs folder under the same path."""

    address: str
    """Of the cluster: `auto` on one of its machines, else `ray://HOST:10001`."""

    workers: PositiveInt = 1
    """How many workers run there."""

    gpus: NonNegativeFloat = 1.0
    """GPUs of each worker. 0 on a cluster without any; as many as `vllm.speed.tensor_parallel` where that is more."""


class GenerateSpeedConfig(Frozen):
    """Who generates. Nothing here changes what is said, but for rounding where devices or threads differ."""

    workers: Annotated[int, Field(ge=0)] = 1
    """Processes on this machine, one a device; on a CPU they share the cores. 0: it only waits for workers elsewhere,
    which join with `python -m spin_core.shards JOB`."""

    ray: RayConfig | None = None
    """Workers on a Ray cluster too (extra `ray`); None starts none."""


class GenerateConfig(Frozen):
    """How the opponent answers."""

    opponents: OpponentsConfig = OpponentsConfig()
    """Who answers."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What runs the model; `auto` is vLLM where there is a GPU and its environment, and else transformers."""

    temperature: Schedule[PositiveFloat] = 1.0
    """Sampling temperature. The theory holds for samples of the opponent itself, which is 1."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with so much probability; 1 takes all."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the so many likeliest tokens; 0 takes all."""

    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Leave out tokens less likely than so many times the likeliest; 0 takes all. It cuts before top_k and top_p."""

    repetition_penalty: PositiveFloat = 1.0
    """Divide the logits of tokens that the prompt or the answer has already by this (multiply negative ones)."""

    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer, which keeps the tokens up to the one that completes such a text."""

    stop_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Token ids that end an answer, beside those of the chat format."""

    answers: PositiveInt = 1
    """Answers to each prompt, each with a seed of its own."""

    max_new_tokens: PositiveInt = 256
    """Longest response in tokens, on both sides: a human response is cut to it too."""

    batch_size: PositiveInt = 32
    """Prompts answered at a time by transformers; vLLM has `vllm.speed.batch_size`."""

    vllm: VllmConfig = VllmConfig()
    """How vLLM runs."""

    shard_size: PositiveInt = 512
    """Prompts in a shard. A shard is published whole, so a worker that is killed loses at most one."""

    speed: GenerateSpeedConfig = GenerateSpeedConfig()
    """Who generates."""


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
    """Compile the layers with torch.compile. It takes half a minute, and on a CPU gains nothing for large models."""

    attention: Literal["sdpa", "flex"] = "sdpa"
    """Kernel of packed attention: SDPA on gathered sequences, or FlexAttention (a GPU alone)."""

    prefetch: bool = True
    """Lay out the next step's tensors while the present one computes."""

    ranks: PositiveInt = 1
    """Processes on each node, one a device."""

    nodes: PositiveInt = 1
    """Machines that train together."""

    rendezvous: str = ""
    """`host:port` of the first node, where the others meet it; needed for more than one node. On node i, start
    `SPIN_NODE_RANK=i python -m spin_core.train JOB`, with the job file that the first node's log names."""

    deepspeed: str = ""
    """A DeepSpeed configuration: `zero0` to `zero3`, `zero2-offload`, `zero3-offload`, or a JSON file of your own.
    Empty: none on one device, `zero2` on several."""

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

    micro_batch_tokens: PositiveInt = 16384
    """Tokens, all responses and padding counted, in one forward and backward pass; a batch is split to fit."""

    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSProp is the paper's choice."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""

    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""

    warmup: Fraction = 0.1
    """The part of the steps in which the learning rate rises from zero."""

    max_grad_norm: NonNegativeFloat = 1.0
    """Clip the gradient to this norm; 0 leaves it alone."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""

    lora: LoraConfig | None = None
    """Train adapters of low rank; None trains all weights."""

    speed: SpeedConfig = SpeedConfig()
    """How the same numbers are reached."""

    save_every: PositiveInt = 100
    """Steps between checkpoints. A kill costs at most so many steps."""

    keep_checkpoints: PositiveInt = 2
    """How many checkpoints stay."""

    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Part of the prompts whose pairs are kept out of training, the same in all iterations, to measure the loss on."""

    evaluate_every: PositiveInt = 50
    """Steps between two measurements on the held-out pairs; the last step is measured in any case."""

    keep_best: Literal["", "loss", "rewards/accuracies", "rewards/margins", "logps/real"] = ""
    """Publish the weights that were best by this metric on the held-out pairs; empty publishes the last."""

    monitors: MonitorsConfig = MonitorsConfig()
    """What is watched, and what is done when it fires."""

    first_loss_tolerance: PositiveFloat = 1e-3
    """How far the first loss may be from log 2 in float32 before the run stops; bfloat16 allows 20 times as much."""

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


class LmEvalConfig(Frozen):
    """Benchmarks run by lm-eval."""

    tasks: tuple[str, ...] = ()
    """lm-eval's names: `arc_challenge`, `hellaswag`, … Empty runs none."""

    local_data: Path | None = None
    """A folder with the tasks' rows as JSONL; None fetches them from the hub."""

    limit: PositiveInt | None = None
    """A seeded subset of so many items a task; None takes all."""

    num_fewshot: int | None = None
    """Examples in the prompt; None is each task's own number."""

    batch_size: PositiveInt = 16
    """Items a forward pass."""

    apply_chat_template: bool = False
    """Wrap each item in the model's chat template."""


class EvaluateConfig(Frozen):
    """How every model version is scored."""

    lm_eval: LmEvalConfig = LmEvalConfig()
    """Benchmarks."""

    self_play: bool = True
    """Diagnostics of the game on held-out prompts."""

    exact: bool = False
    """Exact distance to p_data, for sources whose distribution is known (the demo's)."""

    temperature: PositiveFloat = 1.0
    """The temperature at which versions answer here: the one at which the model will be used."""

    main_metric: str = "heldout_nll"
    """The score that the gate and the leaderboard's plot look at."""

    headline: tuple[str, ...] = ("heldout_nll", "reward_accuracy", "length_classifier", "repeated_trigrams")
    """The scores that the terminal's leaderboard shows beside the main metric and the benchmarks."""

    batch_size: PositiveInt = 64
    """Rows a forward pass."""


class GateConfig(Frozen):
    """Whether θ_{t+1} becomes the next opponent."""

    rule: Literal["always", "stop", "best"] = "stop"
    """When the main metric falls: promote the player always, stop, or play on from the best version so far."""

    tolerance: NonNegativeFloat = 2.0
    """How many standard errors a fall may measure before it counts."""


class DpoConfig(Frozen):
    """DPO of θ_0 on preference data, by the player's optimizer and batch."""

    source: SourceConfig
    """Where the preferences come from: rows with `chosen` and `rejected`, and perhaps `prompt` or `conversations`."""

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


class RunConfig(Frozen):
    """A complete run. A recipe is a named value of this."""

    recipe: str
    """The recipe that this configuration began as."""

    iterations: PositiveInt = 3
    """How many iterations of the game to play."""

    seed: int = 0
    """The seed that every other seed comes from."""

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

    controls: ControlsConfig = ControlsConfig()
    """Comparisons."""

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
