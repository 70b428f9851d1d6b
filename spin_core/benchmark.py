"""Phase `benchmark`: lm-eval's tasks on one model. Suite `lm-eval`.

A task's score bears the task's name: normalised accuracy where lm-eval gives one, its first metric otherwise. Its
other metrics follow as `task/metric`. `items.parquet` has one row for each item and score, so that versions can be
compared item by item. A task that is finished is kept, so a run that was killed goes on with the next one.
"""

import difflib
import importlib.metadata
import json
import logging
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_core import local_tasks, store
from spin_core.config import LmEvalConfig
from spin_core.errors import ConfigError, DataError
from spin_core.generate import seed_of
from spin_core.jobs import BenchmarkJob
from spin_core.models import first_line, load_model, load_tokenizer
from spin_core.phase import Progress, main
from spin_core.records import EvalReport

log = logging.getLogger("spin_core")

FEWSHOT_SEED = 1234
"""lm-eval's own default, so that the examples in a prompt are those of other people's scores."""

BOOTSTRAPS = 1000
"""Resamples for the error of a metric that is no mean."""

ITEMS = pa.schema([("task", pa.string()), ("item", pa.string()), ("value", pa.float64())])


class Harness(HFLM):  # type: ignore[misc]
    """lm-eval's view of a model. Items longer than the model's context lose their beginning, and are counted."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | str) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.cut = 0
        self.asked = 0

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        fitting = []
        for text, context, continuation in requests:
            # lm-eval itself refuses a continuation that is longer than the model's context.
            kept = continuation[-self.max_length :]
            before = context[-(self.max_length + 1 - len(kept)) :]
            self.cut += len(before) + len(kept) < len(context) + len(continuation)
            fitting.append((text, before, kept))
        self.asked += len(requests)
        return super()._loglikelihood_tokens(fitting, *args, **kwargs)


def run(job: BenchmarkJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Run every task that no hidden file in `scratch` holds the result of yet."""
    config = job.config.lm_eval
    names = list(dict.fromkeys(config.tasks))
    progress.start(len(names), "task")
    with tempfile.TemporaryDirectory(prefix="spin-benchmark-") as folder:
        manager, notes = task_manager(config, names, Path(folder))
        harness: Harness | None = None
        results = []
        for done, name in enumerate(names, start=1):
            kept = scratch / f".{name}.json"
            if not kept.exists():
                harness = harness or start(job)
                store.write_json(kept, run_task(name, manager, harness, config, job.seed))
            results.append(json.loads(kept.read_text("utf-8")))
            progress.tell(done)
    items = [item for result in results for item in result["items"]]
    columns: tuple[Sequence[Any], ...] = tuple(zip(*items, strict=True)) or ([], [], [])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ITEMS, strict=True)]
    pq.write_table(pa.table(arrays, schema=ITEMS), scratch / "items.parquet")
    notes += [note for result in results for note in result["notes"]]
    for note in notes:
        log.warning("%s", note)
    return {
        "model": job.player.digest,
        "suite": "lm-eval",
        "harness": f"lm-eval {importlib.metadata.version('lm_eval')}",
        "scores": {name: score for result in results for name, score in result["scores"].items()},
        "notes": notes,
    }


def start(job: BenchmarkJob) -> Harness:
    """The model as lm-eval wants it."""
    tokenizer = load_tokenizer(job.player.path, job.model)
    if job.config.lm_eval.apply_chat_template and not tokenizer.chat_template:
        raise ConfigError(
            "evaluate.lm_eval.apply_chat_template is on, but the tokenizer has no chat template: turn it off"
        )
    return Harness(load_model(job.player.path, job.model), tokenizer, job.config.lm_eval.batch_size)


