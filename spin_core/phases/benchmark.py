"""Phase `benchmark`: a suite of lm-eval's tasks on one model: `python -m spin_core.phases.benchmark JOB`.

A task's score has the task's name, and is the metric that the suite selects; its other metrics follow as `task/metric`.
A group's tasks have scores too, and the group's own is over all their items, as in lm-eval. The suite's average, which
has its name, is the plain mean of its tasks. Results of single tasks are kept (`evaluation/task_scores.py`), so none is
scored twice, and a run that was killed continues.

    items.parquet     one row for each score and item, to compare versions by item; an average has those of its parts
    samples.parquet   what each item's prompt was, and how the model answered
"""

import functools
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.evaluation import harness, task_scores
from spin_core.evaluation.find_tasks import NamedTask, SingleTask, find_tasks
from spin_core.evaluation.group_scores import collect_scores, score_names
from spin_core.evaluation.items import ITEMS
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store import artifacts
from spin_core.store.evaluation_jobs import BenchmarkJob
from spin_core.store.records import EvalReport

log = logging.getLogger("spin_core")


def run(job: BenchmarkJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Score every task that has not been scored yet, and write the report on all."""
    with tempfile.TemporaryDirectory(prefix="spin-benchmark-") as folder:
        tasks = find_tasks(job.config, Path(folder))
        templated = harness.uses_chat_template(job)
        reports = _score_tasks(job, tasks, templated, progress)
    scores, averages = collect_scores(job.config.suite, tasks, reports)
    _write_items(tasks, reports, scratch / "items.parquet")
    _write_samples(tasks, reports, scratch / "samples.parquet")
    notes = _notes(job, tasks, reports, templated)
    for note in notes:
        log.warning("%s", note)
    return {
        "model": job.player.digest,
        "suite": job.config.suite,
        "harness": task_scores.harness_version(),
        "scores": scores,
        "averages": averages,
        "notes": notes,
    }


def _score_tasks(
    job: BenchmarkJob, tasks: Sequence[NamedTask], templated: bool, progress: Progress
) -> dict[str, EvalReport]:
    """Return each single task's report by lm-eval's name. The model is loaded only if one is not there yet."""
    pairs = [(named.task, single) for named in tasks for single in named.singles]
    progress.start(len(pairs), "task")
    model = functools.cache(lambda: harness.load(job))
    reports, saved_seconds = {}, 0.0

    def show(tasks_done: int, share: float) -> None:
        progress.report(round(tasks_done + share, 2))

    for number, (task, single) in enumerate(pairs):
        request = task_scores.identity(job, task, single.name, single.rows_digest, templated=templated)
        report, reused = task_scores.score_once(
            request, job.config.speed.scores, single.load, model, functools.partial(show, number)
        )
        reports[single.name] = report
        saved_seconds += _seconds(report) if reused else 0.0
        show(number, 1)
    if saved_seconds:
        log.info("results of this model that were there already took %.0f s to compute", saved_seconds)
    return reports


def _seconds(report: EvalReport) -> float:
    """Return how long the scoring of a published task took."""
    manifest = artifacts.read_manifest(report.path)
    return float(manifest["usage"]["seconds"]) if manifest else 0.0


def _notes(
    job: BenchmarkJob, tasks: Sequence[NamedTask], reports: Mapping[str, EvalReport], templated: bool
) -> list[str]:
    """Return what a reader of the scores should know."""
    notes = [note for named in tasks for note in named.notes]
    if job.config.apply_chat_template is None and not templated:
        notes.append("the model has no chat template, and was asked without one")
    for named in tasks:
        fits = [json.loads((reports[single.name].path / "fit.json").read_text("utf-8")) for single in named.singles]
        notes += harness.fit_notes(named.task.name, fits)
    return notes


def _write_items(tasks: Sequence[NamedTask], reports: Mapping[str, EvalReport], path: Path) -> None:
    """Write every score's value at every item. A group that weighs its items equally has them under its name too."""
    columns: dict[str, list[Any]] = {name: [] for name in ITEMS.names}

    def add(single: SingleTask, names: Mapping[str, str], prefix: str = "") -> None:
        table = pq.read_table(reports[single.name].path / "items.parquet").to_pylist()
        for key, name in names.items():
            rows = [row for row in table if row["metric"] == key]
            columns["task"] += [name] * len(rows)
            columns["item"] += [prefix + row["item"] for row in rows]
            columns["value"] += [row["value"] for row in rows]

    for named in tasks:
        names = score_names(named, reports)
        if named.means is None:
            add(named.singles[0], names)
            continue
        main = next(iter(names))
        by_item = {mean["metric"] for mean in named.means if mean.get("weight_by_size", True)}
        for single in named.singles:
            add(single, {main: named.task.part(single.name)})
            add(single, {key: name for key, name in names.items() if key.split(",")[0] in by_item}, f"{single.name}/")
    pq.write_table(pa.table(columns, schema=ITEMS), path)


def _write_samples(tasks: Sequence[NamedTask], reports: Mapping[str, EvalReport], path: Path) -> None:
    """Write the samples of all tasks, one after the other."""
    with pq.ParquetWriter(path, task_scores.SAMPLES, compression="zstd") as out:
        for single in (single for named in tasks for single in named.singles):
            out.write_table(pq.read_table(reports[single.name].path / "samples.parquet"))


if __name__ == "__main__":
    main(BenchmarkJob, EvalReport, run)
