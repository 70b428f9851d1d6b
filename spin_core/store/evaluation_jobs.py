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
    """Where what is known already is found."""

    scores: Path | None = None
    """The folder of reports that lineages share: those of versions without an opponent, as θ_0 is. None shares none."""


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


class MtBenchJob(SuiteJob):
    """Answer MT-Bench's questions and have a judge grade the answers, and compare them with others' if asked for."""

    engine_in: ClassVar[str] = "generate"

    phase: Literal["mt_bench"] = "mt_bench"
    version: int = 2
    suite: Literal["mt-bench", "mt-bench-quick"]
    config: MtBenchConfig
    judge: JudgeConfig
    generate: GenerateConfig
    """The engine, and how held-out prompts are answered: MT-Bench has temperatures and a length of its own."""
    chat: ChatConfig
    previous: EvalReport | None = None
    """This suite's report on the version that the player was trained from, where the two are to be compared."""
    base: EvalReport | None = None
    """That on θ_0."""
    prompts: PromptSet | None = None
    """The held-out prompts, where answers are to be compared with the human responses."""
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
