"""The result of one task of lm-eval for one model: scored once, and kept for all lineages and suites.

There is a folder for each model, task and setting, published like any result. Until then the answers to single requests
are kept in a journal in it, so that a task that is killed loses at most a batch. lm-eval's own cache of requests is not
used: it has answers by prompt, without the settings they were requested with, and builds and reads every task again.

    items.parquet     value by metric and item, where an item has one
    samples.parquet   each item's prompt and the model's answer
    fit.json          how many prompts were cut to the model's context
"""

import importlib.metadata
import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data.seeds import seed_of
from spin_core.errors import DataError, count
from spin_core.evaluation import nltk_data
from spin_core.evaluation.harness import AnswerJournal
from spin_core.runtime.usage import environment, peak_memory_mb
from spin_core.store import artifacts, files, lock
from spin_core.store import identity as store_identity
from spin_core.store.evaluation_jobs import BenchmarkJob, BenchmarkTask
from spin_core.store.records import EvalReport

log = logging.getLogger("spin_core")

_VERSION = 1
"""Raise it when a change of this code gives other results."""

_FEWSHOT_SEED = 1234
"""lm-eval's default, so that prompts have the same examples as in published scores."""

_BOOTSTRAPS = 1000
"""Bootstrap samples for the error of a metric that is not a mean."""

_ITEMS = pa.schema([("metric", pa.string()), ("item", pa.string()), ("value", pa.float64())])

SAMPLES = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.string()),
        ("prompt", pa.string()),
        ("target", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("logps", pa.list_(pa.float64())),
        ("answer", pa.string()),
        ("extracted", pa.string()),
        ("scores", pa.string()),
    ]
)
"""For a task with choices, `prompt` is the beginning that all of them share, `logps` are their log-probabilities (nats)
and `answer` is the most likely one. For a task without choices, `answer` is the model's text, and `extracted` is what
each of the task's filters read in it. `scores` and `extracted` are JSON."""


def harness_version() -> str:
    """Return the name and version of the library that scores."""
    return f"lm-eval {importlib.metadata.version('lm_eval')}"


def identity(job: BenchmarkJob, task: BenchmarkTask, name: str, rows: str, *, templated: bool) -> dict[str, Any]:
    """Return everything that a task's result depends on.

    Args:
        job: The model and the settings.
        task: The task or group in the configuration.
        name: lm-eval's name of the single task.
        rows: The digest of its rows.
        templated: Whether prompts are wrapped in the chat template.
    """
    config = job.config
    return {
        "phase": "task",
        "version": _VERSION,
        "harness": harness_version(),
        "model": job.player.digest,
        "dtype": job.model.dtype,
        "task": name,
        "rows": rows,
        "num_fewshot": task.num_fewshot,
        "limit": task.limit,
        "seed": job.seed if task.limit else None,
        "apply_chat_template": templated,
        "engine": config.engine,
        "max_length": config.vllm.max_length,
    }


def score_once(
    request: Mapping[str, Any],
    folder: Path,
    load: Callable[[], Any],
    harness: Callable[[], Any],
    report: Callable[[float], None],
) -> tuple[EvalReport, bool]:
    """Return a task's report, and whether it was there already. Its scores have lm-eval's names, such as `acc,none`.

    The task's folder is locked meanwhile, so that another process that needs the same result waits for it.

    Args:
        request: The task's `identity`.
        folder: The folder of all tasks' results.
        load: Returns lm-eval's object for the task.
        harness: Returns the model.
        report: Called with the share of the task that is done.
    """
    entry = folder / store_identity.digest_of(request)[:16]
    with lock.locked(entry, wait=True):
        final = entry / "scores"
        existing = artifacts.reusable(final, request, EvalReport)
        if existing is not None:
            return existing, True
        started, scratch = time.monotonic(), entry / ".scores.partial"
        scratch.mkdir(exist_ok=True)
        # A file whose name begins with a dot is not published.
        answers = AnswerJournal(scratch / ".answers.jsonl", report)
        if answers.known:
            log.info("%s: %d answers are there already", request["task"], len(answers.known))
        fields = _score(load(), harness(), answers, request, scratch)
        usage = {
            "seconds": round(time.monotonic() - started, 3),
            "peak_memory_mb": peak_memory_mb(),
            "environment": environment(),
        }
        return artifacts.publish(scratch, final, request, fields, EvalReport, usage=usage), False


def _score(
    task: Any, harness: Any, answers: AnswerJournal, request: Mapping[str, Any], scratch: Path
) -> dict[str, Any]:
    """Run one task, write its files, and return the fields of its record."""
    from lm_eval.evaluator import evaluate  # takes seconds, for which a result that is there already need not wait

    name, limit = request["task"], request["limit"]
    _check_punkt(task, name)
    _set_fewshot(task, request["num_fewshot"])
    rows = len(task.eval_docs)
    chosen = {name: subset(rows, limit, request["seed"], name)} if limit and limit < rows else None
    harness.reset(answers)
    results = evaluate(
        lm=harness,
        task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
        samples=chosen,
        bootstrap_iters=_BOOTSTRAPS,
        apply_chat_template=request["apply_chat_template"],
        fewshot_as_multiturn=request["apply_chat_template"],
    )
    samples = results["samples"][name]
    scores, items = scores_and_items(results["results"][name], samples, results["higher_is_better"].get(name, {}))
    columns: tuple[Sequence[Any], ...] = tuple(zip(*items, strict=True)) or ([], [], [])
    pq.write_table(pa.table(list(columns), schema=_ITEMS), scratch / "items.parquet")
    logged = pa.Table.from_pylist(_sample_rows(name, samples), schema=SAMPLES)
    pq.write_table(logged, scratch / "samples.parquet", compression="zstd")
    files.write_json(scratch / "fit.json", harness.fit())
    return {"model": request["model"], "suite": name, "harness": request["harness"], "scores": scores}


