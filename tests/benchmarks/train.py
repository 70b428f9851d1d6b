"""Training's speed and memory beside TRL's: `make bench-train`, or `python tests/benchmarks/train.py --help`.

The same Llama, pairs, float32, RMSProp and batches for all; each way of training runs alone, in a process of its own,
one after the other. Our ways are the whole `train` phase, its journal and its loader included; TRL's are its
`DPOTrainer.train`. The opponent's log-probabilities are computed beforehand, and not timed, wherever they are cached.
The first step warms up and is not timed either.

    pairs/s         the timed steps' pairs over their seconds
    useful tokens/s each prompt once and both its responses, whatever a way computes besides
    peak            largest resident memory of the process
    utilisation     multiplications that those tokens need (a prompt once, no padding, logits where a response token is
                    predicted, backward twice forward, nothing recomputed) over what a 2048 x 2048 product did at its
                    best in any process of the run
    first step      the mean log-probability of the real responses; and the second step's loss, which the gradient and
                    the optimizer have been through: how far they are from ours, relatively

A second table has the peak memory of three vocabularies, less what the weights, their gradients and the optimizer take.

Data: `gsm8k`, real questions and solutions, where the generated response is another question's solution (needs the
data folder); `chat`, random tokens in lengths like UltraChat's: prompts about 200, responses about 250, a few long.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

VOCABULARY, LONGEST = 32_000, 1024
VOCABULARIES = (8_000, 32_000, 128_000)
SHAPES = {
    "15m": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "42m": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
}
RATE, BETA, SEED = 1e-4, 0.1, 0
SURROUNDINGS = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
"""The environment of each way, taken before a module of the tests sets another number of threads here."""

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, prompts not shared": {"speed": {"prefix_sharing": False}},
    "ours, padded rows": {"speed": {"packing": False}},
    "ours, all logits": {"speed": {"response_logits": False}},
    "ours, opponent at every step": {"speed": {"cached_scores": False}},
    "ours, no loader": {"speed": {"prefetch": False}},
}
MORE: dict[str, dict[str, Any]] = {
    "ours, layers compiled": {"speed": {"compile": True}},
    "ours, activations recomputed": {"gradient_checkpointing": True},
}
"""Ways that are no savings of ours; `--more` measures them too."""
THEIRS: dict[str, dict[str, Any]] = {
    "TRL, cached, 1 pair a pass": {"per_device_train_batch_size": 1, "precompute_ref_log_probs": True},
    "TRL, cached, 2 pairs a pass": {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True},
    "TRL as the paper: 8 padded, reference at every step": {"per_device_train_batch_size": 8},
}


def chat_pairs(rng: np.random.Generator, pairs: int) -> list[list[list[int]]]:
    """Prompts, real and generated responses of random tokens."""

    def ids(mean: float, spread: float, shortest: int, longest: int) -> list[list[int]]:
        lengths = rng.lognormal(np.log(mean) - spread**2 / 2, spread, pairs).clip(shortest, longest).astype(int)
        return [[*rng.integers(5, min(VOCABULARIES), length - 1).tolist(), 2] for length in lengths]

    return [ids(200, 0.6, 16, 384), ids(250, 0.7, 16, LONGEST - 384), ids(250, 0.7, 16, LONGEST - 384)]


def gsm8k_pairs(rng: np.random.Generator, pairs: int) -> list[list[list[int]]]:
    """Real questions and solutions, in tokens of a BPE that is trained on them."""
    from helpers import data_folder
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    rows = [json.loads(line) for line in data_folder("gsm8k", "train.jsonl").read_text("utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<->"], show_progress=False
    )
    tokenizer.train_from_iterator([row["question"] + row["answer"] for row in rows], trainer)
    chosen, others = rng.choice(len(rows), (2, pairs), replace=False)
    questions = [tokenizer.encode(rows[i]["question"]).ids for i in chosen]
    real, generated = ([[*tokenizer.encode(rows[i]["answer"]).ids, 2] for i in some] for some in (chosen, others))
    return [questions, real, generated]


def make(folder: Path, data: str, shape: str, pairs: int, vocabulary: int = VOCABULARY) -> None:
    """The model and the pairs that all ways train on."""
    from bare_model import save_bare_model
    from small_game import do, score_job, version_of, write_pairs

    save_bare_model(folder / "model", vocabulary, SEED, max_position_embeddings=LONGEST, **SHAPES[shape])
    columns = {"chat": chat_pairs, "gsm8k": gsm8k_pairs}[data](np.random.default_rng(SEED), pairs)
    dataset = write_pairs(folder / "pairs", *columns)
    do(score_job(folder / "scores", version_of(folder / "model"), dataset, micro_batch_tokens=4096))


def ours(folder: Path, change: dict[str, Any], batch_size: int, micro_batch_tokens: int) -> dict[str, Any]:
    """Our phase; seconds of each step, and what the first two measured."""
    from small_game import do, train_job, version_of

    from spin_core import store
    from spin_core.records import PairDataset, ScoredPairs
    from spin_core.rows import METRICS, TIMING, read_rows

    pairs = PairDataset(
        path=folder / "pairs", digest=store.digest_folder(folder / "pairs")[0], t=0, rows_in=0, rows=0, drops={}, mix={}
    )
    scores = store.read_record(folder / "scores", ScoredPairs)
    with tempfile.TemporaryDirectory() as scratch:
        job = train_job(
            Path(scratch), version_of(folder / "model"), pairs, scores, beta=BETA, learning_rate=RATE, epochs=1,
            batch_size=batch_size, micro_batch_tokens=micro_batch_tokens, lr_schedule="constant", warmup=0.0, **change,
        )  # fmt: skip
        do(job)
        rows, timing = read_rows(job.output / METRICS), read_rows(job.output / TIMING)
    return {
        "seconds": [row["seconds"] for row in timing],
        "loss": [row["loss"] for row in rows],
        "logps": rows[0]["logps/real"],
    }


def theirs(folder: Path, change: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """TRL's trainer over the same batches in the same order."""
    warnings.simplefilter("ignore")
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from spin_core.batches import DataOrder, read_token_ids

    columns = read_token_ids(folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    order = DataOrder(np.arange(len(columns[0])), batch_size, SEED)
    rows = [i for step in range(order.steps_in_epoch) for i in order.batch(step)]

    def text(ids: Any) -> str:
        return " ".join("</s>" if i == 2 else f"w{i}" for i in ids)

    data = [
        {"prompt": text(columns[0][i]), "chosen": " " + text(columns[1][i]), "rejected": " " + text(columns[2][i])}
        for i in rows
    ]
    seconds: list[float] = []
    began = 0.0

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            nonlocal began
            began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.monotonic() - began)

    size = change["per_device_train_batch_size"]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "model"),
            args=trl.DPOConfig(
                output_dir=scratch, beta=BETA, loss_type=["sigmoid"], use_cpu=True, bf16=False, report_to="none",
                gradient_accumulation_steps=batch_size // size, gradient_checkpointing=False, learning_rate=RATE,
                lr_scheduler_type="constant", optim="rmsprop", num_train_epochs=1, logging_steps=1, max_length=None,
                train_sampling_strategy="sequential", disable_tqdm=True, save_strategy="no", seed=SEED, **change,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            callbacks=[Clock()],
        )  # fmt: skip
        losses, plain = [], trainer.compute_loss

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            found = plain(*args, **kwargs)
            losses.append(float(found[0] if isinstance(found, tuple) else found))
            return found

        trainer.compute_loss = compute_loss
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "logps/chosen" in entry]
    passes = batch_size // size
    scale = passes if max(losses[:passes]) < 0.9 * np.log(2) else 1  # some versions divide before, some after
    return {
        "seconds": seconds,
        "loss": [float(np.mean(losses[i : i + passes])) * scale for i in range(0, len(losses), passes)],
        "logps": history[0]["logps/chosen"],
        "threads": torch.get_num_threads(),
    }


