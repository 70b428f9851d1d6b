"""Training's speed and memory compared with TRL's: `make bench-train`, or `python tests/benchmarks/train.py --help`.

The same Llama, pairs, precision, RMSProp and batches for all; each way of training (`train_ways.py`) runs alone, in a
process of its own, one after the other. The opponent's log-probabilities are computed beforehand, and not timed,
wherever they are cached. The first step warms up, compilation included, and is not timed either. On a CPU in float32;
the shapes 1b and 8b, `make bench-train-gpu`, on a GPU in bfloat16 with float32 masters.

    pairs/s         the timed steps' pairs over their seconds
    useful tokens/s each prompt once and both its responses, whatever a way computes besides
    peak            largest resident memory of the process; on a GPU, of its allocations
    utilisation     multiplications that those tokens need (a prompt once, no padding, logits where a response token is
                    predicted, backward twice forward, nothing recomputed) over what a product of two matrices did at
                    its best in any process of the run: 2048 x 2048 on a CPU, 8192 x 8192 on a GPU
    waits           the part of the steps' seconds in which they wait for their batch
    first step      the mean log-probability of the real responses, and the loss; and the second step's loss, which the
                    gradient and the optimizer have been through: how far they are from ours, relatively

A second table has the peak memory of three vocabularies, less what the weights, their gradients and the optimizer take.

Data: `gsm8k`, real questions and solutions, where the generated response is another question's solution (needs the
data folder); `chat`, random tokens in lengths like UltraChat's: prompts about 200, responses about 250, a few long.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from rich.console import Console
from rich.table import Table
from train_ways import LONGEST, MODELS, SEED, Model, ways_of

VOCABULARIES = (8_000, 32_000, 128_000)
FIRST_STEP = 1e-4
"""The relative distance of the first step from Spin's, beyond which a row is marked."""
SURROUNDINGS = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
"""The environment of each way, taken before a module of the tests sets another number of threads here."""


def chat_pairs(rng: np.random.Generator, pairs: int) -> list[list[list[int]]]:
    """Prompts, real and generated responses of random tokens."""

    def ids(mean: float, spread: float, shortest: int, longest: int) -> list[list[int]]:
        lengths = rng.lognormal(np.log(mean) - spread**2 / 2, spread, pairs).clip(shortest, longest).astype(int)
        return [[*rng.integers(5, min(VOCABULARIES), length - 1).tolist(), 2] for length in lengths]

    return [ids(200, 0.6, 16, 384), ids(250, 0.7, 16, LONGEST - 384), ids(250, 0.7, 16, LONGEST - 384)]


