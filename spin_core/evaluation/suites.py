"""Suites of benchmarks as the SPIN paper ran them (arXiv 2401.01335, tables 1 and 6).

    open-llm-leaderboard  ARC-Challenge (25 examples in the prompt, acc_norm), HellaSwag (10, acc_norm), MMLU (5, acc),
                          TruthfulQA (0, mc2), Winogrande (5, acc), GSM8K (5, exact match of the number behind ####)
    big-bench             three tasks of BIG-Bench Hard by chain of thought, OpenBookQA (1, acc_norm)
    bbh                   all 27 tasks of BIG-Bench Hard by chain of thought
    instruct              IFEval: share of prompts all of whose instructions are followed, strictly
    mt-bench              two-turn questions, graded by a judge

A suite's average has the suite's name. A `-quick` suite takes some items of each task, the same ones for every model.
The names of its scores end in `-quick` too, so a model can be scored on both.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import combinations, product
from pathlib import Path

from spin_core.config.evaluate import EvaluateConfig, LmEvalConfig
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.evaluation.local_tasks import GROUPS, group_contains
from spin_core.runtime import interpreter
from spin_core.store.evaluation_jobs import BenchmarkTask

LM_EVAL = "lm-eval"
"""The suite of the tasks in `evaluate.lm_eval.tasks`. It has no average."""

FRONTIER = "frontier"
"""The suite of `evaluate.frontier`. Its report has no scores, but a value of each item at each temperature."""

QUICK = "-quick"

_FEW = 100
"""Items of a task in a quick suite: the standard error of an accuracy is then at most .05."""

FEW_OF = {"mmlu": 4, "bbh_cot_fewshot": 10}
"""Items of each task of a group in a quick suite: 228 in MMLU's 57 subjects, 270 in BBH's 27 tasks."""

_BBH = "bbh_cot_fewshot"

BENCHMARKS: dict[str, tuple[BenchmarkTask, ...]] = {
    "open-llm-leaderboard": (
        BenchmarkTask(name="arc_challenge", num_fewshot=25, metric="acc_norm,none"),
        BenchmarkTask(name="hellaswag", num_fewshot=10, metric="acc_norm,none"),
        BenchmarkTask(name="mmlu", num_fewshot=5, metric="acc,none"),
        BenchmarkTask(name="truthfulqa_mc2", num_fewshot=0, metric="acc,none"),
        BenchmarkTask(name="winogrande", num_fewshot=5, metric="acc,none"),
        # The only filter that lm-eval had when the paper was written. The score of `flexible-extract`, which takes the
        # last number of the answer, is listed as well.
        BenchmarkTask(name="gsm8k", num_fewshot=5, metric="exact_match,strict-match"),
    ),
    "big-bench": (
        *(
            BenchmarkTask(name=f"{_BBH}_{name}", metric="exact_match,get-answer")
            for name in ("causal_judgement", "formal_fallacies", "sports_understanding")
        ),
        BenchmarkTask(name="openbookqa", num_fewshot=1, metric="acc_norm,none"),
    ),
    "bbh": (BenchmarkTask(name=_BBH, metric="exact_match,get-answer"),),
    "instruct": (BenchmarkTask(name="ifeval", metric="prompt_level_strict_acc,none"),),
}
"""The tasks of each suite that lm-eval runs."""


def benchmark_tasks(suite: str, config: LmEvalConfig) -> tuple[BenchmarkTask, ...]:
    """Return lm-eval's tasks in a suite; none if lm-eval does not run it."""
    if suite == LM_EVAL:
        free = (BenchmarkTask(name=name, num_fewshot=config.num_fewshot) for name in dict.fromkeys(config.tasks))
        return tuple(_limited(task, config.limit) for task in free)
    tasks = BENCHMARKS.get(suite.removesuffix(QUICK), ())
    if suite.endswith(QUICK):
        return tuple(_quick(task, config.limit) for task in tasks)
    return tuple(_limited(task, config.limit) for task in tasks)


def _limited(task: BenchmarkTask, limit: int | None) -> BenchmarkTask:
    """Return the task with a limit on its items."""
    return task.model_copy(update={"limit": limit})


def _quick(task: BenchmarkTask, limit: int | None) -> BenchmarkTask:
    """Return the task on few items, with a score of its own name."""
    named = task.model_copy(update={"score": task.name + QUICK})
    return _limited(named, limit or FEW_OF.get(task.name, _FEW))


