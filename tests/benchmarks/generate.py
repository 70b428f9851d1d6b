"""Generation's speed compared with raw engines: `make bench-generate`, or this file with `[--prompts N]`.

One Llama of 15 million parameters (random; float32 unless a row says bfloat16), one set of prompts of mixed lengths,
sampled as the model is, with 250 tokens that end an answer, so that lengths are mixed too. Each way runs alone, one
after the other.

    ours      the whole phase: from when the engine is loaded until the record is published, so shards on disk, texts,
              statistics and digests are in it; what came before (imports, loading) is listed separately
    vLLM      `vllm.LLM.generate` in a bare script, all prompts in one call, without seeds; the call alone is timed
    padded    `generate` of transformers in left-padded batches in the prompts' order, as the paper's code does (16 at a
              time there); the calls alone are timed
    resumed   the phase is killed with half of its shards done, and started again: seconds until it has a new answer
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

VOCABULARY, CONTEXT, NEW_TOKENS, SEED = 32_000, 512, 128, 0
STOPS = list(range(2, VOCABULARY, 128))
"""About one token in 128, so that two answers of three end before they are cut."""
SURROUNDINGS = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}


def make(folder: Path, count: int) -> None:
    """The model and the prompts that all ways answer."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.support.models.bare_model import save_bare_model

    save_bare_model(
        folder / "model", VOCABULARY, SEED, hidden_size=288, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=9, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    lengths = rng.lognormal(np.log(80) - 0.7**2 / 2, 0.7, count).clip(8, 256).astype(int)
    prompts = [rng.integers(5, VOCABULARY, length).tolist() for length in lengths]
    real = [[*rng.integers(5, VOCABULARY, 40).tolist(), 2] for _ in prompts]
    ids = pa.list_(pa.int32())
    columns = {
        "id": [f"{i:016x}" for i in range(count)],
        "prompt_ids": pa.array(prompts, ids),
        "response": ["a human said so"] * count,
        "response_ids": pa.array(real, ids),
        "finish_reason": ["stop"] * count,
    }
    (folder / "prompts").mkdir()
    pq.write_table(pa.table(columns), folder / "prompts" / "train.parquet")
    (folder / "prompts.json").write_text(json.dumps(prompts))


def job_of(folder: Path, name: str, dtype: str = "float32", **config: Any) -> Any:
    """The phase's job."""
    from spin_core.config.generate import GenerateConfig
    from spin_core.store import identity
    from spin_core.store.jobs import GenerateJob
    from spin_core.store.records import PromptSet
    from tests.support.lineages.small_jobs import CPU, version_of

    path = folder / "prompts"
    prompts = PromptSet(
        path=path, digest=identity.digest_folder(path)[0], source="random", revision=None, rows=0, held_out=0, drops={},
        stop_ids=STOPS,
    )  # fmt: skip
    return GenerateJob(
        output=folder / name / "generations", t=0, config=GenerateConfig(max_new_tokens=NEW_TOKENS, **config),
        model=CPU.model_copy(update={"dtype": dtype}), opponent=version_of(folder / "model"), prompts=prompts,
    )  # fmt: skip


def spin_phase(folder: Path, name: str, **config: Any) -> dict[str, float]:
    """Our whole phase, started as tasks start it."""
    from spin_core.runtime import launch
    from spin_core.store.records import GenerationBatch

    job, loaded = job_of(folder, name, **config), []
    began = time.time()
    record = launch.run_phase(
        job, GenerationBatch, on_log=lambda line: loaded.append(time.time()) if "answering with" in line else None
    )
    published = (record.path / "manifest.json").stat().st_mtime
    return {"tokens": record.tokens, "seconds": published - loaded[0], "load": loaded[0] - began}


def resumed(folder: Path, name: str, **config: Any) -> dict[str, float]:
    """The phase killed with half of its shards done; seconds from its new start to its first new answer."""
    from spin_core.runtime import launch
    from spin_core.store.records import GenerationBatch

    job = job_of(folder, name, **config)
    total = len(json.loads((folder / "prompts.json").read_text()))
    path = launch.write_job(job)
    process = subprocess.Popen(
        launch.command(path, "generate"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("done", 0) >= 0.55 * total:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = sum(1 for _ in job.output.parent.glob(".generations.partial/shard-*.parquet")) * config["shard_size"]
    began, first = time.time(), []
    launch.run_phase(
        job,
        GenerationBatch,
        on_progress=lambda message: first.append(time.time()) if message["done"] > kept else None,
    )
    return {"resumed": first[0] - began, "kept": kept}


def bare(folder: Path) -> dict[str, float]:
    """`vllm.LLM.generate`, as the bare script that it is."""
    prompts = json.loads((folder / "prompts.json").read_text())
    began = time.time()
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(folder / "model"), dtype="float32", enforce_eager=True, kv_cache_memory_bytes=2 * 2**30)
    loaded = time.time()
    parameters = SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, stop_token_ids=STOPS)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
    ended = time.time()
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"tokens": tokens, "seconds": ended - loaded, "load": loaded - began}


