"""The jobs that score a version of a lineage, one for each suite that the configuration names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from spin_core.config.base import at_iteration
from spin_core.config.evaluate import EvaluateSpeedConfig, JudgeConfig, LmEvalConfig, MtBenchConfig
from spin_core.config.generate import VllmConfig
from spin_core.errors import ConfigError
from spin_core.evaluation.suites import FRONTIER, QUICK, benchmarks, mt_bench_suites
from spin_core.lineage.lineage import Lineage
from spin_core.runtime import interpreter
from spin_core.store.evaluation_jobs import (
    BenchmarkConfig,
    BenchmarkJob,
    BenchmarkSpeed,
    BenchmarkTask,
    EvaluateJob,
    EvaluateSpeed,
    FrontierConfig,
    FrontierJob,
    FrontierSpeed,
    MtBenchJob,
    MtBenchSpeed,
    SuiteJob,
)
from spin_core.store.records import EvalReport, ModelVersion, PromptSet

SCORES = ".scores"
"""Below the runs folder, shared by lineages: scores of single tasks of lm-eval, by model, task and settings, and the
self-play diagnostics of θ_0."""

ANSWERS = ".answers"
"""Below the runs folder, shared by lineages: answers to MT-Bench's questions, by model and sampling."""


def evaluate_jobs(
    lineage: Lineage,
    player: ModelVersion,
    prompts: PromptSet | None,
    opponent: EvalReport | None,
    folder: Path | None = None,
    temperature: float | None = None,
    against: Sequence[EvalReport] = (),
) -> list[SuiteJob]:
    """The jobs of all suites in the configuration, for one model.

    Args:
        lineage: The lineage.
        player: The model to score.
        prompts: The SFT data; not needed without self-play scores.
        opponent: The self-play report on the model's opponent, if it has one.
        folder: The folder for the reports; by default the version's own.
        temperature: The sampling temperature, if not the configured one. Suites that do not sample are left out then.
        against: All reports on the model's opponent.
    """
    is_base = folder is None and player.t == 0
    folder, config = folder or lineage.eval_folder(player.t), lineage.config.evaluate
    jobs: list[SuiteJob] = []
    if config.self_play or config.exact:
        assert prompts is not None, "self-play scores held-out prompts"
        jobs.append(self_play_job(lineage, player, prompts, opponent, folder / "self-play", temperature))
    if temperature is None and config.frontier:
        assert prompts is not None, "a frontier is measured on held-out prompts"
        jobs.append(frontier_job(lineage, player, prompts, folder / FRONTIER, share=is_base))
    if temperature is None:
        jobs += [benchmark_job(lineage, player, suite, tasks, folder / suite) for suite, tasks in benchmarks(config)]
        others = {} if is_base else {"previous": against, "base": lineage.reports(0)}
        jobs += [mt_bench_job(lineage, player, prompts, others, folder / suite) for suite in mt_bench_suites(config)]
    return jobs


def self_play_job(
    lineage: Lineage,
    player: ModelVersion,
    prompts: PromptSet,
    opponent: EvalReport | None,
    output: Path,
    temperature: float | None,
) -> EvaluateJob:
    """The diagnostics on held-out prompts."""
    config, generate = lineage.config.evaluate, lineage.config.generate
    # Settings of other suites are left out of the identity, so that changing them keeps these scores.
    unused = {
        "suites": (),
        "lm_eval": LmEvalConfig(),
        "mt_bench": MtBenchConfig(),
        "judge": JudgeConfig(),
        "main_metric": "",
        "headline": (),
        "speed": EvaluateSpeedConfig(),
    }
    # The scores of both sides need the loaded model anyway, so it also answers.
    sampling = {"temperature": temperature or config.temperature, "engine": "transformers", "vllm": VllmConfig()}
    return EvaluateJob(
        output=output,
        seed=lineage.config.seed,
        config=config.model_copy(update=unused),
        generate=generate.model_copy(update=sampling),
        model=lineage.config.model,
        player=player,
        prompts=prompts,
        opponent=opponent,
        speed=EvaluateSpeed(scores=lineage.runs / SCORES),
    )


