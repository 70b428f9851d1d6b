"""Evaluation's speed compared with lm-eval's own command line: `make bench-evaluate`, or this file.

A small Llama of single characters (random, float32), the same real rows, the same items, the same batches, one thread
for each way; the two that are compared take turns, and the best of their rounds counts.

    lm-eval's command line    `lm-eval run --log_samples`, with the same definitions and items as the phase here
    our phase                 a process as tasks start it, until its record is published
    a second lineage          the same model in another lineage: all of it is known by then
    vLLM                      the same phase on the other engine, in its own environment

`working` is from the first task's contexts until the process has written everything; `before` is what came until then
(imports, lm-eval's index of all its tasks, the model), and both are wall time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

DATA = Path(os.environ.get("SPIN_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TASKS = {"arc_easy": 60, "winogrande": 100, "gsm8k": 16}
"""Items of each."""
SHOTS = 1
BATCH = 16
BEGIN = "Building contexts for"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def make(folder: Path) -> None:
    """The model, with heads as wide as vLLM's kernels want them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.helpers import character_tokenizer

    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def chosen() -> dict[str, list[int]]:
    """The items of each task, by their place in its file."""
    from spin_core.evaluation.task_rows import SINGLE_TASKS, RowsFolder
    from spin_core.evaluation.task_scores import subset

    folder = RowsFolder(DATA)
    rows = {}
    for name, limit in TASKS.items():
        path = folder.find(SINGLE_TASKS[name].file)
        if path is None:
            raise SystemExit(f"there are no rows of {name} below {DATA}: set SPIN_TEST_DATA")
        rows[name] = subset(len(folder.rows(path)), limit, 0, name)
    return rows


def job_of(folder: Path, lineage: str, engine: str) -> Any:
    """Our phase's job."""
    from spin_core.config.generate import VllmConfig, VllmSpeedConfig
    from spin_core.store.evaluation_jobs import BenchmarkConfig, BenchmarkJob, BenchmarkSpeed, BenchmarkTask
    from tests.support.lineages.small_jobs import CPU, version_of

    tasks = [BenchmarkTask(name=name, num_fewshot=SHOTS, limit=limit) for name, limit in TASKS.items()]
    config = BenchmarkConfig(
        suite="lm-eval", tasks=tasks, local_data=DATA, engine=engine,
        vllm=VllmConfig(speed=VllmSpeedConfig(cache_gb=0.5)),
        speed=BenchmarkSpeed(batch_size=BATCH, scores=folder / ".scores"),
    )  # fmt: skip
    player = version_of(folder.parent / "model")
    return BenchmarkJob(output=folder / lineage / "eval" / "lm-eval", config=config, model=CPU, player=player)


def spin_phase(folder: Path, lineage: str, engine: str) -> dict[str, Any]:
    """Our phase."""
    from spin_core.runtime import launch
    from spin_core.store.records import EvalReport

    os.environ.update(ONE_THREAD)
    began, start = time.time(), []
    record = launch.run_phase(
        job_of(folder, lineage, engine),
        EvalReport,
        on_log=lambda line: start.append(time.time()) if BEGIN in line else None,
    )
    ended = time.time()
    begin = start[0] if start else ended
    scores = {name: record.scores[name].value for name in TASKS}
    return {"before": begin - began, "working": ended - begin, "all": ended - began, "scores": scores}


def theirs(folder: Path) -> dict[str, Any]:
    """lm-eval's command line."""
    from spin_core.evaluation import local_tasks

    rows = folder / "rows"
    rows.mkdir()
    local_tasks.write_tasks(list(TASKS), DATA, rows)
    words = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf",
        "--model_args", f"pretrained={folder.parent / 'model'},dtype=float32", "--device", "cpu",
        "--tasks", ",".join(TASKS), "--num_fewshot", str(SHOTS), "--include_path", str(rows),
        "--samples", json.dumps(chosen()), "--batch_size", str(BATCH),
        "--output_path", str(folder / "theirs"), "--log_samples",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_MININTERVAL": "10"}
    surroundings = {**os.environ, **ONE_THREAD, **offline}
    began, start, lines = time.time(), [], []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=surroundings
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if BEGIN in line:
                start.append(time.time())
    ended = time.time()
    if process.returncode or not start:
        raise SystemExit(f"{' '.join(words)} failed:\n{''.join(lines[-30:])}")
    results = json.loads(next((folder / "theirs").rglob("results_*.json")).read_text())["results"]
    scores = {name: main_score(results[name]) for name in TASKS}
    return {"before": start[0] - began, "working": ended - start[0], "all": ended - began, "scores": scores}


def main_score(result: dict[str, Any]) -> float:
    """The score that has the task's name here."""
    keys = [key for key in result if "," in key and "_stderr," not in key]
    return float(result["acc_norm,none" if "acc_norm,none" in keys else keys[0]])


def main() -> None:
    """The command line."""
    from rich.console import Console
    from rich.table import Table

    from spin_core.config.generate import VllmConfig
    from spin_core.runtime import interpreter

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    count = sum(TASKS.values())
    results: dict[str, list[dict[str, Any]]] = {}

    def measure(name: str, found_now: dict[str, Any]) -> None:
        print(name, found_now, file=sys.stderr, flush=True)
        results.setdefault(name, []).append(found_now)

    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch) / "model")
        for number in range(rounds):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            measure("lm-eval's command line", theirs(folder))
            measure("our phase", spin_phase(folder, "first", "transformers"))
        measure("our phase, a second lineage with the same model", spin_phase(folder, "second", "transformers"))
        if interpreter.vllm_python(VllmConfig()).exists():
            measure("our phase with vLLM", spin_phase(folder, "third", "vllm"))
    table = Table(title=f"{count} items of {', '.join(TASKS)}, Llama 0.4m, batches of {BATCH}, one thread")
    for column in ("", "working, s", "ratio", "items/s", "before, s", "all, s", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    best = {
        name: {key: min(run[key] for run in runs) for key in ("before", "working", "all")}
        for name, runs in results.items()
    }
    reference = best["lm-eval's command line"]
    for name, run in best.items():
        is_reused = run["working"] < 0.01
        table.add_row(
            name,
            "–" if is_reused else f"{run['working']:.1f}",
            "–" if is_reused else f"{run['working'] / reference['working']:.3f}",
            "–" if is_reused else f"{count / run['working']:,.1f}",
            f"{run['before']:.1f}", f"{run['all']:.1f}", f"{run['all'] / reference['all']:.2f}",
        )  # fmt: skip
    Console(width=140).print(table)
    same = results["our phase"][0]["scores"] == results["lm-eval's command line"][0]["scores"]
    print(
        "the scores of both are equal"
        if same
        else f"the scores differ: {[runs[0]['scores'] for runs in results.values()]}"
    )


if __name__ == "__main__":
    main()
