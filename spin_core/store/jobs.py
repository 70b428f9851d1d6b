"""What each phase is asked to do. A job file is one of these as JSON.

A job holds all that its result depends on and nothing more: schedules are resolved to iteration t, inputs are records
with digests. Light to import, so that flows and tasks can write jobs without loading torch.
"""

from pathlib import Path
from typing import Literal

from spin_core.config.base import Execution, Frozen
from spin_core.config.data import PairsConfig, PromptsConfig, SourceConfig
from spin_core.config.evaluate import EvaluateConfig, JudgeConfig, MtBenchConfig
from spin_core.config.generate import GenerateConfig, VllmConfig
from spin_core.config.model import ChatConfig, ModelConfig, SftConfig
from spin_core.config.train import SpeedConfig, TrainConfig
from spin_core.store.records import EvalReport, GenerationBatch, ModelVersion, PairDataset, PromptSet, ScoredPairs


class Job(Frozen):
    """Base of all jobs."""

    phase: str
    """The module that does it: `python -m spin_core.phases.<phase> job.json`."""

    version: int
    """Raised when a phase's code comes to give another result, so that old results are not taken for new ones."""

    output: Execution[Path]
    """The folder to publish."""

    seed: int = 0


def job_type(phase: str) -> type[Job] | None:
    """The class of the jobs of a phase; None if there is no such phase."""
    return next((kind for kind in Job.__subclasses__() if kind.model_fields["phase"].default == phase), None)


class BaseJob(Job):
    """Bring in a model and its tokenizer from a folder or the hub, or make a fresh one of the `sft` shape."""

    phase: Literal["base"] = "base"
    version: int = 1
    model: ModelConfig
    sft: SftConfig | None
    chat: ChatConfig


class PromptsJob(Job):
    """Read, split and tokenise the SFT data."""

    phase: Literal["prompts"] = "prompts"
    version: int = 1
    config: PromptsConfig
    chat: ChatConfig
    tokenizer: ModelVersion
    max_new_tokens: int
    """Both sides are capped alike: human responses are cut here, the opponent's in generation."""
    trust_remote_code: bool = False
    """Whether a tokenizer that brings its own code may run it."""


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
    """Whether a tokenizer that brings its own code may run it."""


class GenerateJob(Job):
    """Let the opponent answer the training prompts."""

    phase: Literal["generate"] = "generate"
    version: int = 1
    t: int
    config: GenerateConfig
    model: ModelConfig
    opponent: ModelVersion
    prompts: PromptSet
    answerers: tuple[ModelVersion, ...] = ()
    """Who answers, where it is not the opponent alone: each prompt gets one of them."""


class PairsJob(Job):
    """D_t: this iteration's pairs, with hygiene, joined with the previous iteration's."""

    phase: Literal["pairs"] = "pairs"
    version: int = 1
    t: int
    config: PairsConfig
    prompts: PromptSet
    generations: GenerationBatch
    previous: GenerationBatch | None
    initial: GenerationBatch | None = None
    """θ_0's answers, for an objective that reads them too."""


class ScoreJob(Job):
    """The opponent's log-probabilities of every pair, once an iteration."""

    phase: Literal["score"] = "score"
    version: int = 1
    t: int
    model: ModelConfig
    opponent: ModelVersion
    pairs: PairDataset
    micro_batch_tokens: Execution[int]
    speed: Execution[SpeedConfig] = SpeedConfig()
    base: ModelVersion | None = None
    """θ_0, where the reference is anchored in it: the pairs are scored under it too."""


