"""Suites of benchmarks as the SPIN paper ran them (arXiv 2401.01335, tables 1 and 6), and the jobs that score a model.

    open-llm-leaderboard  ARC-Challenge (25 examples in the prompt, acc_norm), HellaSwag (10, acc_norm), MMLU (5, acc),
                          TruthfulQA (0, mc2), Winogrande (5, acc), GSM8K (5, exact match of the number behind ####)
    big-bench             three tasks of BIG-Bench Hard by chain of thought, OpenBookQA (1, acc_norm)
    bbh                   all 27 tasks of BIG-Bench Hard by chain of thought
    instruct              IFEval: share of prompts all of whose instructions are followed, strictly
    mt-bench              two-turn questions and a judge

A suite's average bears its name. A `-quick` suite takes some items of each task, the same ones for every model, and
its scores' names end so too: a model may be scored on both.
Each job gets the settings that it reads and no other, so that no suite is done again for another's sake.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spin_core import engines
from spin_core.config import (
    EvaluateConfig,
    EvaluateSpeedConfig,
    JudgeConfig,
    LmEvalConfig,
    MtBenchConfig,
    RunConfig,
    VllmConfig,
)
from spin_core.errors import ConfigError
from spin_core.jobs import (
    BenchmarkConfig,
    BenchmarkJob,
    BenchmarkSpeed,
    BenchmarkTask,
    EvaluateJob,
    EvaluateSpeed,
    MtBenchJob,
    MtBenchSpeed,
)
from spin_core.records import EvalReport, ModelVersion, PromptSet

if TYPE_CHECKING:
    from spin_core.lineage import Lineage

SCORES = ".scores"
"""Below the runs folder: what single tasks of lm-eval gave, by model, task and settings, and θ_0's diagnostics.
Lineages share it."""

ANSWERS = ".answers"
"""Below the runs folder: what models answered to MT-Bench's questions, by model and sampling. Lineages share it."""

LM_EVAL = "lm-eval"
"""The suite of `evaluate.lm_eval.tasks`. It has no average."""

QUICK = "-quick"
FEW = 100
"""Items of a task in a quick suite: a score's standard error is .05 at most."""
FEW_OF = {"mmlu": 4, "bbh_cot_fewshot": 10}
"""Items of each of a group's tasks there: 228 of MMLU's 57 subjects, 270 of BBH's 27 tasks."""

COT = "bbh_cot_fewshot"
BENCHMARKS: dict[str, tuple[BenchmarkTask, ...]] = {
    "open-llm-leaderboard": (
        BenchmarkTask(name="arc_challenge", num_fewshot=25, metric="acc_norm,none"),
        BenchmarkTask(name="hellaswag", num_fewshot=10, metric="acc_norm,none"),
        BenchmarkTask(name="mmlu", num_fewshot=5, metric="acc,none"),
        BenchmarkTask(name="truthfulqa_mc2", num_fewshot=0, metric="acc,none"),
        BenchmarkTask(name="winogrande", num_fewshot=5, metric="acc,none"),
        # What lm-eval had alone in the paper's days; `flexible-extract`, the last number of the answer, stands beside.
        BenchmarkTask(name="gsm8k", num_fewshot=5, metric="exact_match,strict-match"),
    ),
    "big-bench": (
        *(
            BenchmarkTask(name=f"{COT}_{name}", metric="exact_match,get-answer")
            for name in ("causal_judgement", "formal_fallacies", "sports_understanding")
        ),
        BenchmarkTask(name="openbookqa", num_fewshot=1, metric="acc_norm,none"),
    ),
    "bbh": (BenchmarkTask(name=COT, metric="exact_match,get-answer"),),
    "instruct": (BenchmarkTask(name="ifeval", metric="prompt_level_strict_acc,none"),),
}
"""What lm-eval runs."""


def benchmark_tasks(suite: str, config: LmEvalConfig) -> tuple[BenchmarkTask, ...]:
    """lm-eval's tasks in a suite; none if it is of another kind."""
    if suite == LM_EVAL:
        free = (BenchmarkTask(name=name, num_fewshot=config.num_fewshot) for name in dict.fromkeys(config.tasks))
        return tuple(limited(task, config.limit) for task in free)
    tasks = BENCHMARKS.get(suite.removesuffix(QUICK), ())
    if suite.endswith(QUICK):
        return tuple(quick(task, config.limit) for task in tasks)
    return tuple(limited(task, config.limit) for task in tasks)


def limited(task: BenchmarkTask, limit: int | None) -> BenchmarkTask:
    """The task on so many items."""
    return task.model_copy(update={"limit": limit})


def quick(task: BenchmarkTask, limit: int | None) -> BenchmarkTask:
    """The task on few items, with a score of its own."""
    named = task.model_copy(update={"score": task.name + QUICK})
    return limited(named, limit or FEW_OF.get(task.name, FEW))


def benchmarks(config: EvaluateConfig) -> Iterator[tuple[str, tuple[BenchmarkTask, ...]]]:
    """Every suite that is lm-eval's, with its tasks."""
    for suite in (*config.suites, LM_EVAL):
        tasks = benchmark_tasks(suite, config.lm_eval)
        if tasks:
            yield suite, tasks


def score_names(config: EvaluateConfig) -> list[str]:
    """The scores of lm-eval's suites that a reader wants to see: averages, and each task's main one."""
    found = list(benchmarks(config))
    averages = [suite for suite, _ in found if suite != LM_EVAL] + mt_bench_suites(config)
    return list(dict.fromkeys([*averages, *(task.title for _, tasks in found for task in tasks)]))


def mt_bench_suites(config: EvaluateConfig) -> list[str]:
    """The suites that a judge grades."""
    return [suite for suite in config.suites if suite.removesuffix(QUICK) == "mt-bench"]


def check(config: RunConfig) -> None:
    """Raise `ConfigError` if suites cannot be scored.

    A single task would give a suite's score another value, their engine is not installed, or data are missing that are
    not the tasks' own.
    """
    evaluate = config.evaluate
    found = list(benchmarks(evaluate))
    check_names(found)
    if evaluate.lm_eval.engine == "vllm" and found:
        engines.required_python(config.generate.vllm, "evaluate.lm_eval.engine")
    if any(task.name == "ifeval" for _, tasks in found for task in tasks):
        from spin_core import local_tasks

        local_tasks.require_sentences(evaluate.lm_eval.local_data)


def check_names(found: Sequence[tuple[str, tuple[BenchmarkTask, ...]]]) -> None:
    """Raise `ConfigError` if two suites would give two values to scores of one name."""
    for (suite, tasks), (other, others) in combinations(found, 2):
        for task, same in ((task, same) for task in tasks for same in others if suite != other):
            if not (task.score or same.score) and overlap(task.name, same.name) and unlike(task, same):
                raise ConfigError(
                    f"{suite} and {other} both score {same.name}, in different ways: take it out of "
                    "evaluate.lm_eval.tasks, or score the model's folder under a name of its own (spin evaluate FOLDER)"
                )


def overlap(name: str, other: str) -> bool:
    """Whether two names are of one task, or of a group and what is in it."""
    from spin_core.local_tasks import GROUPS, holds

    return name == other or any(holds(one, two) for one, two in ((name, other), (other, name)) if one in GROUPS)


def unlike(task: BenchmarkTask, other: BenchmarkTask) -> bool:
    """Whether two tasks of one name would be asked in different ways."""
    return (task.num_fewshot, task.limit) != (other.num_fewshot, other.limit)


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
                "engine": engines.chosen(generate, game.config.model, output),
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
