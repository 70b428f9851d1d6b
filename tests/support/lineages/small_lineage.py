"""A lineage of two iterations of `demo` with chosen numbers, published through the real store without any model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.config.resolve import resolve
from spin_core.config.run import RunConfig
from spin_core.data.answer_statistics import answer_statistics
from spin_core.evaluation.items import mean
from spin_core.leaderboard import board, gate
from spin_core.lineage import history, phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.store import artifacts, lock
from spin_core.store.files import json_values
from spin_core.store.identity import identity_of
from spin_core.store.jobs import Job
from spin_core.store.records import (
    EvalReport,
    GenerationBatch,
    IterationArtifacts,
    ModelVersion,
    PairDataset,
    PromptSet,
    Score,
    ScoredPairs,
    TrainRun,
)

NLLS = ((2.0, 3.0, 4.0, 5.0) * 2, (1.5, 2.4, 3.6, 4.5) * 2, (1.4, 2.4, 3.5, 4.3) * 2)
"""`heldout_nll` of θ_0, θ_1, θ_2 on eight held-out items."""

USAGE = {"seconds": 1.5, "peak_memory_mb": 100.0, "environment": {"python": "3.11", "device": "CPU x86_64"}}

PROMPTS = ["tell me a story", "<b>bold</b> | *stars*\nand a new line", "one", "two"]


def json_lines(values: Sequence[Any]) -> bytes:
    """Values as JSON, one a line."""
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def publish(
    folder: Path, job: Job | Mapping[str, Any], files: Mapping[str, Any], fields: Mapping[str, Any], kind: Any
) -> Any:
    """Publish files (bytes, or columns of a Parquet file) as the phase of a job would, or under a given identity."""
    identity = identity_of(job) if isinstance(job, Job) else job
    scratch = folder.with_name(f".{folder.name}.partial")
    for name, content in files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(pa.table(content), path)
    return artifacts.publish(scratch, folder, identity, fields, kind, usage=USAGE)


def report(
    folder: Path,
    model: str,
    values: Sequence[float],
    answer: str = "yes",
    sources: Sequence[str] = (),
    **scores: Score,
) -> EvalReport:
    """A published self-play report with one value an item for `heldout_nll`, and an answer to each of `PROMPTS`.

    `sources` are the sources of the items, if there are several.
    """
    n = len(values)
    stderr = float(np.std(values, ddof=1) / np.sqrt(n))
    items = {"task": ["heldout_nll"] * n, "item": [str(i) for i in range(n)], "value": [float(v) for v in values]}
    answered = min(n, len(PROMPTS))
    held_out = {
        "id": [str(i) for i in range(answered)],
        "prompt": [PROMPTS[i % len(PROMPTS)] for i in range(answered)],
        "real": ["a human said so"] * answered,
        "generated": [f"{answer} {i}" for i in range(answered)],
        "real_ids": [[5, 6, 0]] * answered,
        "generated_ids": [[7, i] for i in range(answered)],
        "finish_reason": ["stop", *["length"] * (answered - 1)],
    }
    nll = Score(value=float(np.mean(values)), stderr=stderr, n=n, higher_is_better=False)
    source_N = np.array(sources)
    by_source = {
        name: {"heldout_nll": json_values(mean(np.array(values, np.float64)[source_N == name], "heldout_nll"))}
        for name in sorted(set(sources))
    }
    fields = {
        "model": model,
        "suite": "self-play",
        "harness": "by hand",
        "scores": {"heldout_nll": json_values(nll), **{name: json_values(score) for name, score in scores.items()}},
        **({"by_source": by_source} if sources else {}),
    }
    files = {"items.parquet": items, "held_out.parquet": held_out}
    return publish(folder, {"model": model}, files, fields, EvalReport)


def suite_report(
    folder: Path,
    model: str,
    tasks: Mapping[str, Sequence[float]],
    averages: Mapping[str, Sequence[str]] = {},
    higher_is_better: bool = True,
    notes: Sequence[str] = (),
    apart: str = "",
) -> EvalReport:
    """A published report of a benchmark, named after its folder, with single items for every task."""
    scores = {}
    for task, values in tasks.items():
        stderr = float(np.std(values, ddof=1) / np.sqrt(len(values)))
        scores[task] = {"value": float(np.mean(values)), "stderr": stderr, "n": len(values)}
    for name, parts in averages.items():
        stderr = float(np.sqrt(sum(scores[part]["stderr"] ** 2 for part in parts)) / len(parts))
        value = float(np.mean([scores[part]["value"] for part in parts]))
        scores[name] = {"value": value, "stderr": stderr, "n": sum(scores[part]["n"] for part in parts)}
    rows = [(task, str(place), float(value)) for task, values in tasks.items() for place, value in enumerate(values)]
    columns = dict(zip(("task", "item", "value"), map(list, zip(*rows, strict=True)), strict=True))
    fields = {
        "model": model,
        "suite": folder.name,
        "harness": "lm-eval by hand",
        "scores": {name: score | {"higher_is_better": higher_is_better} for name, score in scores.items()},
        "averages": {name: tuple(parts) for name, parts in averages.items()},
        "notes": tuple(notes),
        "apart": apart,
    }
    return publish(folder, {"model": model}, {"items.parquet": columns}, fields, EvalReport)


def prompt_columns(texts: Sequence[str]) -> dict[str, Any]:
    """Columns of a file of prompts with a single question each, all with the same human response."""
    n = len(texts)
    return {
        "id": [str(i) for i in range(n)],
        "prompt": list(texts),
        "messages": [json.dumps([{"role": "user", "content": text}]) for text in texts],
        "response": ["human"] * n,
        "prompt_ids": [[1, 2]] * n,
        "response_ids": [[3, 0]] * n,
        "finish_reason": ["stop"] * n,
    }


def demo_config(*sets: str) -> RunConfig:
    """The recipe `demo`, gated by the only score that versions have here, with other settings as a test needs."""
    return resolve(
        "demo",
        sets=["evaluate.main_metric=heldout_nll", "evaluate.frontier=[]", "train.beta=0.1", "controls={}", *sets],
    )


def build_lineage(
    runs: Path,
    name: str = "tale",
    nlls: Sequence[Sequence[float]] = NLLS,
    sets: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> Lineage:
    """A lineage with one iteration for each version after the first.

    `sources` are the sources of the held-out prompts, one for each value, if there are several.
    """
    with lock.locked(runs / name):
        lineage = start_lineage(runs, name, demo_config(*sets))
    untrained = phase_jobs.base_job(lineage)
    init = publish(untrained.output, untrained, {"model.safetensors": b"none"}, {"t": 0, "parent": None}, ModelVersion)
    rows, held_out_rows = prompt_columns(["one", "two"]), prompt_columns(PROMPTS)
    if sources:
        held_out_rows = prompt_columns([f"ask {i}" for i in range(len(sources))]) | {"source": list(sources)}
    job = phase_jobs.prompts_job(lineage, init)
    counts = {"source": "demo", "revision": None, "rows": 2, "held_out": 4, "drops": {"too long": 1}}
    prompts = publish(job.output, job, {"train.parquet": rows, "held_out.parquet": held_out_rows}, counts, PromptSet)
    sft = phase_jobs.sft_job(lineage, init, prompts)
    opponent = publish(sft.weights, sft, {"model.safetensors": b"zero"}, {"t": 0, "parent": None}, ModelVersion)
    accuracy = Score(value=0.75, stderr=0.02, n=4, higher_is_better=None)
    reports = {0: (report(lineage.eval_folder(0) / "self-play", opponent.digest, nlls[0], "early", sources),)}
    previous = None
    for t in range(len(nlls) - 1):
        job = phase_jobs.generate_job(lineage, t, opponent, prompts)
        fields = {"t": t, "opponent": opponent.digest, "rows": 2, "shards": 1, "tokens": 20}
        answers = {
            "id": ["0", "1"],
            "response": [f"{t}", "b"],
            "response_ids": [[4], [5] * 19],
            "finish_reason": ["length", "stop"],
        }
        statistics = answer_statistics([pa.table(rows)], [pa.table(answers)], rows=2)
        generations = publish(
            job.output,
            job,
            {"shard-00000.parquet": answers},
            {**fields, "finish_reasons": {"stop": 1, "length": 1}, "statistics": json_values(statistics)},
            GenerationBatch,
        )
        job = phase_jobs.pairs_job(lineage, t, prompts, generations, previous)
        drops, mix = {"empty": 1, "looping": 0}, {str(t): 1}
        fields = {"t": t, "rows_in": 2, "rows": 1, "drops": drops, "mix": mix}
        columns = {
            "id": ["0"],
            "t": pa.array([t], pa.int32()),
            "prompt": ["one"],
            "messages": ["[]"],
            "real": ["human"],
            "generated": [f"{t}"],
            "prompt_ids": [[1, 2]],
            "real_ids": [[3, 0]],
            "generated_ids": [[4]],
            "real_finish": ["stop"],
            "generated_finish": ["length"],
        }
        pairs = publish(job.output, job, {"pairs.parquet": columns}, fields, PairDataset)
        job = phase_jobs.score_job(lineage, t, opponent, pairs)
        fields = {"pairs": pairs.digest, "opponent": opponent.digest}
        logps = {"real_logps": [-float(t)], "generated_logps": [-1.0]}
        scores = publish(job.output, job, {"logps.parquet": logps}, fields, ScoredPairs)
        job = phase_jobs.train_job(lineage, t, opponent, pairs, scores)
        weights = {"model.safetensors": f"weights {t + 1}".encode()}
        player = publish(job.weights, job, weights, {"t": t + 1, "parent": opponent.digest}, ModelVersion)
        steps = [
            {"step": 1, "loss": 0.693, "rewards/accuracies": 0.5},
            {"step": 2, "loss": 0.6, "rewards/accuracies": 0.9},
        ]
        training = publish(
            job.output,
            job,
            {
                "metrics.jsonl": json_lines(steps),
                "log/timing.jsonl": json_lines([{"step": 1, "seconds": 0.5, "tokens": 7}] * 2),
            },
            {"t": t, "model": player.digest, "steps": 2, "first_loss": 0.6931, "metrics": {"loss": 0.6}},
            TrainRun,
        )
        folder = lineage.eval_folder(t + 1) / "self-play"
        reports[t + 1] = (report(folder, player.digest, nlls[t + 1], f"late {t}", sources, reward_accuracy=accuracy),)
        best = gate.best(lineage.config, reports, t)
        decision = gate.decide(lineage.config, candidate=(t + 1, reports[t + 1]), best=best)
        artifacts_of_iteration = IterationArtifacts(
            prompts=prompts,
            opponent=opponent,
            generations=generations,
            pairs=pairs,
            scores=scores,
            train=training,
            player=player,
            evaluations=reports[t + 1],
            gate=decision,
        )
        history.record_iteration(lineage, t, artifacts_of_iteration)
        opponent, previous = player, generations
    board.save(lineage)
    return lineage
