"""The findings of `spin check` about memory, disk and time: what a run needs, and what this machine has."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from spin_core.config.generate import GenerateConfig
from spin_core.config.run import RunConfig
from spin_core.errors import StorageError, count
from spin_core.evaluation import suites
from spin_core.preflight import disk, memory
from spin_core.preflight.findings import Inspection, duration, size
from spin_core.preflight.sizes import Parts, Shape, Texts, prompts_at_a_time, sides, steps_in, tokens_in_a_pass
from spin_core.preflight.times import measure, timing
from spin_core.runtime import interpreter
from spin_core.runtime.memory.free import free_memory

_SLOW = 24 * 3600.0
"""Seconds of an iteration above which the time is a warning."""


def inspect_memory(inspection: Inspection, config: RunConfig, shape: Shape, texts: Texts) -> None:
    """The peaks of training and of generation against the free memory."""
    from spin_core.runtime.devices import device_of

    device = device_of(config.model).type
    _inspect_training_memory(inspection, config, shape, texts, device)
    if interpreter.choose_engine(config.generate, config.model) == "transformers":
        # vLLM takes the memory that its settings give it, which the finding about the engine names.
        _inspect_generation_memory(inspection, config.generate, shape, texts, device)
    if device == "cuda":
        _inspect_host_memory(inspection, config, shape)


def _inspect_training_memory(
    inspection: Inspection, config: RunConfig, shape: Shape, texts: Texts, device: str
) -> None:
    """The peak of training, with the settings that would lower it."""
    train, speed = config.train, config.train.speed
    stage = memory.ranks_and_stage(train, shape)[1]
    offload = "zero3-offload" if stage == 3 else "zero2-offload"
    fixes = {
        "lower train.micro_batch_tokens": tokens_in_a_pass(train, texts.longest) > sides(train) * texts.longest,
        "set train.gradient_checkpointing": not train.gradient_checkpointing,
        "set train.speed.cached_scores": memory.holds_opponent(train, shape),
        "set train.speed.deepspeed to zero3": speed.ranks * speed.nodes > 1 and stage < 3,
        f"set train.speed.deepspeed to {offload}": memory.saves_memory(shape, train, offload, texts.longest, device),
        "set model.dtype to bfloat16": config.model.dtype == "float32",
        "take a smaller model": True,
    }
    need = memory.training_memory(shape, train, texts.longest, device)
    tokens = tokens_in_a_pass(train, texts.longest)
    what, helpful = f"training with {tokens:,} tokens in a pass", [fix for fix, helps in fixes.items() if helps]
    _judge_memory(inspection, what, need, helpful, device, speed.ranks)


def _inspect_generation_memory(
    inspection: Inspection, generate: GenerateConfig, shape: Shape, texts: Texts, device: str
) -> None:
    """The peak of generation with transformers."""
    need, rows = memory.generation_memory(shape, generate, texts.longest_prompt), prompts_at_a_time(generate)
    fixes = ["lower generate.batch_size"] if rows > 1 else []
    what = f"generation with {count(rows, 'answer')} at a time"
    _judge_memory(inspection, what, need, [*fixes, "take a smaller model"], device, generate.speed.workers)


def _judge_memory(
    inspection: Inspection, what: str, need: Parts, fixes: Sequence[str], device: str, processes: int
) -> None:
    """One phase's peak, by its parts, against the memory that is free for each of its processes."""
    free, where = free_memory(device)
    if device == "cpu" and processes > 1:
        free, where = free // processes, f"{where} for each of {processes} processes"
    parts = {**need, "libraries": float(memory.LIBRARIES)}
    total = sum(parts.values())
    listing = ", ".join(f"{name} {size(part)}" for name, part in parts.items())
    text = f"{what} takes about {size(total)} ({listing}); {size(free)} are free {where}"
    inspection.add_need("memory", text, total, free, " or ".join(fixes))


def _inspect_host_memory(inspection: Inspection, config: RunConfig, shape: Shape) -> None:
    """What training on GPUs takes of the machine's own memory, against what is free there."""
    parts = {
        "a checkpoint": memory.checkpoint_memory(shape, config.train, "cuda"),
        "offloaded": memory.offloaded_memory(shape, config.train),
    }
    need, listing = sum(parts.values()), ", ".join(f"{name} {size(part)}" for name, part in parts.items() if part)
    free, where = free_memory("cpu")
    text = f"training takes about {size(need)} of this machine's own memory ({listing}); {size(free)} are free {where}"
    inspection.add_need("memory", text, need, free, "train adapters, train on more nodes or take a smaller model")


def find_folder(_inspection: Inspection, runs: Path) -> Path:
    """The folder that holds lineages; if it does not exist yet, the one that it will be made in."""
    existing = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise StorageError(f"{existing} is a file, where a folder should be: choose another folder with --runs")
    if not os.access(existing, os.W_OK):
        raise StorageError(f"{existing} cannot be written: make it writable, or choose another folder with --runs")
    return existing


def inspect_disk(inspection: Inspection, config: RunConfig, shape: Shape, texts: Texts, runs: Path) -> None:
    """What the whole run leaves on disk, and what an iteration needs while it trains, against what is free."""
    iterations = range(config.iterations)
    versions = config.iterations + config.controls.trainings + config.trains_base + (not config.model.path)
    models = versions * disk.model_disk(shape)
    written = sum(disk.text_disk(texts, config, t) for t in iterations)
    temporary = max(disk.checkpoint_disk(shape, config.train, steps_in(texts, config, t)) for t in iterations)
    free, need = shutil.disk_usage(runs).free, models + written + temporary
    checkpoints = f", checkpoints while it trains {size(temporary)}" if temporary else ""
    parts = f"models {size(models)}, texts {size(written)}{checkpoints}"
    text = f"the run takes about {size(need)} ({parts}); {size(free)} are free in {runs}"
    inspection.add_need(
        "disk", text, need, free, "free some space, choose another folder with --runs or lower iterations"
    )


def inspect_time(inspection: Inspection, config: RunConfig, shape: Shape, texts: Texts, preferences: int) -> None:
    """An estimate of the run's time, from arithmetic and from this device's speed, which is measured now."""
    from spin_core.runtime.devices import device_of

    speed = measure.measure(shape, config, texts, device_of(config.model))
    iterations = [timing.iteration_seconds(shape, texts, config, t, speed) for t in range(config.iterations)]
    other = timing.other_seconds(shape, texts, config, speed, preferences)
    total = other + sum(sum(parts.values()) for parts in iterations)
    last = iterations[-1]
    parts = ", ".join(f"{name} {duration(part)}" for name, part in last.items() if part >= 1)
    rest = f"; {duration(other)} for θ_0, SFT and controls" if other else ""
    missing = ["benchmarks"] if any(suites.benchmarks(config.evaluate)) else []
    missing += ["MT-Bench"] if suites.mt_bench_suites(config.evaluate) else []
    uncounted = f"; {' and '.join(missing)} not counted" if missing else ""
    steps = steps_in(texts, config, config.iterations - 1)
    each = f"; {last['training'] / steps:.2g} s a training step" if steps else ""
    basis = f"a rough guess from {speed.batch_flops / 1e9:,.0f} GFLOP/s that were measured just now"
    inspection.add(
        "time",
        f"about {duration(total)}: {duration(sum(last.values()))} for the last iteration ({parts}){each}{rest}"
        f"{uncounted}; {basis}",
        "warn" if sum(last.values()) > _SLOW else "ok",
    )
