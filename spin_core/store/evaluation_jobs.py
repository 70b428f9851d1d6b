"""The jobs of the phases that score a version. The other jobs are in `jobs`."""

from pathlib import Path
from typing import ClassVar, Literal

from spin_core.config.base import Execution, Frozen
from spin_core.config.evaluate import EvaluateConfig, JudgeConfig, MtBenchConfig
from spin_core.config.generate import GenerateConfig, VllmConfig, devices_of_engine
from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.store.jobs import Job, title_of
from spin_core.store.records import EvalReport, ModelVersion, PromptSet


class SuiteJob(Job):
    """Base of the jobs that score a version. Their outputs are in its folder `eval`, by suite."""

    model: ModelConfig
    player: ModelVersion
    """The version."""

    @property
    def title(self) -> str:
        return title_of(self.output.parents[1], f"evaluate {self.output.name}")

    @property
    def loaded_model(self) -> ModelConfig:
        return self.model


class EvaluateSpeed(Frozen):
    """Where existing results are found."""

    scores: Path | None = None
    """The folder of reports that lineages share: those of versions without an opponent, like θ_0. None: no sharing."""


class EvaluateJob(SuiteJob):
    """Answer and score the held-out prompts."""

    phase: Literal["evaluate"] = "evaluate"
    version: int = 4
    config: EvaluateConfig
    generate: GenerateConfig
    prompts: PromptSet
    opponent: EvalReport | None
    """The report of the version that the player was trained from, for rewards against it; None for θ_0."""
    speed: Execution[EvaluateSpeed] = EvaluateSpeed()

    @property
    def devices(self) -> int:
        return 1


class FrontierConfig(Frozen):
    """What is measured at which temperatures."""

    temperatures: tuple[float, ...]
    """In rising order."""
    reference: Path | None = None
    """The folder of the model that scores answers."""


class FrontierSpeed(Frozen):
    """How the network runs, and where existing results are found."""

    batch_size: int
    scores: Path | None = None
    """The folder of reports that lineages share: those of θ_0. None: no sharing."""


class FrontierJob(SuiteJob):
    """Measure one model at several temperatures, on the two axes of a frontier."""

    phase: Literal["frontier"] = "frontier"
    version: int = 1
    config: FrontierConfig
    prompts: PromptSet
    generate: GenerateConfig | None = None
    """How the model answers, apart from the temperature; None where the distance to p_data is known instead."""
    speed: Execution[FrontierSpeed]

    @property
    def devices(self) -> int:
        return 1


class BenchmarkTask(Frozen):
    """A task of lm-eval, or a group of them."""

    name: str
    """lm-eval's name for it."""
    num_fewshot: int | None = None
    """Examples in the prompt; None takes the task's default."""
    limit: int | None = None
    """A seeded subset of this many items of each task; None takes all."""
    metric: str = ""
    """The metric and filter whose score has the task's name, like `acc,none`. Empty: acc_norm, or else the first."""
    score: str = ""
    """The name of this score; empty is the task's. A quick suite's score has another name than that of all items."""

    @property
    def title(self) -> str:
        """The name of its score."""
        return self.score or self.name

    def part(self, name: str) -> str:
        """The name of the score of one task of a group."""
        return f"{self.score}{name.removeprefix(self.name)}" if self.score else name


class BenchmarkSpeed(Frozen):
    """How the tasks run, and where existing results are found."""

    batch_size: int | Literal["auto"]
    scores: Path
    """The folder of the results of single tasks."""


class BenchmarkConfig(Frozen):
    """What lm-eval does."""

    suite: str
    """The name of the suite, and of its average."""
    tasks: tuple[BenchmarkTask, ...]
    local_data: Path | None = None
    apply_chat_template: bool | None = False
    """None applies it if the model has one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmConfig = VllmConfig()
    speed: Execution[BenchmarkSpeed]


class MtBenchSpeed(Frozen):
    """Where existing answers are found."""

    answers: Path
    """The folder of all models' answers, which do not depend on the judge."""


class MtBenchJob(SuiteJob):
    """Answer MT-Bench's questions and have a judge grade the answers, and compare them with others' if configured."""

    engine_in: ClassVar[str] = "generate"

    phase: Literal["mt_bench"] = "mt_bench"
    version: int = 2
    suite: Literal["mt-bench", "mt-bench-quick"]
    config: MtBenchConfig
    judge: JudgeConfig
    generate: GenerateConfig
    """The engine, and how held-out prompts are answered: MT-Bench has its own temperatures and length."""
    chat: ChatConfig
    previous: EvalReport | None = None
    """This suite's report on the version that the player was trained from, if the two are compared."""
    base: EvalReport | None = None
    """This suite's report on θ_0, if the two are compared."""
    prompts: PromptSet | None = None
    """The held-out prompts, if answers are compared with the human responses."""
    speed: Execution[MtBenchSpeed]

    @property
    def devices(self) -> int:
        return devices_of_engine(self.generate.engine, self.generate.vllm)


class BenchmarkJob(SuiteJob):
    """Run a suite of lm-eval's tasks on one model."""

    engine_in: ClassVar[str] = "config"
    engine_setting: ClassVar[str] = "evaluate.lm_eval.engine"

    phase: Literal["benchmark"] = "benchmark"
    version: int = 3
    config: BenchmarkConfig

    @property
    def devices(self) -> int:
        return devices_of_engine(self.config.engine, self.config.vllm)
