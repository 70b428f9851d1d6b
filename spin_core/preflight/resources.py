"""Memory, disk and time that a run needs, against what this machine has."""

import os
import shutil
from pathlib import Path

from spin_core.config.run import RunConfig
from spin_core.errors import StorageError
from spin_core.evaluation import suites
from spin_core.preflight import estimate, measure
from spin_core.preflight.estimate import Shape, Texts
from spin_core.preflight.findings import Looks, duration, size
from spin_core.runtime import interpreter

SLOW = 24 * 3600.0
"""Seconds an iteration beyond which the time is a warning."""


def look_at_memory(looks: Looks, config: RunConfig, shape: Shape, texts: Texts) -> None:
    """The peaks of training and of generation against what is free."""
    from spin_core.runtime.devices import device_of

    train, generate, speed = config.train, config.generate, config.train.speed
    place = device_of(config.model).type
    offload = "zero3-offload" if estimate.sharing(train, shape)[1] == 3 else "zero2-offload"
    cures = {
        "lower train.micro_batch_tokens": estimate.tokens_in_a_pass(train, texts.longest)
        > estimate.sides(train) * texts.longest,
        "set train.gradient_checkpointing": not train.gradient_checkpointing,
        "set train.speed.cached_scores": estimate.holds_opponent(train, shape),
        "set train.speed.deepspeed to zero3": speed.ranks * speed.nodes > 1 and estimate.sharing(train, shape)[1] < 3,
        f"set train.speed.deepspeed to {offload}": estimate.would_help(shape, train, offload, texts.longest, place),
        "set model.dtype to bfloat16": config.model.dtype == "float32",
        "take a smaller model": True,
    }
    fewer = ["lower generate.batch_size", "take a smaller model"]
    free, where = free_memory(place)
    if place == "cpu" and speed.ranks > 1:
        free, where = free // speed.ranks, f"{where} for each of {speed.ranks} ranks"
    training = estimate.training_memory(shape, train, texts.longest, place)
    phases = [("training", training, [cure for cure, helps in cures.items() if helps])]
    if interpreter.chosen(generate, config.model) == "transformers":  # vLLM takes what it is given, see its own finding
        phases += [("generation", estimate.generation_memory(shape, generate, texts.longest_prompt), fewer)]
    for phase, parts, ways in phases:
        parts = {**parts, "libraries": float(estimate.LIBRARIES)}
        need = sum(parts.values())
        listing = ", ".join(f"{name} {size(part)}" for name, part in parts.items())
        said = f"{phase} takes about {size(need)} ({listing}); {size(free)} are free {where}"
        looks.judge("memory", said, need, free, " or ".join(ways))
    if place == "cuda" and (away := estimate.offloaded_memory(shape, train)):
        free, where = free_memory("cpu")
        said = f"training offloads about {size(away)} to this machine's own memory; {size(free)} are free {where}"
        looks.judge("memory", said, away, free, "train on more nodes or take a smaller model")


def free_memory(device: str) -> tuple[int, str]:
    """Bytes that are free for a process on the device, and where; a container's limit counts."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0], f"on {torch.cuda.get_device_name()}"
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text("utf-8").strip() != "max":
        return min(free, int(limit.read_text("utf-8")) - int(used.read_text("utf-8"))), "in this container"
    return free, "in memory"


def look_for_folder(_looks: Looks, runs: Path) -> Path:
    """The folder that holds lineages; or, if that is still to be made, the one that it will be made in."""
    there = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    if not there.is_dir():
        raise StorageError(f"{there} is a file, where a folder should be: choose another folder with --runs")
    if not os.access(there, os.W_OK):
        raise StorageError(f"{there} cannot be written: make it writable, or choose another folder with --runs")
    return there


def look_at_disk(looks: Looks, config: RunConfig, shape: Shape, texts: Texts, runs: Path) -> None:
    """What the whole run will leave, and what an iteration takes while it trains, against what is free."""
    steps = range(config.iterations)
    controls = config.controls
    versions = config.iterations + controls.trainings
    models = (versions + (0 if config.model.path else 2)) * estimate.model_disk(shape)
    written = sum(estimate.text_disk(texts, config, t) for t in steps)
    passing = max(estimate.checkpoint_disk(shape, config.train, estimate.steps_in(texts, config, t)) for t in steps)
    free, need = shutil.disk_usage(runs).free, models + written + passing
    checkpoints = f", checkpoints while it trains {size(passing)}" if passing else ""
    parts = f"models {size(models)}, texts {size(written)}{checkpoints}"
    said = f"the run takes about {size(need)} ({parts}); {size(free)} are free in {runs}"
    looks.judge("disk", said, need, free, "free some space, choose another folder with --runs or lower iterations")


def look_at_time(looks: Looks, config: RunConfig, shape: Shape, texts: Texts, preferences: int) -> None:
    """A guess at the time of the run, from arithmetic and from how fast this device does some now."""
    from spin_core.runtime.devices import device_of

    speed = measure.measure(shape, config, texts, device_of(config.model))
    iterations = [estimate.iteration_seconds(shape, texts, config, t, speed) for t in range(config.iterations)]
    beside = estimate.other_seconds(shape, texts, config, speed, preferences)
    total = beside + sum(sum(parts.values()) for parts in iterations)
    last = iterations[-1]
    parts = ", ".join(f"{name} {duration(part)}" for name, part in last.items() if part >= 1)
    rest = f"; {duration(beside)} for SFT and controls" if beside else ""
    missing = ["benchmarks"] if any(suites.benchmarks(config.evaluate)) else []
    missing += ["MT-Bench"] if suites.mt_bench_suites(config.evaluate) else []
    uncounted = f"; {' and '.join(missing)} not counted" if missing else ""
    steps = estimate.steps_in(texts, config, config.iterations - 1)
    each = f"; {last['training'] / steps:.2g} s a training step" if steps else ""
    guess = f"a rough guess from {speed.batch_flops / 1e9:,.0f} GFLOP/s that were measured just now"
    looks.add(
        "time",
        f"about {duration(total)}: {duration(sum(last.values()))} for the last iteration ({parts}){each}{rest}"
        f"{uncounted}; {guess}",
        "warn" if sum(last.values()) > SLOW else "ok",
    )