def benchmarks(config: EvaluateConfig) -> Iterator[tuple[str, tuple[BenchmarkTask, ...]]]:
    """Yield every suite of the configuration that lm-eval runs, with its tasks."""
    for suite in (*config.suites, LM_EVAL):
        tasks = benchmark_tasks(suite, config.lm_eval)
        if tasks:
            yield suite, tasks


def score_names(config: EvaluateConfig) -> list[str]:
    """Return the names of the main scores of all suites: their averages, and each task's main score."""
    suites = list(benchmarks(config))
    averages = [suite for suite, _ in suites if suite != LM_EVAL] + mt_bench_suites(config)
    return list(dict.fromkeys([*averages, *(task.title for _, tasks in suites for task in tasks)]))


def mt_bench_suites(config: EvaluateConfig) -> list[str]:
    """Return the suites that a judge grades."""
    return [suite for suite in config.suites if suite.removesuffix(QUICK) == "mt-bench"]


def check(config: RunConfig) -> None:
    """Check that a configuration's suites can be scored.

    Raises:
        ConfigError: Two suites give different values to one score, their package or engine is not installed, or data
            are missing that do not come with the tasks.
    """
    evaluate = config.evaluate
    suites = list(benchmarks(evaluate))
    if suites:
        _require_package("lm_eval", "benchmarks", [suite for suite, _ in suites])
    if graded := mt_bench_suites(evaluate):
        _require_package("openai", "judge", graded)
    check_names(suites)
    _check_frontier(config)
    if evaluate.lm_eval.engine == "vllm" and suites:
        interpreter.required_python(config.generate.vllm, "evaluate.lm_eval.engine")
    if any(task.name == "ifeval" for _, tasks in suites for task in tasks):
        from spin_core.evaluation.nltk_data import require_punkt  # imports the hub's library, which takes a while

        require_punkt(evaluate.lm_eval.local_data)


def _require_package(package: str, extra: str, names: Sequence[str]) -> None:
    """Raise `ConfigError` if a package that suites need is not installed."""
    if find_spec(package) is None:
        raise ConfigError(
            f"{', '.join(names)} needs the package {package}, which is not installed: install spin-loop with its extra "
            f"`{extra}`, or remove it from evaluate"
        )


def _check_frontier(config: RunConfig) -> None:
    """Raise `ConfigError` if the quality of a frontier cannot be measured."""
    evaluate, reference = config.evaluate, config.evaluate.frontier_reference
    if not evaluate.frontier or evaluate.exact:
        return
    if evaluate.frontier_quality == "reference_nll" and reference is None:
        raise ConfigError(
            "evaluate.frontier_quality reference_nll needs a model that scores the answers: name its folder with "
            "evaluate.frontier_reference, or choose faulty_share or text_classifier"
        )
    if reference is not None and not (reference / "config.json").is_file():
        raise ConfigError(
            f"evaluate.frontier_reference {reference} is not a model's folder, since it has no config.json: correct it"
        )
    if reference is not None and reference.absolute() == Path(config.model.path).expanduser().absolute():
        raise ConfigError(
            f"evaluate.frontier_reference {reference} is θ_0 itself, whose likelihood favours its own lower "
            "temperatures: name another model"
        )


def check_names(suites: Sequence[tuple[str, tuple[BenchmarkTask, ...]]]) -> None:
    """Raise `ConfigError` if two suites would give different values to scores of one name."""
    for (suite, tasks), (other_suite, other_tasks) in combinations(suites, 2):
        for task, other in product(tasks, other_tasks) if suite != other_suite else ():
            if not (task.score or other.score) and _overlap(task.name, other.name) and _settings_differ(task, other):
                raise ConfigError(
                    f"{suite} and {other_suite} both score {other.name}, in different ways: take it out of "
                    "evaluate.lm_eval.tasks, or score the model's folder under a name of its own (spin evaluate FOLDER)"
                )


def _overlap(name: str, other: str) -> bool:
    """Return whether two names mean the same task, or a group and a task or group within it."""
    pairs = ((name, other), (other, name))
    return name == other or any(group_contains(group, member) for group, member in pairs if group in GROUPS)


def _settings_differ(task: BenchmarkTask, other: BenchmarkTask) -> bool:
    return (task.num_fewshot, task.limit) != (other.num_fewshot, other.limit)
