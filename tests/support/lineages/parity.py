"""The same rows for lm-eval's own tasks, as data sets of the hub's shape, and for the local form of these tasks."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import tests.support.helpers  # noqa: F401 (keeps libraries from the network)
from spin_core.data.tokenizer import load_tokenizer
from spin_core.evaluation import local_tasks
from spin_core.models.files import save_model
from spin_core.models.loading import load_model
from spin_core.phases.benchmark import run
from spin_core.runtime import phase, progress
from spin_core.store.evaluation_jobs import BenchmarkConfig, BenchmarkJob, BenchmarkSpeed, BenchmarkTask
from spin_core.store.records import EvalReport
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.small_jobs import CPU, version_of


@dataclass(frozen=True)
class Rows:
    """Rows of one split: of the plain file, and of the hub."""

    file: str
    split: str
    plain: list[dict]
    hub: list[dict]


@dataclass(frozen=True)
class ParityTask:
    """A task: the number of examples in its prompt, lm-eval's definition, and rows."""

    shots: int | None
    definition: str
    rows: list[Rows]


Tasks = Mapping[str, ParityTask]


def write_plain(tasks: Tasks, folder: Path) -> None:
    """Rows as `evaluate.lm_eval.local_data` has them."""
    for task in tasks.values():
        for rows in task.rows:
            with (folder / f"{rows.file}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows.plain)


def write_hub(tasks: Tasks, folder: Path) -> None:
    """Rows as data sets of the hub's shape, and lm-eval's own definitions with no change but where those lie."""
    for name, task in tasks.items():
        path = local_tasks.definitions() / f"{task.definition}.yaml"
        data = folder / "data" / name
        write_data_set(
            data, {plain_setting(path, "dataset_name") or "default": {rows.split: rows.hub for rows in task.rows}}
        )
        where = {"dataset_path": str(data), "dataset_kwargs": {"cache_dir": str(folder / "cache")}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"include": str(path), **where}))
    for path in (local_tasks.definitions() / "mmlu" / "default").glob("_mmlu*.yaml"):
        shutil.copy(path, folder)


def write_data_set(folder: Path, parts: Mapping[str, Mapping[str, list[dict]]]) -> None:
    """A data set as the hub has it: rows by split, by the name of a part, and a card with their paths.

    `datasets` knows such a folder by its name and its card alone: what it keeps in a cache must not outlive the rows.
    """
    configs = []
    for part, splits in parts.items():
        (folder / part).mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / part / f"{split}.parquet")
        files = [{"split": split, "path": f"{part}/{split}.parquet"} for split in splits]
        configs.append({"config_name": part, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def plain_setting(path: Path, key: str) -> str | None:
    """A plain setting of a definition or of what it includes."""
    settings: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        settings[name.strip().strip('"')] = value.strip().strip('"')
    if key in settings:
        return None if settings[key] == "null" else settings[key]
    return plain_setting(path.parent / settings["include"], key) if "include" in settings else None


def save_ending_model(first: Path, folder: Path, context: int = 6000) -> Path:
    """A tiny model whose answers end; by default its context has room for the examples of BBH."""
    tokenizer = character_tokenizer()
    network = load_model(save_tiny_model(first, tokenizer), CPU)
    network.config.max_position_embeddings = context
    with torch.no_grad():
        network.lm_head.weight[tokenizer.eos_token_id] *= 4
    save_model(network, tokenizer, folder)
    return folder


def task_names(tasks: Iterable[str]) -> list[str]:
    """Tasks by the names to ask for: MMLU's subjects as their group."""
    return list(dict.fromkeys("mmlu" if name.startswith("mmlu_") else name for name in tasks))


def score_local(tasks: Tasks, folder: Path, model: Path) -> EvalReport:
    """The report on the local form of all tasks."""
    write_plain(tasks, folder)
    shots = {group: task.shots for name, task in tasks.items() for group in task_names([name])}
    config = BenchmarkConfig(
        suite="lm-eval",
        tasks=[BenchmarkTask(name=name, num_fewshot=count) for name, count in shots.items()],
        local_data=folder,
        speed=BenchmarkSpeed(batch_size=4, scores=folder / ".scores"),
    )
    job = BenchmarkJob(output=folder / "lm-eval", config=config, model=CPU, player=version_of(model))
    return phase.execute(job, EvalReport, run, progress.Progress())


def score_with_lm_eval(tasks: Tasks, folder: Path, model: Path) -> dict[str, dict]:
    """What lm-eval itself gives for its own tasks: `results` and `samples`."""
    write_hub(tasks, folder)
    merged: dict[str, dict] = {"results": {}, "samples": {}}
    network = HFLM(pretrained=load_model(model, CPU), tokenizer=load_tokenizer(model, CPU), batch_size=4)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    by_shots: dict[int | None, list[str]] = {}
    for name, task in tasks.items():
        by_shots.setdefault(task.shots, []).append(name)
    for shots, names in by_shots.items():
        results = simple_evaluate(
            model=network,
            tasks=sorted(task_names(names)),
            num_fewshot=shots,
            task_manager=manager,
            bootstrap_iters=1000,
        )
        for part, values in merged.items():
            values |= results[part]
    return merged


def local_samples(report: EvalReport, task: str) -> dict[int, dict]:
    """A task's samples by item."""
    rows = pq.read_table(report.path / "samples.parquet", filters=[("task", "=", task)]).to_pylist()
    return {int(row["item"]): row for row in rows}


def assert_same_items(local_rows: Mapping[int, Mapping], samples: Iterable[Mapping]) -> None:
    """Our samples by item say what lm-eval's do: the same requests, answers and values."""
    assert len(local_rows) == len({sample["doc_id"] for sample in samples}) >= 1
    for sample in samples:
        row = local_rows[sample["doc_id"]]
        choices = row["choices"] or [""]
        requests = [request[0] + (request[1] if row["choices"] else "") for request in sample["arguments"]]
        assert [row["prompt"] + choice for choice in choices] == requests
        if row["choices"]:
            assert row["logps"] == pytest.approx([answers[0][0] for answers in sample["resps"]], abs=1e-4)
        else:
            assert row["answer"] == sample["resps"][0][0]
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        scores = json.loads(row["scores"])
        for key in sample["metrics"]:
            assert scores[key + suffix] == (
                sample[key] if isinstance(sample[key], list) else pytest.approx(sample[key], abs=1e-6)
            )