def frontier_job(
    lineage: Lineage, player: ModelVersion, prompts: PromptSet, output: Path, *, share: bool = False
) -> FrontierJob:
    """The sweep over temperatures. It includes the one at which versions are used.

    Args:
        lineage: The lineage.
        player: The model to measure.
        prompts: The SFT data, for their held-out prompts.
        output: The folder of the report.
        share: Whether lineages share the report, as they do for θ_0.
    """
    config, generate = lineage.config.evaluate, None
    if not config.exact:
        # As for the diagnostics, but at every temperature, and with the settings of the version's iteration.
        sampling = {"temperature": 1.0, "engine": "transformers", "vllm": VllmConfig()}
        generate = at_iteration(lineage.config.generate, player.t).model_copy(update=sampling)
    return FrontierJob(
        output=output,
        seed=0 if config.exact else lineage.config.seed,
        config=FrontierConfig(
            temperatures=tuple(sorted({*config.frontier, config.temperature})),
            reference=None if config.exact else config.frontier_reference,
        ),
        model=lineage.config.model,
        player=player,
        prompts=prompts,
        generate=generate,
        speed=FrontierSpeed(batch_size=config.batch_size, scores=lineage.runs / SCORES if share else None),
    )


def benchmark_job(
    lineage: Lineage, player: ModelVersion, suite: str, tasks: tuple[BenchmarkTask, ...], output: Path
) -> BenchmarkJob:
    """A suite of lm-eval's tasks. It does not depend on the seed, so that lineages can be compared item by item."""
    config, vllm = lineage.config.evaluate.lm_eval, lineage.config.generate.vllm
    on_vllm = config.engine == "vllm"
    return BenchmarkJob(
        output=output,
        config=BenchmarkConfig(
            suite=suite,
            tasks=tasks,
            local_data=config.local_data,
            apply_chat_template=_applies_template(suite, config),
            engine=config.engine,
            # Only what is needed: the weights are neither quantised nor cast to another precision.
            vllm=VllmConfig(python=vllm.python, max_length=vllm.max_length, speed=vllm.speed)
            if on_vllm
            else VllmConfig(),
            speed=BenchmarkSpeed(batch_size=config.batch_size, scores=lineage.runs / SCORES),
        ),
        model=lineage.config.model,
        player=player,
    )


def _applies_template(suite: str, config: LmEvalConfig) -> bool | None:
    """Whether a suite's items are wrapped in the chat template; None if that depends on the model.

    The paper's suites use none. IFEval measures how well a chat model follows instructions.
    """
    if config.apply_chat_template is None and suite.removesuffix(QUICK) != "instruct":
        return False
    return config.apply_chat_template


def mt_bench_job(
    lineage: Lineage,
    player: ModelVersion,
    prompts: PromptSet | None,
    others: Mapping[str, Sequence[EvalReport]],
    output: Path,
) -> MtBenchJob:
    """MT-Bench, with the comparisons that `evaluate.mt_bench.pairwise` names.

    Args:
        lineage: The lineage.
        player: The model to score.
        prompts: The SFT data, for the comparison with human responses.
        others: The reports on the models to compare with: `previous` and `base`. θ_0 has none.
        output: The folder of the report.

    Raises:
        ConfigError: There is no report on a model to compare with.
    """
    config, generate = lineage.config.evaluate, lineage.config.generate
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
                "engine": interpreter.choose_engine(generate, lineage.config.model, output),
            }
        ),
        model=lineage.config.model,
        chat=lineage.config.chat,
        player=player,
        previous=report_on("previous"),
        base=report_on("base"),
        prompts=prompts if "human" in pairwise else None,
        speed=MtBenchSpeed(answers=lineage.runs / ANSWERS),
    )
