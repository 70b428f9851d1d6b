"""What the cost model predicts for runs whose times were measured, each in its own way of working.

`python -m tests.support.predictions` prints the table of docs/benchmarks.md.
"""

from dataclasses import dataclass

import numpy as np

from spin_core.config.model import ModelConfig
from spin_core.config.train import SpeedConfig, TrainConfig
from spin_core.data.batches import DataOrder
from spin_core.preflight import memory
from spin_core.preflight.machines.profiles import machine_of, shape_of_known
from spin_core.preflight.machines.work import BANDWIDTH, LINKS, Work, communication
from spin_core.preflight.sizes import FLOAT32, Shape

PAIRS = 64
"""Pairs in a step of all of these trainings."""

LLAMA_1B = Shape(
    parameters=1_235_814_400, layers=16, hidden=2048, intermediate=8192, query_width=2048, key_width=512,
    vocabulary=128_256, itemsize=2, heads=32,
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A measured time and its prediction, in the same unit."""

    what: str
    unit: str
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Predicted by measured."""
        return self.predicted / self.measured


def comparisons() -> list[Comparison]:
    """All of them."""
    answering, step = paper_generation(), paper_step()
    hours, steps = 1 / 3600, -(-50_000 // PAIRS)
    ours, eager = our_step(compiled=True), our_step(compiled=False)
    cached, reference = trl_step(reference=False), trl_step(reference=True)
    return [
        Comparison("the paper: answers to 64 prompts", "s", 6.69, answering),
        Comparison("the paper: answers to 50,000 prompts", "h", 1.45, steps * answering * hours),
        Comparison("the paper: a step of 64 pairs", "s", 10.0, step),
        Comparison("the paper: iteration 0, two epochs of 50,000 pairs", "h", 4.32, 2 * steps * step * hours),
        Comparison("the paper: iterations 1 to 3, two epochs of 100,000 pairs", "h", 8.64, 4 * steps * step * hours),
        Comparison("H200, 1.2B: spin-loop, `compile`", "s", 0.72, ours),
        Comparison("H200, 1.2B: spin-loop, not compiled", "s", 0.88, eager),
        Comparison("H200, 1.2B: TRL, cached reference, 8 pairs a pass", "s", 1.99, cached),
        Comparison("H200, 1.2B: TRL as the paper's code works", "s", 2.69, reference),
        Comparison("H200, 1.2B: peak memory of spin-loop, `compile`", "GB", 36.9, our_memory()),
    ]


def paper_work() -> Work:
    """Zephyr 7B on one of the paper's GPUs."""
    shape = shape_of_known(ModelConfig(path="alignment-handbook/zephyr-7b-sft-full", dtype="bfloat16"))
    assert shape is not None
    gpu = machine_of("A100-80GB").gpu
    return Work(shape, gpu.bfloat16, gpu.bandwidth)


def paper_generation(prompt_tokens: int = 200, answer_tokens: int = 256) -> float:
    """64 prompts on eight GPUs with transformers' `generate`: eight rows each, until the longest answer ends."""
    work, rows = paper_work(), 64 // 8
    prompts = work.forward(rows * prompt_tokens, rows, prompt_tokens)
    each = work.decode(rows, prompt_tokens + answer_tokens / 2, graphs=False)
    return prompts + (answer_tokens - 1) * each


def paper_step(longest: int = 1024) -> float:
    """64 pairs on eight GPUs with ZeRO-3: eight pairs each, padded to `max_length`, which one of 64 pairs reaches.

    All logits are computed, activations are recomputed, and the reference makes a forward pass of its own, for which
    its weights are gathered too.
    """
    work, ranks, link = paper_work(), 8, machine_of("8xA100-80GB").link
    tokens = 2 * PAIRS // ranks * longest
    forward, backward = (go(tokens, tokens, longest) for go in (work.forward, work.backward))
    gathered = work.shape.parameters * work.shape.itemsize * (ranks - 1) / ranks / (LINKS * link)
    exchanged = communication(work.shape, ranks=ranks, stage=3, passes=1, link=link) + gathered
    return 3 * forward + backward + work.sum_gradients() / ranks + work.optimizer(1, ranks) + exchanged


def chat_lengths(pairs: int = 4 * PAIRS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths like those of `chat_pairs` in tests/benchmarks/train.py: of prompts, real and generated responses."""
    rng = np.random.default_rng(0)

    def lengths(mean: float, spread: float, longest: int) -> np.ndarray:
        return rng.lognormal(np.log(mean) - spread**2 / 2, spread, pairs).clip(16, longest).astype(int)

    return lengths(200, 0.6, 384), lengths(250, 0.7, 640), lengths(250, 0.7, 640)


def our_step(*, compiled: bool, most: int = 16384) -> float:
    """A step of spin-loop on one H200: prompts shared, no padding, logits of responses, cached scores."""
    gpu, (prompts, real, generated) = machine_of("H200").gpu, chat_lengths()
    work = Work(LLAMA_1B, gpu.bfloat16, gpu.bandwidth, compiled=compiled)
    outputs = PAIRS * float((real + generated).mean())
    tokens, length = outputs + PAIRS * float(prompts.mean()), float((prompts + real).mean())
    passes = -(-tokens // most)
    moving = passes * work.sum_gradients() + work.optimizer(1, 1)
    return work.forward(tokens, outputs, length) + work.backward(tokens, outputs, length) + moving


def our_memory(most: int = 16384) -> float:
    """The peak of spin-loop's training, in thousands of MiB as it was measured."""
    train = TrainConfig(batch_size=PAIRS, micro_batch_tokens=most, speed=SpeedConfig(compile=True))
    prompts, real, generated = chat_lengths()
    longest = int((prompts + np.maximum(real, generated)).max())
    return sum(memory.training_memory(LLAMA_1B, train, longest, "cuda").values()) / 2**20 / 1000


def trl_step(*, reference: bool, pairs: int = 8) -> float:
    """A step of TRL on one H200: padded passes, all logits, float32 weights that each pass casts to bfloat16."""
    gpu = machine_of("H200").gpu
    work = Work(LLAMA_1B, gpu.bfloat16, gpu.bandwidth)
    tokens, longest = _padded_tokens(pairs)
    forward, backward = (go(tokens, tokens, longest) for go in (work.forward, work.backward))
    passes = PAIRS // pairs
    cast = passes * LLAMA_1B.parameters * (FLOAT32 + LLAMA_1B.itemsize) / (BANDWIDTH * gpu.bandwidth)
    each = forward + cast
    moving = passes * work.sum_gradients() + work.optimizer(1, 1)
    return (2 if reference else 1) * each + backward + moving


def _padded_tokens(pairs: int) -> tuple[float, float]:
    """Tokens of a step whose passes are padded to their longest sequence, and the mean length of a row."""
    prompts, real, generated = chat_lengths()
    order, longest = DataOrder(len(prompts), PAIRS, 0), prompts + np.maximum(real, generated)
    steps = [order.batch(step).reshape(-1, pairs) for step in range(order.steps_in_epoch)]
    tokens = float(np.mean([2 * pairs * longest[step].max(axis=1).sum() for step in steps]))
    return tokens, tokens / (2 * PAIRS)


if __name__ == "__main__":
    for one in comparisons():
        print(f"| {one.what} | {one.measured:g} {one.unit} | {one.predicted:.2f} {one.unit} | {one.ratio - 1:+.0%} |")
