"""The findings of `spin check` about memory, disk and time: what a run needs, and what this machine has."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from spin_core.config.run import RunConfig
from spin_core.errors import StorageError
from spin_core.evaluation import suites
from spin_core.preflight import disk, memory
from spin_core.preflight.findings import Inspection, duration, size
from spin_core.preflight.sizes import Parts, Shape, Texts, sides, steps_in, tokens_in_a_pass
from spin_core.preflight.times import measure, timing
from spin_core.runtime import interpreter

_SLOW = 24 * 3600.0
"""Seconds of an iteration above which the time is a warning."""


def inspect_memory(inspection: Inspection, config: RunConfig, shape: Shape, texts: Texts) -> None:
    """The peaks of training and of generation against the free memory."""
    from spin_core.runtime.devices import device_of

    device = device_of(config.model).type
    _inspect_training_memory(inspection, config, shape, texts, device)
    if interpreter.choose_engine(config.generate, config.model) == "transformers":
        # vLLM takes the memory that its settings give it, which the finding about the engine names.
        need = memory.generation_memory(shape, config.generate, texts.longest_prompt)
        _judge_memory(
            inspection, config, "generation", need, ["lower generate.batch_size", "take a smaller model"], device
        )
    if device == "cuda":
        _inspect_offloaded_memory(inspection, config, shape)


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
    _judge_memory(inspection, config, "training", need, [fix for fix, helps in fixes.items() if helps], device)


def _judge_memory(
    inspection: Inspection, config: RunConfig, phase: str, need: Parts, fixes: Sequence[str], device: str
) -> None:
    """One phase's peak, by its parts, against the memory that is free for it."""
    free, where = free_memory(device)
    ranks = config.train.speed.ranks
    if device == "cpu" and ranks > 1:
        free, where = free // ranks, f"{where} for each of {ranks} ranks"
    parts = {**need, "libraries": float(memory.LIBRARIES)}
    total = sum(parts.values())
    listing = ", ".join(f"{name} {size(part)}" for name, part in parts.items())
    text = f"{phase} takes about {size(total)} ({listing}); {size(free)} are free {where}"
    inspection.add_need("memory", text, total, free, " or ".join(fixes))


def _inspect_offloaded_memory(inspection: Inspection, config: RunConfig, shape: Shape) -> None:
    """What training offloads from the GPUs, against the machine's own free memory."""
    need = memory.offloaded_memory(shape, config.train)
    if not need:
        return
    free, where = free_memory("cpu")
    text = f"training offloads about {size(need)} to this machine's own memory; {size(free)} are free {where}"
    inspection.add_need("memory", text, need, free, "train on more nodes or take a smaller model")


def free_memory(device: str) -> tuple[int, str]:
    """Bytes that are free for a process on `cpu` or `cuda`, and where. A container's limit counts."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0], f"on {torch.cuda.get_device_name()}"
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text("utf-8").strip() != "max":
        return min(free, int(limit.read_text("utf-8")) - int(used.read_text("utf-8"))), "in this container"
    return free, "in memory"


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
