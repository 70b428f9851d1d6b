"""What can be known of a run before it computes anything: `spin check`.

Each look calls the functions that the phases themselves call, so that both agree; then memory, disk and time are
estimated. The data and a tokenizer are read, but no weights. Each finding is one line with its numbers.
"""

import os
import tempfile
from pathlib import Path

from spin_core.config.run import RunConfig
from spin_core.preflight import fit
from spin_core.preflight.data import inspect_preferences, inspect_source, inspect_texts
from spin_core.preflight.evaluation import inspect_benchmarks, inspect_judge
from spin_core.preflight.findings import Findings, Inspection
from spin_core.preflight.model import (
    build_model,
    find_model,
    inspect_adapter,
    inspect_logits,
    inspect_model,
    inspect_packing,
    inspect_tokenizer,
)
from spin_core.preflight.prepare import REQUIREMENTS
from spin_core.preflight.resources import find_folder, inspect_disk, inspect_memory, inspect_time
from spin_core.preflight.settings import inspect_kept_metric, inspect_ranks, inspect_settings
from spin_core.preflight.sizes import Shape, Texts
from spin_core.runtime import interpreter


def check_run(config: RunConfig, runs: Path, *, all_values: bool = False) -> Findings:
    """Look at everything that `spin run` with this configuration will need. Errors become findings.

    Args:
        config: the run's settings.
        runs: the folder that holds lineages.
        all_values: look for NaN and infinity in the weights of a large model too.
    """
    inspection = Inspection()
    inspection.run("config", inspect_settings, config)
    failed = {subject for subject, check in REQUIREMENTS if not inspection.passes(subject, check, config)}
    inspection.run("config", inspect_kept_metric, config)
    inspection.run("config", inspect_ranks, config)
    source = None if "data" in failed else inspection.run("data", inspect_source, config)
    preferences = inspection.run("data", inspect_preferences, config)
    with tempfile.TemporaryDirectory(prefix="spin-check-") as scratch:
        folder = inspection.run("model", find_model, config, Path(scratch))
        skeleton = inspection.run("model", build_model, config, folder)
        shape = inspection.run("model", inspect_model, config, folder, skeleton, all_values)
        shape = inspection.run("model", inspect_adapter, config, skeleton, shape)
        effective = inspection.run("model", inspect_packing, config, skeleton) or config
        effective = inspection.run("model", inspect_logits, effective, skeleton) or effective
        if "engine" not in failed:
            inspection.run("engine", inspect_engine, config)
        renderer = inspection.run("tokenizer", inspect_tokenizer, config, folder, skeleton)
        texts = inspection.run("data", inspect_texts, config, source, folder, renderer)
        if "benchmarks" not in failed:
            inspection.run("benchmarks", inspect_benchmarks, config, Path(scratch))
        inspection.run("judge", inspect_judge, config)
    effective = inspection.run("memory", choose_sizes, effective, shape, texts) or effective
    inspection.run("memory", inspect_memory, effective, shape, texts)
    disk = inspection.run("disk", find_folder, runs)
    inspection.run("disk", inspect_disk, config, shape, texts, disk)
    if "metrics" not in failed:
        inspection.run("metrics", inspect_sinks, config)
    inspection.run("store", inspect_store, config)
    inspection.run("time", inspect_time, effective, shape, texts, preferences)
    return Findings(findings=tuple(inspection.findings))


def choose_sizes(_inspection: Inspection, config: RunConfig, shape: Shape, texts: Texts) -> RunConfig:
    """The configuration with the sizes that `auto` stands for on this machine."""
    from spin_core.runtime.devices import device_of

    return fit.fit_run(config, shape, texts, device_of(config.model).type)


def inspect_engine(inspection: Inspection, config: RunConfig) -> None:
    """Which engine will answer, and why."""
    generate = config.generate
    engine, why = interpreter.choose_engine(generate, config.model), interpreter.explain_engine(generate, config.model)
    if engine == "transformers":
        inspection.add("engine", f"transformers answers: {why}")
        return
    speed = generate.vllm.speed
    python = interpreter.required_python(generate.vllm)
    cache = (
        f"{speed.cache_gb:g} GiB"
        if speed.cache_gb
        else f"{speed.memory_fraction:.0%} of a GPU's memory, 2 GiB on a CPU"
    )
    inspection.add("engine", f"vLLM answers ({why}), run by {python}; its room for keys and values: {cache}")


def inspect_sinks(inspection: Inspection, config: RunConfig) -> None:
    """Where metrics go, and whether W&B has a key."""
    if config.metrics.sinks:
        inspection.add("metrics", f"go to {', '.join(config.metrics.sinks)}")
    has_key = "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").exists()
    if "wandb" in config.metrics.sinks and not has_key and os.environ.get("WANDB_MODE", "online") == "online":
        inspection.add("metrics", "W&B has no key: set WANDB_API_KEY, or WANDB_MODE to offline and sync later", "warn")


def inspect_store(inspection: Inspection, config: RunConfig) -> None:
    """The store that holds the copy can be written to: a small file is written and removed."""
    from spin_core.remote import storage

    if config.push.url:
        storage.check(config.push.url)
        how = "read back to compare digests" if config.push.read_back else "not read back"
        inspection.add("store", f"{config.push.url} can be written to; what is pushed is {how}")
