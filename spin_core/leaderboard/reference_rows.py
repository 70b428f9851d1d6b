"""Scores that the paper reported for its own models: for comparison, never measured here.

Chen et al. 2024, arXiv 2401.01335: zephyr-7b-sft-full on 50k prompts of UltraChat200k. The paper's model of
iteration t is θ_{t+1} here; DPO and further SFT start from θ_0 unless a row says otherwise. The paper gives no standard
errors.
"""

from collections.abc import Iterable, Mapping

from spin_core.store.records import Score

SOURCE = "reported in arXiv 2401.01335 for a 7B model; not measured here"

_LEADERBOARD = (
    *("arc_challenge", "truthfulqa_mc2", "winogrande", "gsm8k", "hellaswag", "mmlu"),
    "open-llm-leaderboard",
)
"""Percent, in this order; the last is their average."""

ON_LEADERBOARD = {
    "paper θ_0": (60.41, 43.73, 74.19, 26.76, 82.85, 60.92, 58.14),
    "paper θ_1": (63.40, 49.18, 72.69, 35.10, 84.38, 60.03, 60.80),
    "paper θ_2": (65.19, 55.17, 72.30, 35.78, 84.96, 59.34, 62.12),
    "paper θ_3": (65.96, 54.91, 73.56, 38.06, 85.41, 59.93, 62.97),
    "paper θ_4": (65.87, 54.90, 73.72, 38.97, 85.54, 59.99, 63.16),
    "paper SFT +1 epoch": (57.76, 44.39, 75.77, 25.85, 81.69, 57.89, 57.23),
    "paper DPO": (63.65, 55.19, 72.61, 33.43, 84.44, 58.52, 61.31),
    # The reported average is 0.69 below the mean of the reported parts.
    "paper θ_4 + DPO": (66.47, 60.07, 78.06, 37.98, 86.17, 59.68, 64.05),
}

_BIG_BENCH = ("causal_judgement", "formal_fallacies", "sports_understanding", "openbookqa")
"""Percent."""

_ON_BIG_BENCH = {
    "paper θ_0": (56.15, 49.6, 96.0, 45.4),
    "paper θ_1": (57.75, 51.6, 95.2, 46.8),
    "paper θ_2": (58.82, 51.2, 95.2, 47.2),
    "paper θ_3": (59.36, 51.2, 94.4, 47.6),
}

_WHOLE = {
    **{
        "arc_challenge": 1172,
        "truthfulqa_mc2": 817,
        "winogrande": 1267,
        "gsm8k": 1319,
        "hellaswag": 10042,
        "mmlu": 14042,
    },
    **{"causal_judgement": 187, "formal_fallacies": 250, "sports_understanding": 250, "openbookqa": 500},
    "mt-bench": 80,
}
"""The number of items of each task."""

_ON_MT_BENCH = {"paper θ_0": 5.94, "paper θ_1": 6.46, "paper θ_2": 6.65, "paper θ_3": 6.78}
"""The average grade, from 1 to 10, that GPT-4 gave."""


def reported(suite: str) -> dict[str, dict[str, float]]:
    """The paper's scores on a suite, by model and task; a quick suite has those of the whole one."""
    match suite.removesuffix("-quick"):
        case "open-llm-leaderboard":
            return {name: _shares(_LEADERBOARD, percents) for name, percents in ON_LEADERBOARD.items()}
        case "big-bench":
            return {name: _shares(_BIG_BENCH, percents) for name, percents in _ON_BIG_BENCH.items()}
        case "mt-bench":
            return {name: {"mt-bench": grade} for name, grade in _ON_MT_BENCH.items()}
    return {}


def _shares(tasks: Iterable[str], percents: Iterable[float]) -> dict[str, float]:
    """Percentages as shares between 0 and 1."""
    return {task: round(percent / 100, 6) for task, percent in zip(tasks, percents, strict=True)}


def matching(suites: Mapping[str, Iterable[str]]) -> dict[str, dict[str, Score]]:
    """Scores of the paper's models on the tasks that the paper ran in the same way.

    Single tasks of lm-eval are left out: their number of examples may differ from the paper's.
    """
    rows: dict[str, dict[str, Score]] = {}
    for suite, tasks in suites.items():
        for name, values in reported(suite).items():
            for task in tasks:
                matches = [value for key, value in values.items() if _is_task(task.removesuffix("-quick"), key)]
                if matches:
                    rows.setdefault(name, {})[task] = Score(value=matches[0], stderr=None, n=0)
    return rows


def _is_task(name: str, key: str) -> bool:
    """Whether a task is one of the paper's. Tasks of BIG-Bench Hard have lm-eval's prefix."""
    return name == key or name.endswith(f"_{key}")


def source(suites: Mapping[str, Iterable[str]], scores: Mapping[str, Score], *, chat_template: bool) -> str:
    """Where the paper's rows come from, and how they differ from the scores in the same table."""
    tasks = [task for suite, names in suites.items() if reported(suite) for task in names]
    sizes = {task: size for task in tasks for key, size in _WHOLE.items() if _is_task(task.removesuffix("-quick"), key)}
    notes = [SOURCE]
    if any(scores[task].n < size for task, size in sizes.items() if task in scores):
        notes.append("on the whole suites, while the scores here are on a part of the items")
    if chat_template:
        notes.append("without the chat template that is applied here")
    if any(suite.removesuffix("-quick") == "mt-bench" for suite in suites):
        notes.append("MT-Bench graded by GPT-4")
    return "; ".join(notes)
