"""What one task of lm-eval gave one model: scored once, and kept below the runs folder for all lineages and suites.

A folder for each model, task and way of asking, published like any result. What single requests were answered is kept
beside it until then, so that a task that is killed loses a batch. lm-eval's own cache of requests is not used: it holds
answers by prompt, without what asked for them, and would have every task built and read again.

    items.parquet     value by metric and item, where an item has one
    samples.parquet   what each item was asked and how the model answered
    fit.json          how many prompts the model's context cut
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
from spin_core.errors import DataError
from spin_core.evaluation import local_tasks
from spin_core.evaluation.harness import Answers
from spin_core.runtime.usage import environment, peak_memory_mb
from spin_core.store import artifacts, files, lock
from spin_core.store import identity as store_identity
from spin_core.store.jobs import BenchmarkJob, BenchmarkTask
from spin_core.store.records import EvalReport

log = logging.getLogger("spin_core")

VERSION = 1
"""Raised when this code comes to give other results."""

FEWSHOT_SEED = 1234
"""lm-eval's own default, so that the examples in a prompt are those of other people's scores."""

BOOTSTRAPS = 1000
"""Resamples for the error of a metric that is no mean."""

ITEMS = pa.schema([("metric", pa.string()), ("item", pa.string()), ("value", pa.float64())])

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
"""`prompt` is what all choices have in common, `logps` are theirs, and `answer` is the likeliest; a task without
choices has the model's text there, and in `extracted` what each of its filters read in it. `scores` and `extracted`
are JSON."""


def harness_version() -> str:
    """What does the scoring."""
    return f"lm-eval {importlib.metadata.version('lm_eval')}"


def identity(job: BenchmarkJob, task: BenchmarkTask, name: str, rows: str, *, templated: bool) -> dict[str, Any]:
    """What a task's result depends on. `rows` is the digest of its data; `name` is of one task, in a group perhaps."""
    config = job.config
    return {
        "phase": "task",
        "version": VERSION,
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


def scored(
    asked: Mapping[str, Any],
    folder: Path,
    load: Callable[[], Any],
    harness: Callable[[], Any],
    tell: Callable[[float], None],
) -> tuple[EvalReport, bool]:
    """A task's result, and whether it was there already. The report's scores bear lm-eval's names: `acc,none`.

    Whoever wants the same at the same time waits for the one that has begun. `tell` is told what share of it is done.
    """
    entry = folder / store_identity.digest_of(asked)[:16]
    with lock.locked(entry, wait=True):
        final = entry / "scores"
        known = artifacts.reusable(final, asked, EvalReport)
        if known is not None:
            return known, True
        began, scratch = time.monotonic(), entry / ".scores.partial"
        scratch.mkdir(exist_ok=True)
        # A hidden file, which is not published.
        answers = Answers(scratch / ".answers.jsonl", tell)
        if answers.known:
            log.info("%s: %d answers are there already", asked["task"], len(answers.known))
        fields = score(load(), harness(), answers, asked, scratch)
        usage = {
            "seconds": round(time.monotonic() - began, 3),
            "peak_memory_mb": peak_memory_mb(),
            "environment": environment(),
        }
        return artifacts.publish(scratch, final, asked, fields, EvalReport, usage=usage), False


def score(task: Any, harness: Any, answers: Answers, asked: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Run one task, write its files, and return the fields of its record."""
    from lm_eval.evaluator import evaluate  # takes seconds, which what is known already need not wait

    name, limit = asked["task"], asked["limit"]
    check_sentences(task, name)
    set_fewshot(task, asked["num_fewshot"])
    rows = len(task.eval_docs)
    chosen = {name: subset(rows, limit, asked["seed"], name)} if limit and limit < rows else None
    harness.reset(answers)
    results = evaluate(
        lm=harness,
        task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
        samples=chosen,
        bootstrap_iters=BOOTSTRAPS,
        apply_chat_template=asked["apply_chat_template"],
        fewshot_as_multiturn=asked["apply_chat_template"],
    )
    samples = results["samples"][name]
    scores, items = outcome(results["results"][name], samples, results["higher_is_better"].get(name, {}))
    columns: tuple[Sequence[Any], ...] = tuple(zip(*items, strict=True)) or ([], [], [])
    pq.write_table(pa.table(list(columns), schema=ITEMS), scratch / "items.parquet")
    logged = pa.Table.from_pylist(log_rows(name, samples), schema=SAMPLES)
    pq.write_table(logged, scratch / "samples.parquet", compression="zstd")
    files.write_json(scratch / "fit.json", harness.fit())
    return {"model": asked["model"], "suite": name, "harness": asked["harness"], "scores": scores}


def check_sentences(task: Any, name: str) -> None:
    """Raise `DataError` if IFEval would fail at the end, for want of what counts sentences in an answer."""
    if name == "ifeval" and not local_tasks.counts_sentences():
        asked = sum(map(local_tasks.counted, task.eval_docs))
        if asked:
            raise DataError(
                f"{asked:,} rows of ifeval want sentences or words counted, and NLTK's punkt_tab is not here: "
                f"{local_tasks.SENTENCES}"
            )


def set_fewshot(task: Any, count: int | None) -> None:
    """Set the number of examples in the prompt. A task that fixes it at 0 keeps 0, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if own is None or (count is not None and own != 0):
        task.set_config(key="num_fewshot", value=count or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    wanted = task.get_config("num_fewshot")
    there = len(task.sampler.df) if hasattr(task, "sampler") else wanted
    # The row that is asked is left out where it is among them.
    there -= task.get_config("fewshot_split") == task.get_config("test_split")
    if wanted > max(there, 0):
        raise DataError(
            f"{task.task_name} wants {wanted} examples in its prompt, and has {there} rows for them: add rows, or "
            "lower evaluate.lm_eval.num_fewshot"
        )


def subset(rows: int, limit: int, seed: int, name: str) -> list[int]:
    """A seeded choice of rows, in order. A smaller choice is part of a larger one."""
    order = list(range(rows))
    random.Random(seed_of(seed, "benchmark", name)).shuffle(order)
    return sorted(order[:limit])


def outcome(
    found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], better: Mapping[str, bool]
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, float]]]:
    """Scores and items by metric, of what lm-eval found for one task."""
    scores: dict[str, dict[str, Any]] = {}
    items: list[tuple[str, str, float]] = []
    for key in [key for key in found if "," in key and "_stderr," not in key]:
        metric, kind = key.split(",")
        values = [(sample["doc_id"], sample[metric]) for sample in samples if sample["filter"] == kind]
        stderr = found.get(f"{metric}_stderr,{kind}")
        scores[key] = {
            "value": float(found[key]),
            # lm-eval says "N/A" where it has none, as for a single item.
            "stderr": stderr if isinstance(stderr, float) else None,
            "n": len(values),
            "higher_is_better": better.get(metric) is not False,
        }
        # A list is of what an item asks for in several places; its mean is over these, and not over items.
        items += [(key, str(item), float(value)) for item, value in values if isinstance(value, (int, float))]
    return scores, items


def log_rows(name: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row an item. lm-eval logs an item once for each of the task's filters."""
    rows: dict[Any, dict[str, Any]] = {}
    for sample in samples:
        item = sample["doc_id"]
        row = rows.setdefault(item, {"task": name, "item": str(item), **asked_and_answered(sample)})
        metrics = {key: sample[key] for key in sample["metrics"]}
        kind = "" if sample["filter"] == "none" else f",{sample['filter']}"
        row["scores"] |= {f"{key}{kind}": value for key, value in metrics.items()}
        if row["logps"] is None:
            row["extracted"][sample["filter"]] = sample["filtered_resps"][0]
    for row in rows.values():
        row["scores"] = json.dumps(row["scores"], default=float)
        row["extracted"] = json.dumps(row["extracted"], default=str) if row["extracted"] else None
    return list(rows.values())


def asked_and_answered(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the target, and the model's answer or the log-probability of each choice."""
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