def task_manager(config: LmEvalConfig, names: Sequence[str], folder: Path) -> tuple[Any, list[str]]:
    """What knows the tasks, and notes about their rows. Local rows are written to `folder`, and no hub is asked."""
    if config.local_data is None:
        manager = TaskManager()
        for name in names:
            if name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, n=3)
                raise ConfigError(
                    f"evaluate.lm_eval.tasks names {name!r}, which lm-eval does not know: "
                    + (f"did you mean {', '.join(near)}?" if near else "see `lm-eval ls tasks`")
                )
        return manager, []
    if not config.local_data.is_dir():
        raise ConfigError(f"evaluate.lm_eval.local_data {config.local_data} is no folder: give one, or unset it")
    go_offline()
    notes = local_tasks.write(names, config.local_data, folder)
    return TaskManager(include_path=str(folder), include_defaults=False), notes if config.num_fewshot else []


def go_offline() -> None:
    """Keep this process from asking the hub, whose settings are read when its library is imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True


def run_task(name: str, manager: Any, harness: Harness, config: LmEvalConfig, seed: int) -> dict[str, Any]:
    """Scores, items and notes of one task or group."""
    try:
        loaded = manager.load([name])
    except OSError as error:
        raise DataError(
            f"the rows of {name} did not come from the hub ({first_line(error)}): connect to it, or set "
            "evaluate.lm_eval.local_data to a folder with the rows"
        ) from error
    chosen = {}
    for task_name, task in loaded["tasks"].items():
        set_fewshot(task, config.num_fewshot)
        rows = len(task.eval_docs)
        if config.limit is not None and config.limit < rows:
            chosen[task_name] = subset(rows, config.limit, seed, task_name)
    harness.cut = harness.asked = 0
    results = evaluate(
        lm=harness,
        task_dict=loaded,
        samples=chosen or None,
        bootstrap_iters=BOOTSTRAPS,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.apply_chat_template,
    )
    notes = []
    if harness.cut:
        notes.append(
            f"{name}: {harness.cut} of {harness.asked} prompts are longer than the model's context of "
            f"{harness.max_length} tokens, and lost their beginning"
        )
    scores, items = outcome(name, results, list(loaded["tasks"]))
    return {"scores": scores, "items": items, "notes": notes}


def set_fewshot(task: Any, count: int | None) -> None:
    """Set the number of examples in the prompt. A task that fixes it at 0 keeps 0, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if own is None or (count is not None and own != 0):
        task.set_config(key="num_fewshot", value=count or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def subset(rows: int, limit: int, seed: int, name: str) -> list[int]:
    """A seeded choice of rows, in order. A smaller choice is part of a larger one."""
    order = list(range(rows))
    random.Random(seed_of(seed, "benchmark", name)).shuffle(order)
    return sorted(order[:limit])


def outcome(
    name: str, results: dict[str, Any], tasks: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, float]]]:
    """Scores by their names, and items, of what lm-eval found for one task or group of tasks."""
    found = results["results"][name]
    metrics = [key for key in found if "," in key and "_stderr," not in key]
    metrics.sort(key=lambda key: key != "acc_norm,none")
    better = results["higher_is_better"].get(name, {})
    scores: dict[str, dict[str, Any]] = {}
    items: list[tuple[str, str, float]] = []
    for place, key in enumerate(metrics):
        metric, kind = key.split(",")
        title = name if place == 0 else f"{name}/{metric if kind == 'none' else kind}"
        values = [
            (title, f"{task}/{sample['doc_id']}" if len(tasks) > 1 else str(sample["doc_id"]), sample[metric])
            for task in tasks
            for sample in results["samples"][task]
            if sample["filter"] == kind and metric in sample
        ]
        stderr = found.get(f"{metric}_stderr,{kind}")
        scores[title] = {
            "value": float(found[key]),
            # lm-eval says "N/A" where it has none, as for a single item.
            "stderr": float(stderr) if isinstance(stderr, float) else 0.0,
            "n": len(values),
            "higher_is_better": better.get(metric) is not False,
        }
        items += [(title, item, float(value)) for title, item, value in values if isinstance(value, (int, float))]
    return scores, items


if __name__ == "__main__":
    main(BenchmarkJob, EvalReport, run)