def gsm8k_pairs(rng: np.random.Generator, pairs: int) -> list[list[list[int]]]:
    """Real questions and solutions, in tokens of a BPE that is trained on them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from tests.support.helpers import data_folder

    rows = [json.loads(line) for line in data_folder("gsm8k", "train.jsonl").read_text("utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<->"], show_progress=False
    )
    tokenizer.train_from_iterator([row["question"] + row["answer"] for row in rows], trainer)
    chosen, others = rng.choice(len(rows), (2, pairs), replace=False)
    questions = [tokenizer.encode(rows[i]["question"]).ids for i in chosen]
    real, generated = ([[*tokenizer.encode(rows[i]["answer"]).ids, 2] for i in some] for some in (chosen, others))
    return [questions, real, generated]


def make(folder: Path, data: str, model: Model, pairs: int, vocabulary: int) -> None:
    """The model and the pairs that all ways train on."""
    from tests.support.lineages.small_jobs import run_job, score_job, version_of, write_pairs
    from tests.support.models.bare_model import save_bare_model

    save_bare_model(
        folder / "model", vocabulary, SEED, gpu=model.gpu, weights=not model.in_memory,
        max_position_embeddings=LONGEST, **model.shape,
    )  # fmt: skip
    columns = {"chat": chat_pairs, "gsm8k": gsm8k_pairs}[data](np.random.default_rng(SEED), pairs)
    dataset = write_pairs(folder / "pairs", *columns)
    if model.in_memory:
        return
    version = version_of(folder / "model")
    (folder / "version.json").write_text(version.model_dump_json(), "utf-8")
    most = 16384 if model.gpu else 4096
    run_job(score_job(folder / "scores", version, dataset, micro_batch_tokens=most, model=model.config))


def useful(folder: Path, batch_size: int, model: Model, vocabulary: int) -> tuple[list[int], list[float]]:
    """For each step: its tokens, each prompt once; and the operations that they need."""
    from spin_core.data.batches import DataOrder
    from spin_core.data.sequences import read_token_ids

    prompts, real, generated = (
        np.array([len(ids) for ids in column])
        for column in read_token_ids(folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    )
    size = model.shape
    hidden, layers, heads = (size[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    key_width = hidden * size.get("num_key_value_heads", heads) // heads
    weights = layers * hidden * (2 * hidden + 2 * key_width + 3 * size["intermediate_size"])
    tokens = prompts + real + generated
    seen = ((prompts + real) ** 2 + (prompts + generated) ** 2 - prompts**2) / 2
    forward = 2 * (tokens * weights + (real + generated) * hidden * vocabulary) + 4 * layers * hidden * seen
    order = DataOrder(np.arange(len(tokens)), batch_size, SEED)
    batches = [order.batch(step) for step in range(order.steps_in_epoch)]
    return [int(tokens[batch].sum()) for batch in batches], [3.0 * float(forward[batch].sum()) for batch in batches]


def compare(data: str, shape: str, names: list[str], steps: int, batch_size: int, micro_batch_tokens: int) -> None:
    """Run each way and print the table. A way that fails, such as without enough memory, is a row with its error."""
    model = MODELS[shape]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, data, model, steps * batch_size, model.vocabulary)
        tokens, flops = useful(folder, batch_size, model, model.vocabulary)
        results, failed = {}, {}
        for name in names:
            try:
                results[name] = run_child(name, folder, shape, batch_size, micro_batch_tokens)
            except KeyboardInterrupt:
                break  # and print what there is
            except ChildFailed as error:
                failed[name] = str(error)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
        console = Console(width=150)
        if results:
            console.print(table_of(results, tokens, flops, steps, batch_size, f"{data}, Llama {shape}{where(model)}"))
        for name, reason in failed.items():
            console.print(f"{name}: no result: {reason.splitlines()[-1]}")
        if "ours" in results:
            measured = results["ours"]
            memory, seconds = predicted(folder, model, batch_size, micro_batch_tokens)
            console.print(
                f"spin check's prediction for ours: {memory:,.0f} MB at the peak "
                f"({memory / measured['peak_mb']:.2f} of what was measured) and {seconds:.1f} s a step "
                f"({seconds / np.mean(measured['seconds'][1:]):.2f})"
            )


def where(model: Model) -> str:
    """The GPU, if there is one."""
    if not model.gpu:
        return ""
    import torch

    recomputed = ", activations recomputed" if model.in_memory else ""
    return f" in bfloat16{recomputed} on {torch.cuda.get_device_name()}"


def table_of(
    results: dict[str, dict[str, Any]],
    tokens: list[int],
    flops: list[float],
    steps: int,
    batch_size: int,
    title: str,
) -> Table:
    """A row for each way."""
    peak = max(result["peak_flops"] for result in results.values())
    table = Table(
        title=f"{title}, {batch_size} pairs a step, {steps - 1} steps timed",
        caption=f"utilisation of {peak / 1e9:,.0f} GFLOP/s; !: the first step is off by more than {FIRST_STEP:.0e}",
    )
    for column in ("", "pairs/s", "useful tokens/s", "peak MB", "utilisation", "x TRL", "waits", "log p, loss 1, 2"):
        table.add_column(column, justify="left" if not column else "right")
    speeds = {name: batch_size * (steps - 1) / sum(result["seconds"][1:]) for name, result in results.items()}
    best = max((speed for name, speed in speeds.items() if name.startswith("TRL, cached")), default=float("nan"))
    first = next(iter(results.values()))
    for name, result in results.items():
        seconds = sum(result["seconds"][1:])
        off = [abs(result["logps"] / first["logps"] - 1)]
        off += [abs(result["loss"][step] / first["loss"][step] - 1) for step in range(2)]
        far = " !" if max(off[:2]) > FIRST_STEP else ""
        table.add_row(
            name, f"{speeds[name]:.2f}", f"{sum(tokens[1:]) / seconds:,.0f}", f"{result['peak_mb']:,.0f}",
            f"{sum(flops[1:]) / seconds / peak:.0%}", f"{speeds[name] / best:.2f}",
            f"{result['wait'] / seconds:.1%}" if "wait" in result else "",
            ", ".join(f"{deviation:.0e}" for deviation in off) + far,
        )  # fmt: skip
    return table


def memory_of_vocabularies(steps: int = 2, batch_size: int = 4, micro_batch_tokens: int = 1280) -> None:
    """Peak memory over that of the weights' states as the vocabulary grows; the pairs are the same."""
    names = ["ours", "TRL, cached, 1 pair a pass"]
    table = Table(title=f"Peak MB beyond weights, gradients and optimizer: chat, Llama 15m, {batch_size} pairs a step")
    for column in ("vocabulary", "states", *names):
        table.add_column(column, justify="right")
    for vocabulary in VOCABULARIES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make(folder, "chat", MODELS["15m"], steps * batch_size, vocabulary)
            states = 3 * sum(file.stat().st_size for file in folder.glob("model/*.safetensors")) / 2**20
            peaks = [run_child(name, folder, "15m", batch_size, micro_batch_tokens)["peak_mb"] for name in names]
        table.add_row(f"{vocabulary:,}", f"{states:,.0f}", *(f"{peak - states:,.0f}" for peak in peaks))
    Console(width=150).print(table)