def _check_punkt(task: Any, name: str) -> None:
    """Raise `DataError` if IFEval would fail after all answers, without the data to count sentences in them."""
    if name == "ifeval" and not nltk_data.has_punkt():
        rows = sum(map(nltk_data.needs_punkt, task.eval_docs))
        if rows:
            raise DataError(
                f"sentences or words are to be counted in {count(rows, 'row')} of ifeval, and NLTK's punkt_tab is not "
                "installed: "
                f"{nltk_data.HOW_TO_GET_PUNKT}"
            )


def _set_fewshot(task: Any, count: int | None) -> None:
    """Set the number of examples in the prompt. A task that fixes it at 0 keeps 0, as in lm-eval."""
    default = task.get_config("num_fewshot")
    if default is None or (count is not None and default != 0):
        task.set_config(key="num_fewshot", value=count or 0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    needed = task.get_config("num_fewshot")
    available = len(task.sampler.df) if hasattr(task, "sampler") else needed
    # The evaluated row is left out if it is among them.
    available -= task.get_config("fewshot_split") == task.get_config("test_split")
    if needed > max(available, 0):
        raise DataError(
            f"{task.task_name} needs {needed} examples in its prompt, and has {available} rows for them: add rows, or "
            "lower evaluate.lm_eval.num_fewshot"
        )


def subset(rows: int, limit: int, seed: int, name: str) -> list[int]:
    """Choose rows by seed, and return their indices in order. A smaller choice is part of a larger one."""
    order = list(range(rows))
    random.Random(seed_of(seed, "benchmark", name)).shuffle(order)
    return sorted(order[:limit])


def scores_and_items(
    results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], better: Mapping[str, bool]
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, float]]]:
    """Return the scores by metric, and the items as (metric, item, value), of lm-eval's results for one task.

    Args:
        results: lm-eval's results, by metric and filter: `acc,none` and `acc_stderr,none`.
        samples: lm-eval's samples: one for each item and filter.
        better: Whether higher is better, by metric.
    """
    scores: dict[str, dict[str, Any]] = {}
    items: list[tuple[str, str, float]] = []
    for key in [key for key in results if "," in key and "_stderr," not in key]:
        metric, kind = key.split(",")
        values = [(sample["doc_id"], sample[metric]) for sample in samples if sample["filter"] == kind]
        stderr = results.get(f"{metric}_stderr,{kind}")
        scores[key] = {
            "value": float(results[key]),
            # lm-eval has "N/A" for an unknown error, such as that of a single item.
            "stderr": stderr if isinstance(stderr, float) else None,
            "n": len(values),
            "higher_is_better": better.get(metric) is not False,
        }
        # A value that is a list is of several places in an item. The score is the mean over these, not over items.
        items += [(key, str(item), float(value)) for item, value in values if isinstance(value, (int, float))]
    return scores, items


def _sample_rows(name: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each item. lm-eval has a sample for each of the task's filters."""
    rows: dict[Any, dict[str, Any]] = {}
    for sample in samples:
        item = sample["doc_id"]
        row = rows.setdefault(item, {"task": name, "item": str(item), **_prompt_and_answer(sample)})
        metrics = {key: sample[key] for key in sample["metrics"]}
        kind = "" if sample["filter"] == "none" else f",{sample['filter']}"
        row["scores"] |= {f"{key}{kind}": value for key, value in metrics.items()}
        if row["logps"] is None:
            row["extracted"][sample["filter"]] = sample["filtered_resps"][0]
    for row in rows.values():
        row["scores"] = json.dumps(row["scores"], default=float)
        row["extracted"] = json.dumps(row["extracted"], default=str) if row["extracted"] else None
    return list(rows.values())


def _prompt_and_answer(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prompt, the target, and the model's answer or the log-probability of each choice."""
    requests, target = sample["arguments"], sample["target"]
    first = sample["resps"][0][0]
    if not isinstance(first, (tuple, list)):
        prompt, answer, choices, logps = requests[0][0], first, None, None
    else:
        prompt = os.path.commonprefix([request[0] for request in requests])
        choices = [request[0][len(prompt) :] + request[1] for request in requests]
        logps = [float(answers[0][0]) for answers in sample["resps"]]
        answer = choices[logps.index(max(logps))]
        if isinstance(target, int) and 0 <= target < len(choices):
            target = choices[target]
    return {
        "prompt": prompt,
        "target": str(target),
        "choices": choices,
        "logps": logps,
        "answer": answer,
        "extracted": {},
        "scores": {},
    }