class TrainJob(Job):
    """θ_{t+1} from θ_t. Publishes the metrics to `output` and the weights to `weights`."""

    phase: Literal["train"] = "train"
    version: int = 1
    t: int
    """The iteration. The model that comes out is version t + 1."""
    config: TrainConfig
    model: ModelConfig
    start: ModelVersion
    weights: Execution[Path]
    pairs: PairDataset | None = None
    scores: ScoredPairs | None = None
    prompts: PromptSet | None = None
    """The SFT data, when the loss is `sft`."""
    steps: int | None = None
    """Train for exactly so many steps, whatever `config.epochs` says."""
    tokens: int | None = None
    """Train for as many steps as come nearest to so many tokens of prompts and responses, whatever the epochs."""
    share: float | None = None
    """Train on the items of about this share of the prompts alone; a smaller share lies within a larger one."""
    held_out_seed: int = 0
    """Chooses the prompts that are held out. One for all iterations, so that what one holds out none trains on."""


class EvaluateSpeed(Frozen):
    """Where what is known already is found."""

    scores: Path | None = None
    """The folder of reports that lineages share: those of versions without an opponent, as θ_0 is. None shares none."""


class EvaluateJob(Job):
    """Answer and score the held-out prompts."""

    phase: Literal["evaluate"] = "evaluate"
    version: int = 4
    config: EvaluateConfig
    generate: GenerateConfig
    model: ModelConfig
    player: ModelVersion
    prompts: PromptSet
    opponent: EvalReport | None
    """The report of the version that the player was trained from, for rewards against it; None for θ_0."""
    speed: Execution[EvaluateSpeed] = EvaluateSpeed()


class BenchmarkTask(Frozen):
    """A task of lm-eval, or a group of them."""

    name: str
    """lm-eval's name for it."""
    num_fewshot: int | None = None
    """Examples in the prompt; None is the task's own number."""
    limit: int | None = None
    """A seeded subset of so many items of each task; None takes all."""
    metric: str = ""
    """The metric and filter whose score bears the task's name, `acc,none`. Empty: acc_norm, or else the first."""
    score: str = ""
    """The name that this score bears; empty is the task's. A quick suite has its own, beside that of all items."""

    @property
    def title(self) -> str:
        """The name of its score."""
        return self.score or self.name

    def part(self, name: str) -> str:
        """The name of the score of one task of a group."""
        return f"{self.score}{name.removeprefix(self.name)}" if self.score else name


class BenchmarkSpeed(Frozen):
    """How the tasks are run, and where what is known already is found."""

    batch_size: int | Literal["auto"]
    scores: Path
    """The folder of single tasks' results."""


class BenchmarkConfig(Frozen):
    """What lm-eval is to do."""

    suite: str
    """The name of the suite, and of its average."""
    tasks: tuple[BenchmarkTask, ...]
    local_data: Path | None = None
    apply_chat_template: bool | None = False
    """None: if the model has one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmConfig = VllmConfig()
    speed: Execution[BenchmarkSpeed]


class MtBenchSpeed(Frozen):
    """Where answers that were given already are found."""

    answers: Path
    """The folder of all models' answers. The judge has no part in them."""


class MtBenchJob(Job):
    """Answer MT-Bench's questions and have a judge grade the answers, and compare them with others' if asked for."""

    phase: Literal["mt_bench"] = "mt_bench"
    version: int = 2
    suite: Literal["mt-bench", "mt-bench-quick"]
    config: MtBenchConfig
    judge: JudgeConfig
    generate: GenerateConfig
    """The engine, and how held-out prompts are answered: MT-Bench has temperatures and a length of its own."""
    model: ModelConfig
    chat: ChatConfig
    player: ModelVersion
    previous: EvalReport | None = None
    """This suite's report on the version that the player was trained from, where the two are to be compared."""
    base: EvalReport | None = None
    """That on θ_0."""
    prompts: PromptSet | None = None
    """The held-out prompts, where answers are to be compared with the human responses."""
    speed: Execution[MtBenchSpeed]


class BenchmarkJob(Job):
    """Run a suite of lm-eval's tasks on one model."""

    phase: Literal["benchmark"] = "benchmark"
    version: int = 3
    config: BenchmarkConfig
    model: ModelConfig
    player: ModelVersion