def padded(folder: Path, rows: int) -> dict[str, float]:
    """transformers' own `generate`, batch by batch."""
    prompts = json.loads((folder / "prompts.json").read_text())
    began = time.time()
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    loaded, tokens = time.time(), 0
    stops = torch.tensor(STOPS)
    for first in range(0, len(prompts), rows):
        batch = prompts[first : first + rows]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(ids_of_prompt)) + ids_of_prompt for ids_of_prompt in batch])
        mask = torch.tensor([[0] * (width - len(ids_of_prompt)) + [1] * len(ids_of_prompt) for ids_of_prompt in batch])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=NEW_TOKENS, eos_token_id=STOPS, pad_token_id=0,
            )  # fmt: skip
        for answer in whole[:, width:]:
            ends = torch.isin(answer, stops).nonzero()
            tokens += int(ends[0]) + 1 if len(ends) else len(answer)
    return {"tokens": tokens, "seconds": time.time() - loaded, "load": loaded - began}


def elsewhere(python: str, *arguments: str, **surroundings: str) -> dict[str, float]:
    """A measurement in its own process and environment."""
    done = subprocess.run(
        [python, __file__, "--way", *arguments],
        capture_output=True, text=True, check=False, env={**SURROUNDINGS, **surroundings},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    # vLLM logs there too, also after the result.
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"tokens"')]
    result: dict[str, float] = json.loads(line)
    return result


def measurements_of(folder: Path, count: int) -> dict[str, tuple[str, Callable[[], dict[str, float]]]]:
    """Every row of the table: what its ratio is to, and what measures it."""
    from spin_core.config.generate import VllmConfig
    from spin_core.runtime import interpreter

    vllm, here, path = str(interpreter.vllm_python(VllmConfig())), sys.executable, str(folder)
    size, quarter = max(1, count), max(1, count // 4)
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    plain = {"engine": "transformers", "shard_size": size}
    measurements: dict[str, tuple[str, Callable[[], dict[str, float]]]] = {
        "vllm.LLM.generate": ("", lambda: elsewhere(vllm, "bare", path)),
        "vllm.LLM.generate, engine in the same process": (
            "vllm.LLM.generate", lambda: elsewhere(vllm, "bare", path, **alone),
        ),
        "our phase with vLLM": (
            "vllm.LLM.generate", lambda: spin_phase(folder, "vllm", engine="vllm", shard_size=size),
        ),
        "transformers, padded, 16 at a time": ("", lambda: elsewhere(here, "padded", path, "16")),
        "transformers, padded, 32": (
            "transformers, padded, 16 at a time", lambda: elsewhere(here, "padded", path, "32"),
        ),
        "transformers, padded, 128": (
            "transformers, padded, 16 at a time", lambda: elsewhere(here, "padded", path, "128"),
        ),
        "our phase with transformers, 32 (the default)": (
            "transformers, padded, 16 at a time", lambda: spin_phase(folder, "32", batch_size=32, **plain),
        ),
        "our phase with transformers, 128": (
            "transformers, padded, 128", lambda: spin_phase(folder, "128", batch_size=128, **plain),
        ),
        "our phase with transformers, 32, bfloat16": (
            "our phase with transformers, 32 (the default)",
            lambda: spin_phase(folder, "half", batch_size=32, dtype="bfloat16", **plain),
        ),
        "our phase with vLLM, bfloat16": (
            "our phase with vLLM",
            lambda: spin_phase(folder, "vllm-half", engine="vllm", shard_size=size, dtype="bfloat16"),
        ),
        "one worker, four shards": (
            "", lambda: spin_phase(folder, "one", engine="transformers", shard_size=quarter),
        ),
        "two workers, four shards": (
            "one worker, four shards",
            lambda: spin_phase(folder, "two", engine="transformers", shard_size=quarter, speed={"workers": 2}),
        ),
        "resumed after kill -9, transformers": (
            "", lambda: resumed(folder, "killed", engine="transformers", shard_size=quarter),
        ),
        "resumed after kill -9, vLLM": (
            "", lambda: resumed(folder, "killed-vllm", engine="vllm", shard_size=quarter),
        ),
    }  # fmt: skip
    return measurements


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--way"]:
        _, _, name, folder, *rest = sys.argv
        result = bare(Path(folder)) if name == "bare" else padded(Path(folder), *map(int, rest))
        print("\n" + json.dumps(result), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--only", action="append", help="a part of a way's name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, given.prompts)
        table = Table(
            title=f"{given.prompts} prompts of 8 to 256 tokens, at most {NEW_TOKENS} new ones, Llama 15m, CPU"
        )
        for column in ("", "tokens", "seconds", "tokens/s", "ratio", "before, s"):
            table.add_column(column, justify="left" if not column else "right")
        speeds: dict[str, float] = {}
        for name, (reference, measure) in measurements_of(folder, given.prompts).items():
            if given.only and not any(part in name for part in given.only):
                continue
            result = measure()
            print(name, result, file=sys.stderr, flush=True)
            if "resumed" in result:
                table.add_row(name, f"{result['kept']:.0f} answers kept", "", "", "", f"{result['resumed']:.1f}")
                continue
            speeds[name] = result["tokens"] / result["seconds"]
            ratio = f"{speeds[name] / speeds[reference]:.2f}" if reference in speeds else ""
            table.add_row(
                name, f"{result['tokens']:,.0f}", f"{result['seconds']:.1f}", f"{speeds[name]:,.0f}", ratio,
                f"{result['load']:.1f}",
            )  # fmt: skip
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
