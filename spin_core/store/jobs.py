"""The jobs of the phases. A job file is one of these as JSON.

A job holds all that its result depends on and nothing more: schedules are resolved to iteration t, inputs are records
with digests. This module is fast to import, so that flows and tasks can write jobs without loading torch.
"""

from pathlib import Path
from typing import ClassVar, Literal

from spin_core.config.base import Execution, Frozen
from spin_core.config.data import PairsConfig, PromptsConfig, SourceConfig
from spin_core.config.generate import GenerateConfig, devices_of_engine
from spin_core.config.model import ChatConfig, ModelConfig, SftConfig
from spin_core.config.train import SpeedConfig, TrainConfig
from spin_core.store.records import GenerationBatch, ModelVersion, PairDataset, PromptSet, ScoredPairs

CHECKPOINT_FACTOR = 6
"""A training's checkpoint in bytes, divided by those of its weights, at most (bfloat16 weights, AdamW)."""


class Job(Frozen):
    """Base of all jobs, with what the runtime needs to know about each; subclasses override what differs."""

    engine_in: ClassVar[str] = ""
    """The field whose `engine` and `vllm` choose what runs the model; empty for a phase without this choice."""

    engine_setting: ClassVar[str] = "generate.engine"
    """The user's setting that chooses this engine, for messages."""

    less_memory: ClassVar[str] = ""
    """How a user reduces the phase's memory, for messages; empty if no setting does."""

    phase: str
    """The module that runs the job: `python -m spin_core.phases.<phase> job.json`."""

    version: int
    """Increased when a phase's code gives another result, so that old results are not taken for new ones."""

    output: Execution[Path]
    """The folder to publish."""

    seed: int = 0

    @property
    def title(self) -> str:
        """The job's name in progress displays: `iter 01 · train`. The folder is named after the job's purpose."""
        return title_of(self.output.parent, self.output.name)

    @property
    def loaded_model(self) -> ModelConfig | None:
        """How the phase loads its model; None if it loads none."""
        return None

    @property
    def rank_settings(self) -> SpeedConfig | None:
        """How the job's ranks are started; None for one process without DeepSpeed."""
        return None

    @property
    def devices(self) -> int | None:
        """How many devices the job occupies; None for one for each rank."""
        return 0

    def bytes_to_save(self) -> int:
        """How much the phase may have to write after it is asked to stop, in bytes, at most."""
        return 0


def title_of(folder: Path, action: str) -> str:
    return f"{folder.name.replace('_', ' ')} · {action}"


class BaseJob(Job):
    """Bring in a model and its tokenizer from a folder or the hub, or make an untrained one of the size in `sft`."""

    phase: Literal["base"] = "base"
    version: int = 1
    model: ModelConfig
    sft: SftConfig | None
    chat: ChatConfig

    @property
    def title(self) -> str:
        return f"sft · {self.output.name}" if self.sft else super().title

    @property
    def loaded_model(self) -> ModelConfig:
        return self.model


class PromptsJob(Job):
    """Read, split and tokenise the SFT data."""

    phase: Literal["prompts"] = "prompts"
    version: int = 1
    config: PromptsConfig
    chat: ChatConfig
    tokenizer: ModelVersion
    max_new_tokens: int
    """The limit of both sides: human responses are cut here, the opponent's in generation."""
    trust_remote_code: bool = False
    """Whether a tokenizer may run code that comes with it."""


class PreferencesJob(Job):
    """Read and tokenise preference data, as pairs whose real response is the chosen one."""

    phase: Literal["preferences"] = "preferences"
    version: int = 1
    source: SourceConfig
    columns: dict[str, str]
    sample: int | None
    chat: ChatConfig
    tokenizer: ModelVersion
    prompts: PromptSet
    """The SFT data: preferences about its held-out prompts are left out."""
    max_prompt_tokens: int
    max_new_tokens: int
    trust_remote_code: bool = False
    """Whether a tokenizer may run code that comes with it."""


