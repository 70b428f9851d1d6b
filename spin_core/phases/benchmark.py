"""Phase `benchmark`: a suite of lm-eval's tasks on one model. Suites are listed in `suites.py`.

A task's score bears the task's name, with the metric that the suite says; its other metrics follow as `task/metric`.
A group's tasks have scores too, and the group's is over all their items, as in lm-eval; the suite's average, which
bears its name, is the plain mean of its tasks. Results of single tasks are kept (`task_scores.py`), so none is scored
twice, and a run that was killed goes on where it was.

    items.parquet     one row for each score and item (an average's items are its parts'), to compare versions by item
    samples.parquet   what each item was asked, and how the model answered
"""

import functools
import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.evaluation import harness, task_scores
from spin_core.evaluation.find_tasks import Found, Single, find_tasks
from spin_core.evaluation.suites import LM_EVAL
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store import artifacts
from spin_core.store.jobs import BenchmarkJob, BenchmarkTask
from spin_core.store.records import EvalReport, Score

log = logging.getLogger("spin_core")

ITEMS = pa.schema([("task", pa.string()), ("item", pa.string()), ("value", pa.float64())])


def run(job: BenchmarkJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Score every task that has not been scored yet, and gather all."""
    config = job.config
    with tempfile.TemporaryDirectory(prefix="spin-benchmark-") as folder:
        found = find_tasks(config, Path(folder))
        wanted = [(one.task, single) for one in found for single in one.singles]
        progress.start(len(wanted), "task")
        model = functools.cache(lambda: harness.load(job))
        templated = harness.has_template(job)
        results, spared = {}, 0.0

        def tell(before: int, share: float) -> None:
            progress.tell(round(before + share, 2))

        for done, (task, single) in enumerate(wanted):
            asked = task_scores.identity(job, task, single.name, single.rows, templated=templated)
            report, known = task_scores.scored(
                asked, config.speed.scores, single.load, model, functools.partial(tell, done)
            )
            results[single.name] = report
            spared += seconds_of(report) if known else 0.0
            tell(done, 1)
    if spared:
        log.info("what was known of this model already took %.0f s to find out", spared)
    scores, averages = gather(config.suite, found, results)
    write_items(found, results, scratch / "items.parquet")
    write_samples(found, results, scratch / "samples.parquet")
    notes = [note for one in found for note in one.notes]
    if config.apply_chat_template is None and not templated:
        notes.append("the model has no chat template, and was asked without one")
    for one in found:
        fits = [json.loads((results[single.name].path / "fit.json").read_text("utf-8")) for single in one.singles]
        notes += harness.notes_of(one.task.name, fits)
    for note in notes:
        log.warning("%s", note)
    return {
        "model": job.player.digest,
        "suite": config.suite,
        "harness": task_scores.harness_version(),
        "scores": scores,
        "averages": averages,
        "notes": notes,
    }


def seconds_of(report: EvalReport) -> float:
    """How long a published task took."""
    manifest = artifacts.read_manifest(report.path)
    return float(manifest["usage"]["seconds"]) if manifest else 0.0


# Scores, items and samples, of single tasks and put together.


def gather(
    suite: str, found: Sequence[Found], results: Mapping[str, EvalReport]
) -> tuple[dict[str, Score], dict[str, tuple[str, ...]]]:
    """All scores by their names, and which of them are the mean of which others."""
    scores: dict[str, Score] = {}
    averages: dict[str, tuple[str, ...]] = {}
    for one in found:
        if one.means is None:
            report = results[one.singles[0].name]
            scores |= {title: report.scores[key] for key, title in titles(one.task, report.scores).items()}
            continue
        group = group_scores(one.means, [results[single.name] for single in one.singles])
        names = titles(one.task, group)
        main = next(iter(names))
        parts = {one.task.part(single.name): results[single.name].scores for single in one.singles}
        scores |= {name: part[main] for name, part in parts.items() if main in part}
        scores |= {title: group[key] for key, title in names.items()}
        averages[one.task.title] = tuple(parts)
    if suite != LM_EVAL:
        averages[suite] = tuple(one.task.title for one in found)
        scores[suite] = mean_of([scores[name] for name in averages[suite]])
    return scores, averages


def titles(task: BenchmarkTask, keys: Mapping[str, Any]) -> dict[str, str]:
    """The names of scores by lm-eval's metric and filter, the main one first, whose name has no metric in it."""
    main = task.metric or ("acc_norm,none" if "acc_norm,none" in keys else next(iter(keys)))
    found = {main: task.title}
    for key in keys:
        metric, kind = key.split(",")
        found.setdefault(key, f"{task.title}/{metric if kind == 'none' else kind}")
    return found


def group_scores(means: Sequence[Mapping[str, Any]], reports: Sequence[EvalReport]) -> dict[str, Score]:
    """A group's scores as lm-eval makes them of its tasks'."""
    found = {}
    for mean in means:
        kinds = mean.get("filter_list") or sorted(
            {key.split(",")[1] for report in reports for key in report.scores if key.split(",")[0] == mean["metric"]}
        )
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            key = f"{mean['metric']},{kind}"
            parts = [report.scores[key] for report in reports if key in report.scores]
            sizes = np.array([part.n for part in parts])
            weights = sizes if mean.get("weight_by_size", True) else np.ones(len(parts))
            value = np.average([part.value for part in parts], weights=weights)
            stderr = group_error([part.stderr for part in parts], sizes, alike=weights is sizes)
            better = all(part.higher_is_better for part in parts)
            found[key] = Score(value=float(value), stderr=stderr, n=int(sizes.sum()), higher_is_better=better)
    return found


def group_error(known: Sequence[float | None], sizes: Any, *, alike: bool) -> float | None:
    """A group's standard error as lm-eval has it: pooled where items weigh alike, and of the plain mean where not.

    None where a task's is not known, as that of a single item.
    """
    errors = np.array([error for error in known if error is not None])
    if sizes.min() < 2 or len(errors) < len(known):
        return None
    if not alike:
        return float(np.sqrt((errors**2).sum()) / len(errors))
    variance = ((sizes - 1) * sizes * errors**2).sum() / (sizes - 1).sum()
    return float(np.sqrt(variance / sizes.sum()))


def mean_of(parts: Sequence[Score]) -> Score:
    """The plain mean of scores that have nothing in common, and its standard error."""
    value = sum(part.value for part in parts) / len(parts)
    errors = [part.stderr for part in parts if part.stderr is not None]
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(parts) if len(errors) == len(parts) else None
    return Score(value=value, stderr=stderr, n=sum(part.n for part in parts))


def write_items(found: Sequence[Found], results: Mapping[str, EvalReport], path: Path) -> None:
    """Every score's value at every item. A group that weighs its items alike has them under its own name too."""
    columns: dict[str, list[Any]] = {name: [] for name in ITEMS.names}

    def add(single: Single, names: Mapping[str, str], prefix: str = "") -> None:
        table = pq.read_table(results[single.name].path / "items.parquet").to_pylist()
        for key, title in names.items():
            rows = [row for row in table if row["metric"] == key]
            columns["task"] += [title] * len(rows)
            columns["item"] += [prefix + row["item"] for row in rows]
            columns["value"] += [row["value"] for row in rows]

    for one in found:
        if one.means is None:
            add(one.singles[0], titles(one.task, results[one.singles[0].name].scores))
            continue
        group = group_scores(one.means, [results[single.name] for single in one.singles])
        names = titles(one.task, group)
        main = next(iter(names))
        alike = {f"{mean['metric']}" for mean in one.means if mean.get("weight_by_size", True)}
        for single in one.singles:
            add(single, {main: one.task.part(single.name)})
            add(single, {key: name for key, name in names.items() if key.split(",")[0] in alike}, f"{single.name}/")
    pq.write_table(pa.table(columns, schema=ITEMS), path)


def write_samples(found: Sequence[Found], results: Mapping[str, EvalReport], path: Path) -> None:
    """The samples of all tasks, one after the other."""
    with pq.ParquetWriter(path, task_scores.SAMPLES, compression="zstd") as out:
        for single in (single for one in found for single in one.singles):
            out.write_table(pq.read_table(results[single.name].path / "samples.parquet"))


if __name__ == "__main__":
    main(BenchmarkJob, EvalReport, run)
