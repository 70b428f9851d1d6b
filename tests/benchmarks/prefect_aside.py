"""An iteration, and shards, with Prefect and without: parts of `operate.py`, each in an interpreter of its own.

Prints what it found as one line of JSON. The lineage is `bench`, in the folder that is named.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHARDS = 200
THREADS = 8
WARM_SECONDS = 5.0
"""After this many seconds the process that preloads for the first phase is ready, as it is between two iterations."""
PHASES = {
    "generations": "generations",
    "pairs": "pairs",
    "scores": "scores",
    "train": "train",
    "eval/self-play": "evaluations",
}
"""What an iteration's phases publish, in order, and where its record has it. Training publishes `model` too."""


def job_files(root: Path, t: int) -> list[Path]:
    """The job files of an iteration."""
    folders = [root / f"iter_{t:02d}" / name for name in PHASES]
    return [folder.parent / "jobs" / f"{folder.name}.json" for folder in folders]


def digests(root: Path, t: int) -> list[str]:
    """Of what an iteration's phases published."""
    paths = (root / f"iter_{t:02d}" / name / "manifest.json" for name in (*PHASES, "model"))
    return [json.loads(path.read_text("utf-8"))["record"]["digest"] for path in paths]


def forget(root: Path, t: int) -> None:
    """Remove what an iteration's phases published. Their job files stay."""
    for name in (*PHASES, "model"):
        shutil.rmtree(root / f"iter_{t:02d}" / name)


def lines(runs: Path, number: str) -> dict[str, float]:
    """Run an iteration again by its phases' command lines: `python -m spin_core.phases.<phase> job.json`."""
    root, t = runs / "bench", int(number)
    before = digests(root, t)
    forget(root, t)
    began = time.monotonic()
    for path in job_files(root, t):
        phase = json.loads(path.read_text("utf-8"))["phase"]
        words = [sys.executable, "-m", f"spin_core.phases.{phase}", str(path)]
        subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    seconds = time.monotonic() - began
    assert digests(root, t) == before, "equal jobs have equal results"
    return {"phases": seconds}


def aside(runs: Path, number: str) -> dict[str, float]:
    """An iteration's phases as tasks have them done, and its pages as they are published, without Prefect."""
    from pydantic import TypeAdapter

    from spin_core.leaderboard import board
    from spin_core.lineage.find import find_lineage
    from spin_core.reports import html, markdown
    from spin_core.runtime import launch
    from spin_core.runtime.warm import warm_process
    from spin_core.store.evaluation_jobs import EvaluateJob
    from spin_core.store.jobs import GenerateJob, PairsJob, ScoreJob, TrainJob
    from spin_core.store.records import EvalReport, GenerationBatch, PairDataset, ScoredPairs, TrainRun

    lineage, t = find_lineage(runs, "bench"), int(number)
    record = lineage.records()[t]
    job: TypeAdapter[Any] = TypeAdapter(GenerateJob | PairsJob | ScoreJob | TrainJob | EvaluateJob)
    jobs = [job.validate_json(path.read_text("utf-8")) for path in job_files(lineage.root, t)]
    kinds = [GenerationBatch, PairDataset, ScoredPairs, TrainRun, EvalReport]
    forget(lineage.root, t)
    with warm_process.enabled():
        warm_process.prepare()
        time.sleep(WARM_SECONDS)
        began = time.monotonic()
        for job, kind in zip(jobs, kinds, strict=True):
            launch.run_phase(job, kind)
        phases = time.monotonic() - began
    began = time.monotonic()
    standing = board.save(lineage)
    html.write(lineage, board=standing)
    markdown.leaderboard_page(standing, lineage.config)
    markdown.iteration_page(lineage, record)
    return {"phases": phases, "pages": time.monotonic() - began}


def shards(runs: Path) -> dict[str, float]:
    """The task that generates, and the phase within it: shards of a few prompts, with answers of one token."""
    from prefect import flow

    from spin_core.lineage.find import find_lineage
    from spin_core.lineage.lineage import Lineage
    from spin_core.runtime import launch
    from tasks.generate import answer

    lineage = find_lineage(runs, "bench")
    first = lineage.records()[0]
    changed = {"shard_size": -(-first.prompts.rows // SHARDS), "max_new_tokens": 1}
    config = lineage.config.model_copy(update={"generate": lineage.config.generate.model_copy(update=changed)})
    small = Lineage(lineage.runs, "shards", config)
    seconds: dict[str, float] = {}
    run_phase = launch.run_phase

    def timed(*given: Any, **named: Any) -> Any:
        began = time.monotonic()
        record = run_phase(*given, **named)
        seconds["phase"] = time.monotonic() - began
        return record

    launch.run_phase = timed

    @flow(name="bench-shards", persist_result=False)
    def generation() -> None:
        began = time.monotonic()
        seconds["shards"] = answer(small, 0, first.opponent, first.prompts, ()).shards
        seconds["task"] = time.monotonic() - began

    generation()
    return seconds


def tasks(runs: Path) -> dict[str, float]:
    """A task for each shard, over threads, each of which leaves a file; and the same calls without Prefect."""
    from concurrent.futures import ThreadPoolExecutor

    from prefect import flow
    from prefect.task_runners import ThreadPoolTaskRunner

    from spin_core.inference import workers
    from tasks.generate import join

    workers.join_generation = Path.touch
    paths = [runs / "tasks" / f"{number}" for number in range(SHARDS)]
    paths[0].parent.mkdir()

    @flow(name="bench-tasks", persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=THREADS))
    def mapped() -> float:
        began = time.monotonic()
        join.map(paths).result()
        return time.monotonic() - began

    prefect = mapped()
    assert all(path.exists() for path in paths)
    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(Path.touch, paths))
    return {"prefect": prefect, "plain": time.monotonic() - began}


if __name__ == "__main__":
    from flows.server import local

    _, what, folder, *rest = sys.argv
    local.prepare(Path(folder), quiet=True)
    measurements = {"lines": lines, "aside": aside, "shards": shards, "tasks": tasks}
    print(json.dumps(measurements[what](Path(folder), *rest)))