class GenerateJob(Job):
    """Let the opponent answer the training prompts."""

    engine_in: ClassVar[str] = "config"

    phase: Literal["generate"] = "generate"
    version: int = 1
    t: int
    config: GenerateConfig
    model: ModelConfig
    opponent: ModelVersion
    prompts: PromptSet
    answerers: tuple[ModelVersion, ...] = ()
    """The versions that answer, if not only the opponent: each prompt is answered by one of them."""

    @property
    def loaded_model(self) -> ModelConfig:
        return self.model

    @property
    def devices(self) -> int:
        speed = self.config.speed
        workers = speed.workers + (speed.ray.workers if speed.ray else 0)
        return max(1, workers) * devices_of_engine(self.config.engine, self.config.vllm)


class PairsJob(Job):
    """D_t: this iteration's pairs, filtered, together with the previous iteration's."""

    phase: Literal["pairs"] = "pairs"
    version: int = 1
    t: int
    config: PairsConfig
    prompts: PromptSet
    generations: GenerationBatch
    previous: GenerationBatch | None
    initial: GenerationBatch | None = None
    """θ_0's answers, for a loss that uses them too."""


class ScoreJob(Job):
    """The opponent's log-probabilities of every pair, once for each iteration."""

    less_memory: ClassVar[str] = "lower train.micro_batch_tokens"

    phase: Literal["score"] = "score"
    version: int = 1
    t: int
    model: ModelConfig
    opponent: ModelVersion
    pairs: PairDataset
    micro_batch_tokens: Execution[int | Literal["auto"]]
    speed: Execution[SpeedConfig] = SpeedConfig()
    base: ModelVersion | None = None
    """θ_0, if the reference contains it (`train.anchor`): the pairs are scored with it too."""

    @property
    def loaded_model(self) -> ModelConfig:
        return self.model

    @property
    def rank_settings(self) -> SpeedConfig | None:
        """The ranks of this node. Only results are gathered from ranks, so DeepSpeed is not needed."""
        if self.speed.ranks == 1:
            return None
        return self.speed.model_copy(update={"nodes": 1, "rendezvous": "", "deepspeed": ""})

    @property
    def devices(self) -> None:
        return None


class TrainJob(Job):
    """θ_{t+1} from θ_t. Publishes the metrics to `output` and the weights to `weights`."""

    less_memory: ClassVar[str] = "lower train.micro_batch_tokens or set train.gradient_checkpointing"

    phase: Literal["train"] = "train"
    version: int = 1
    t: int
    """The iteration. The result is version t + 1."""
    config: TrainConfig
    model: ModelConfig
    start: ModelVersion
    weights: Execution[Path]
    pairs: PairDataset | None = None
    scores: ScoredPairs | None = None
    prompts: PromptSet | None = None
    """The SFT data, when the loss is `sft`."""
    steps: int | None = None
    """Train for exactly this many steps, regardless of `config.epochs`."""
    tokens: int | None = None
    """Train for the number of steps that comes nearest to this many tokens of prompts and responses, regardless of
    `config.epochs`."""
    share: float | None = None
    """Train only on about this share of the prompts; a larger share contains all prompts of a smaller one."""
    held_out_seed: int = 0
    """Chooses the prompts that are held out. It is the same in all iterations, so that no iteration trains on them."""

    @property
    def loaded_model(self) -> ModelConfig:
        return self.model

    @property
    def rank_settings(self) -> SpeedConfig | None:
        return self.config.speed if self.config.speed.distributed else None

    @property
    def devices(self) -> None:
        return None

    @property
    def title(self) -> str:
        return f"sft · {self.output.name}" if self.t < 0 else super().title

    def bytes_to_save(self) -> int:
        """A checkpoint, which holds the optimizer's state in addition to the weights."""
        return CHECKPOINT_FACTOR * sum(file.stat().st_size for file in self.start.path.rglob("*.safetensors"))
