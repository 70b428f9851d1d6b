"""The scores of a suite from those of its single tasks: names, groups as lm-eval computes them, and averages."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spin_core.evaluation.find_tasks import NamedTask
from spin_core.evaluation.suites import LM_EVAL
from spin_core.store.evaluation_jobs import BenchmarkTask
from spin_core.store.records import EvalReport, Score


def collect_scores(
    suite: str, tasks: Sequence[NamedTask], reports: Mapping[str, EvalReport]
) -> tuple[dict[str, Score], dict[str, tuple[str, ...]]]:
    """Return all scores of a suite by name, and the names of the scores that each average is the mean of.

    Args:
        suite: The suite's name, which is also its average's. The suite of free tasks has no average.
        tasks: The suite's tasks and groups.
        reports: Each single task's report, by lm-eval's name. Its scores have lm-eval's names, such as `acc,none`.
    """
    scores: dict[str, Score] = {}
    averages: dict[str, tuple[str, ...]] = {}
    for named in tasks:
        if named.means is None:
            own = reports[named.singles[0].name].scores
            scores |= {name: own[key] for key, name in _names(named.task, own).items()}
            continue
        group = _group_scores(named.means, [reports[single.name] for single in named.singles])
        names = _names(named.task, group)
        main = next(iter(names))
        parts = {named.task.part(single.name): reports[single.name].scores for single in named.singles}
        scores |= {name: part[main] for name, part in parts.items() if main in part}
        scores |= {name: group[key] for key, name in names.items()}
        averages[named.task.title] = tuple(parts)
    if suite != LM_EVAL:
        averages[suite] = tuple(named.task.title for named in tasks)
        scores[suite] = _mean([scores[name] for name in averages[suite]])
    return scores, averages


def score_names(named: NamedTask, reports: Mapping[str, EvalReport]) -> dict[str, str]:
    """Return the names of a task's or group's scores by lm-eval's metric and filter, `acc,none`.

    The main score comes first and has the task's name; the others are `task/metric`, or `task/filter`.
    """
    if named.means is None:
        return _names(named.task, reports[named.singles[0].name].scores)
    return _names(named.task, _group_scores(named.means, [reports[single.name] for single in named.singles]))


def _names(task: BenchmarkTask, keys: Iterable[str]) -> dict[str, str]:
    keys = list(keys)
    main = task.metric or ("acc_norm,none" if "acc_norm,none" in keys else keys[0])
    names = {main: task.title}
    for key in keys:
        metric, filter_name = key.split(",")
        names.setdefault(key, f"{task.title}/{metric if filter_name == 'none' else filter_name}")
    return names


def _group_scores(means: Sequence[Mapping[str, Any]], reports: Sequence[EvalReport]) -> dict[str, Score]:
    """Return a group's scores as lm-eval computes them from its tasks', by metric and filter."""
    scores = {}
    for mean in means:
        filters = mean.get("filter_list") or sorted(
            {key.split(",")[1] for report in reports for key in report.scores if key.split(",")[0] == mean["metric"]}
        )
        for filter_name in [filters] if isinstance(filters, str) else filters:
            key = f"{mean['metric']},{filter_name}"
            parts = [report.scores[key] for report in reports if key in report.scores]
            by_size = mean.get("weight_by_size", True)
            sizes = np.array([part.n for part in parts])
            value = np.average([part.value for part in parts], weights=sizes if by_size else np.ones(len(parts)))
            scores[key] = Score(
                value=float(value),
                stderr=_group_stderr([part.stderr for part in parts], sizes, by_size=by_size),
                n=int(sizes.sum()),
                higher_is_better=all(part.higher_is_better for part in parts),
            )
    return scores


def _group_stderr(stderrs: Sequence[float | None], sizes: npt.NDArray[np.int64], *, by_size: bool) -> float | None:
    """Return a group's standard error as lm-eval computes it.

    Where all items have the same weight it is pooled: the items' variance within tasks, s² = Σ (n-1) s_task² / Σ (n-1),
    over all items, sqrt(s² / Σ n); with s_task² = n stderr². Where all tasks have the same weight it is that of their
    mean, sqrt(Σ stderr²) / tasks.

    None if a task's is not known, such as that of a single item.
    """
    values = np.array([stderr for stderr in stderrs if stderr is not None])
    if sizes.min() < 2 or len(values) < len(stderrs):
        return None
    if not by_size:
        return float(np.sqrt((values**2).sum()) / len(values))
    variance = ((sizes - 1) * sizes * values**2).sum() / (sizes - 1).sum()
    return float(np.sqrt(variance / sizes.sum()))


def _mean(parts: Sequence[Score]) -> Score:
    """Return the plain mean of scores on different items, and its standard error: sqrt(Σ stderr²) / scores."""
    value = sum(part.value for part in parts) / len(parts)
    stderrs = [part.stderr for part in parts if part.stderr is not None]
    all_known = len(stderrs) == len(parts)
    stderr = math.sqrt(sum(stderr**2 for stderr in stderrs)) / len(parts) if all_known else None
    return Score(value=value, stderr=stderr, n=sum(part.n for part in parts))