def peak_flops() -> float:
    """The multiplications and additions a second of this machine's fastest product here."""
    import torch

    n, best = 2048, float("inf")
    one, other = torch.randn(n, n), torch.randn(n, n)
    for _ in range(12):
        began = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def child(name: str, folder: Path, batch_size: int, micro_batch_tokens: int) -> None:
    """One way of training, in this process; prints its measurements as JSON."""
    if name in OURS | MORE:
        found = ours(folder, (OURS | MORE)[name], batch_size, micro_batch_tokens)
    else:
        found = theirs(folder, THEIRS[name], batch_size)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["peak_flops"] = peak_flops()
    print("\n" + json.dumps(found))


def useful(folder: Path, batch_size: int, shape: str) -> tuple[list[int], list[float]]:
    """For each step: its tokens, each prompt once; and the operations that they need."""
    from spin_core.batches import DataOrder, read_token_ids

    prompts, real, generated = (
        np.array([len(ids) for ids in column])
        for column in read_token_ids(folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    )
    size = SHAPES[shape]
    hidden, layers = size["hidden_size"], size["num_hidden_layers"]
    weights = layers * (4 * hidden**2 + 3 * hidden * size["intermediate_size"])
    tokens = prompts + real + generated
    seen = ((prompts + real) ** 2 + (prompts + generated) ** 2 - prompts**2) / 2
    forward = 2 * (tokens * weights + (real + generated) * hidden * VOCABULARY) + 4 * layers * hidden * seen
    order = DataOrder(np.arange(len(tokens)), batch_size, SEED)
    batches = [order.batch(step) for step in range(order.steps_in_epoch)]
    return [int(tokens[batch].sum()) for batch in batches], [3.0 * float(forward[batch].sum()) for batch in batches]


def compare(data: str, shape: str, names: list[str], steps: int, batch_size: int, micro_batch_tokens: int) -> None:
    """Run each way and print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, data, shape, steps * batch_size)
        tokens, flops = useful(folder, batch_size, shape)
        table = Table(title=f"{data}, Llama {shape}, {batch_size} pairs a step, {steps - 1} steps timed")
        for column in ("", "pairs/s", "useful tokens/s", "peak MB", "utilisation", "x TRL", "log p, loss 2"):
            table.add_column(column, justify="left" if not column else "right")
        results = {name: run_child(name, folder, batch_size, micro_batch_tokens) for name in names}
        speeds = {name: batch_size * (steps - 1) / sum(found["seconds"][1:]) for name, found in results.items()}
        peak = max(found["peak_flops"] for found in results.values())
        best = max((speeds[name] for name in names if "cached, " in name and name in THEIRS), default=float("nan"))
        for name, found in results.items():
            seconds = sum(found["seconds"][1:])
            off = [
                abs(found["logps"] / results[names[0]]["logps"] - 1),
                abs(found["loss"][1] / results[names[0]]["loss"][1] - 1),
            ]
            table.add_row(
                name, f"{speeds[name]:.2f}", f"{sum(tokens[1:]) / seconds:,.0f}", f"{found['peak_mb']:,.0f}",
                f"{sum(flops[1:]) / seconds / peak:.0%}", f"{speeds[name] / best:.2f}",
                ", ".join(f"{one:.0e}" for one in off),
            )  # fmt: skip
        console = Console(width=140)
        console.print(table)
        if "ours" in results:
            measured = results["ours"]
            memory, seconds = predicted(folder, batch_size, micro_batch_tokens)
            console.print(
                f"spin check's prediction for ours: {memory:,.0f} MB at the peak "
                f"({memory / measured['peak_mb']:.2f} of what was measured) and {seconds:.1f} s a step "
                f"({seconds / np.mean(measured['seconds'][1:]):.2f})"
            )


def memory_of_vocabularies(steps: int = 2, batch_size: int = 4, micro_batch_tokens: int = 1280) -> None:
    """Peak memory over that of the weights' states as the vocabulary grows; the pairs are the same."""
    names = ["ours", "TRL, cached, 1 pair a pass"]
    table = Table(title=f"Peak MB beyond weights, gradients and optimizer: chat, Llama 15m, {batch_size} pairs a step")
    for column in ("vocabulary", "states", *names):
        table.add_column(column, justify="right")
    for vocabulary in VOCABULARIES:
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch), "chat", "15m", steps * batch_size, vocabulary)
            states = 3 * sum(file.stat().st_size for file in Path(scratch).glob("model/*.safetensors")) / 2**20
            peaks = [run_child(name, Path(scratch), batch_size, micro_batch_tokens)["peak_mb"] for name in names]
        table.add_row(f"{vocabulary:,}", f"{states:,.0f}", *(f"{peak - states:,.0f}" for peak in peaks))
    Console(width=140).print(table)


