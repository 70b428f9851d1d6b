"""The jobs that score a version of a lineage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spin_core.config.evaluate import EvaluateSpeedConfig, JudgeConfig, LmEvalConfig, MtBenchConfig
from spin_core.config.generate import VllmConfig
from spin_core.errors import ConfigError
from spin_core.runtime import interpreter
from spin_core.store.evaluation_jobs import (
    BenchmarkConfig,
    BenchmarkJob,
    BenchmarkSpeed,
    BenchmarkTask,
    EvaluateJob,
    EvaluateSpeed,
    MtBenchJob,
    MtBenchSpeed,
)
from spin_core.store.records import EvalReport, ModelVersion, PromptSet

if TYPE_CHECKING:
    from spin_core.lineage.lineage import Lineage
from spin_core.evaluation.suites import QUICK, benchmarks, mt_bench_suites

SCORES = ".scores"
"""Below the runs folder: what single tasks of lm-eval gave, by model, task and settings, and θ_0's diagnostics.
Lineages share it."""

ANSWERS = ".answers"
"""Below the runs folder: what models answered to MT-Bench's questions, by model and sampling. Lineages share it."""


def evaluate_jobs(
    game: "Lineage",
    player: ModelVersion,
    prompts: PromptSet | None,
    opponent: EvalReport | None,
    folder: Path | None = None,
    temperature: float | None = None,
    against: Sequence[EvalReport] = (),
) -> list[EvaluateJob | BenchmarkJob | MtBenchJob]:
    """Every suite that the configuration asks for, on one model. `against` are all reports on its opponent.

    With a `temperature` the model is scored as it samples then, and suites that do not sample are left out.
    """
    is_base = folder is None and player.t == 0
    folder, config = folder or game.eval_folder(player.t), game.config.evaluate
    jobs: list[EvaluateJob | BenchmarkJob | MtBenchJob] = []
    if config.self_play or config.exact:
        assert prompts is not None, "self-play is about held-out prompts"
        jobs.append(self_play_job(game, player, prompts, opponent, folder / "self-play", temperature))
    if temperature is None:
        jobs += [benchmark_job(game, player, suite, tasks, folder / suite) for suite, tasks in benchmarks(config)]
        others = {} if is_base else {"previous": against, "base": game.reports(0)}
        jobs += [mt_bench_job(game, player, prompts, others, folder / suite) for suite in mt_bench_suites(config)]
    return jobs


def self_play_job(
    game: "Lineage",
    player: ModelVersion,
    prompts: PromptSet,
    opponent: EvalReport | None,
    output: Path,
    temperature: float | None,
) -> EvaluateJob:
    """The diagnostics on held-out prompts."""
    config, generate = game.config.evaluate, game.config.generate
    others = {
        "suites": (),
        "lm_eval": LmEvalConfig(),
        "mt_bench": MtBenchConfig(),
        "judge": JudgeConfig(),
        "main_metric": "",
        "headline": (),
        "speed": EvaluateSpeedConfig(),
    }
    # The model that scores both sides is loaded, and answers too.
    asked = {"temperature": temperature or config.temperature, "engine": "transformers", "vllm": VllmConfig()}
    return EvaluateJob(
        output=output,
        seed=game.config.seed,
        config=config.model_copy(update=others),
        generate=generate.model_copy(update=asked),
        model=game.config.model,
        player=player,
        prompts=prompts,
        opponent=opponent,
        speed=EvaluateSpeed(scores=game.runs / SCORES),
    )


def benchmark_job(
    game: "Lineage", player: ModelVersion, suite: str, tasks: tuple[BenchmarkTask, ...], output: Path
) -> BenchmarkJob:
    """A suite of lm-eval's. Lineages of any seed are asked the same items, so that they can be compared."""
    config, vllm = game.config.evaluate.lm_eval, game.config.generate.vllm
    on_vllm = config.engine == "vllm"
    return BenchmarkJob(
        output=output,
        config=BenchmarkConfig(
            suite=suite,
            tasks=tasks,
            local_data=config.local_data,
            apply_chat_template=with_template(suite, config),
            engine=config.engine,
            # Weights are scored as they are: neither rounded nor in another precision than the game's.
            vllm=VllmConfig(python=vllm.python, max_length=vllm.max_length, speed=vllm.speed)
            if on_vllm
            else VllmConfig(),
            speed=BenchmarkSpeed(batch_size=config.batch_size, scores=game.runs / SCORES),
        ),
        model=game.config.model,
        player=player,
    )


def with_template(suite: str, config: LmEvalConfig) -> bool | None:
    """Whether a suite's items are wrapped in the chat template; None if that is up to the model.

    The paper's suites are asked without. IFEval is about what a chat model does that it is told to do.
    """
    if config.apply_chat_template is None and suite.removesuffix(QUICK) != "instruct":
        return False
    return config.apply_chat_template


def mt_bench_job(
    game: "Lineage",
    player: ModelVersion,
    prompts: PromptSet | None,
    others: Mapping[str, Sequence[EvalReport]],
    output: Path,
) -> MtBenchJob:
    """MT-Bench, with comparisons. `others` are the reports on whom there is to be compared with.

    `ConfigError` if a report that is asked for is not there.
    """
    config, generate = game.config.evaluate, game.config.generate
    pairwise = config.mt_bench.pairwise

    def report_on(name: Literal["previous", "base"]) -> EvalReport | None:
        if name not in pairwise or name not in others:
            return None
        for report in others[name]:
            if report.suite == output.name:
                return report
        raise ConfigError(
            f"evaluate.mt_bench.pairwise names {name}, and there is no report on that version by {output.name}: score "
            f"it first, or take {name} out"
        )

    return MtBenchJob(
        output=output,
        suite="mt-bench-quick" if output.name.endswith(QUICK) else "mt-bench",
        config=config.mt_bench,
        judge=config.judge,
        generate=generate.model_copy(
            update={
                "temperature": config.temperature,
                "engine": interpreter.chosen(generate, game.config.model, output),
            }
        ),
        model=game.config.model,
        chat=game.config.chat,
        player=player,
        previous=report_on("previous"),
        base=report_on("base"),
        prompts=prompts if "human" in pairwise else None,
        speed=MtBenchSpeed(answers=game.runs / ANSWERS),
    )
