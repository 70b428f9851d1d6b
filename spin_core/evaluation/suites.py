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

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from spin_core.config.evaluate import EvaluateConfig, LmEvalConfig
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.runtime import interpreter
from spin_core.store.jobs import BenchmarkTask

if TYPE_CHECKING:
    pass

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
        interpreter.required_python(config.generate.vllm, "evaluate.lm_eval.engine")
    if any(task.name == "ifeval" for _, tasks in found for task in tasks):
        from spin_core.evaluation import local_tasks

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
    from spin_core.evaluation.local_tasks import GROUPS, holds

    return name == other or any(holds(one, two) for one, two in ((name, other), (other, name)) if one in GROUPS)


def unlike(task: BenchmarkTask, other: BenchmarkTask) -> bool:
    """Whether two tasks of one name would be asked in different ways."""
    return (task.num_fewshot, task.limit) != (other.num_fewshot, other.limit)