def predicted(folder: Path, batch_size: int, micro_batch_tokens: int) -> tuple[float, float]:
    """What `spin check` says of our training: megabytes at the peak, seconds a step."""
    import torch
    from small_game import CPU

    from spin_core import estimate
    from spin_core.batches import read_token_ids
    from spin_core.config import GenerateConfig, RunConfig, TrainConfig
    from spin_core.models import load_config, load_model

    prompts, *responses = (
        [len(ids) for ids in column]
        for column in read_token_ids(folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    )
    answers = responses[0] + responses[1]
    texts = estimate.Texts(
        prompts=len(prompts), held_out=1, prompt_tokens=float(np.mean(prompts)),
        response_tokens=float(np.mean(answers)), longest_prompt=max(prompts),
        longest=max(p + max(pair) for p, *pair in zip(prompts, *responses, strict=True)),
    )  # fmt: skip
    model = load_model(folder / "model", CPU)
    shape = estimate.Shape.of(load_config(folder / "model", CPU), model.num_parameters(), "float32")
    config = RunConfig(
        recipe="demo", train=TrainConfig(batch_size=batch_size, micro_batch_tokens=micro_batch_tokens),
        generate=GenerateConfig(batch_size=1),
    )  # fmt: skip
    speed = estimate.measure(shape, config, texts, torch.device("cpu"))
    tokens = batch_size * estimate.tokens_of_item(texts, config.train)
    memory = sum(estimate.training_memory(shape, config.train, texts.longest).values()) + estimate.LIBRARIES
    return memory / 2**20, estimate.training_seconds(shape, tokens, config.train, texts.longest, speed)


def run_child(name: str, folder: Path, batch_size: int, micro_batch_tokens: int) -> dict[str, Any]:
    """What one way measured."""
    arguments = ["--child", name, str(folder), str(batch_size), str(micro_batch_tokens)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True, text=True, check=False, env=SURROUNDINGS,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.rsplit("\n", 2)[-2])
    print(f"{name}: {[round(one, 1) for one in found['seconds']]}", file=sys.stderr)
    return found


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--child"]:
        name, folder, batch_size, micro_batch_tokens = sys.argv[2:]
        child(name, Path(folder), int(batch_size), int(micro_batch_tokens))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=["chat", "gsm8k"], action="append")
    parser.add_argument("--shape", choices=list(SHAPES), default="42m")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-tokens", type=int, default=1280)
    parser.add_argument("--only", action="append", help="a part of a way's name")
    parser.add_argument("--more", action="store_true", help="ways that are no savings too")
    given = parser.parse_args()
    ways = [*OURS, *(MORE if given.more else ()), *THEIRS]
    names = [name for name in ways if not given.only or any(part in name for part in given.only)]
    if not given.data and not given.only:
        memory_of_vocabularies()
    for data in given.data or ["chat", "gsm8k"]:
        compare(data, given.shape, names, given.steps, given.batch_size, given.micro_batch_tokens)


if __name__ == "__main__":
    main()