def predicted(folder: Path, model: Model, batch_size: int, micro_batch_tokens: int) -> tuple[float, float]:
    """What `spin check` estimates for the training: peak megabytes, seconds a step."""
    import torch
    from transformers import AutoModelForCausalLM

    from spin_core.config.generate import GenerateConfig
    from spin_core.config.run import RunConfig
    from spin_core.config.train import TrainConfig
    from spin_core.data.sequences import read_token_ids
    from spin_core.data.tokenizer import load_config
    from spin_core.preflight import memory, sizes
    from spin_core.preflight.times import measure, timing

    prompts, *responses = (
        [len(ids) for ids in column]
        for column in read_token_ids(folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    )
    answers = responses[0] + responses[1]
    texts = sizes.Texts(
        prompts=len(prompts), held_out=1, prompt_tokens=float(np.mean(prompts)),
        response_tokens=float(np.mean(answers)), longest_prompt=max(prompts),
        longest=max(p + max(pair) for p, *pair in zip(prompts, *responses, strict=True)),
    )  # fmt: skip
    settings, device = load_config(folder / "model", model.config), "cuda" if model.gpu else "cpu"
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(settings).num_parameters()
    shape = sizes.Shape.of(settings, parameters, model.config.dtype)
    config = RunConfig(
        recipe="demo", model=model.config, generate=GenerateConfig(batch_size=1),
        train=TrainConfig(
            batch_size=batch_size, micro_batch_tokens=micro_batch_tokens, gradient_checkpointing=model.in_memory,
            speed={"compile": model.gpu},
        ),
    )  # fmt: skip
    speed = measure.measure(shape, config, texts, torch.device(device))
    tokens = batch_size * sizes.tokens_of_item(texts, config.train)
    total = sum(memory.training_memory(shape, config.train, texts.longest, device).values())
    total += 0 if model.gpu else memory.LIBRARIES
    return total / 2**20, timing.training_seconds(shape, tokens, config.train, texts.longest, speed)


class ChildFailed(Exception):
    """A way of training ended without a result."""


def run_child(name: str, folder: Path, shape: str, batch_size: int, micro_batch_tokens: int) -> dict[str, Any]:
    """What one way measured."""
    arguments = [name, str(folder), shape, str(batch_size), str(micro_batch_tokens)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("train_ways.py")), *arguments],
        capture_output=True, text=True, check=False, env=SURROUNDINGS,
    )  # fmt: skip
    if done.returncode:
        raise ChildFailed(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(done.stdout.rsplit("\n", 2)[-2])
    print(f"{name}: {[round(value, 2) for value in result['seconds']]}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=["chat", "gsm8k"], action="append")
    parser.add_argument("--shape", choices=list(MODELS), default="42m")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-tokens", type=int, default=1280)
    parser.add_argument("--only", action="append", help="a part of a way's name, or the whole name in quotes")
    parser.add_argument("--more", action="store_true", help="ways that are no savings too")
    given = parser.parse_args()
    names = [
        name
        for name in ways_of(MODELS[given.shape], given.more)
        if not given.only or any(part == name or (part != "ours" and part in name) for part in given.only)
    ]
    if not given.data and not given.only and not MODELS[given.shape].gpu:
        memory_of_vocabularies()
    for data in given.data or ["chat", "gsm8k"]:
        compare(data, given.shape, names, given.steps, given.batch_size, given.micro_batch_tokens)


if __name__ == "__main__":
    main()
