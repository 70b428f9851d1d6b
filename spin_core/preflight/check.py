"""What can be known of a run before it computes anything: `spin check`.

Asks the functions that the phases themselves ask, so that nothing is tested here in another way than there; then
estimates memory, disk and time. Reads the data and a tokenizer, but no weights. One line a finding, with its numbers.
"""

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spin_core.config.base import SCHEDULE, at
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.evaluation import suites
from spin_core.preflight.data import look_at_preferences, look_at_source, look_at_texts
from spin_core.preflight.findings import Findings, Looks, count, listed
from spin_core.preflight.model import (
    look_at_adapter,
    look_at_logits,
    look_at_model,
    look_at_packing,
    look_at_tokenizer,
    look_for_model,
)
from spin_core.preflight.prepare import REQUIREMENTS
from spin_core.preflight.resources import look_at_disk, look_at_memory, look_at_time, look_for_folder
from spin_core.runtime import interpreter


def check_run(config: RunConfig, runs: Path) -> Findings:
    """Look at everything that `spin run` with this configuration will need."""
    looks = Looks()
    looks.at("config", look_at_settings, config)
    failed = {subject for subject, check in REQUIREMENTS if not looks.passes(subject, check, config)}
    looks.at("config", look_at_measures, config)
    looks.at("config", look_at_ranks, config)
    source = looks.at("data", look_at_source, config)
    preferences = looks.at("data", look_at_preferences, config)
    with tempfile.TemporaryDirectory(prefix="spin-check-") as scratch:
        folder = looks.at("model", look_for_model, config, Path(scratch))
        shape = looks.at("model", look_at_model, config, folder)
        shape = looks.at("model", look_at_adapter, config, folder, shape)
        costly = looks.at("model", look_at_packing, config, folder) or config
        costly = looks.at("model", look_at_logits, costly, folder) or costly
        if "engine" not in failed:
            looks.at("engine", look_at_engine, config)
        renderer = looks.at("tokenizer", look_at_tokenizer, config, folder)
        texts = looks.at("data", look_at_texts, config, source, folder, renderer)
        if "benchmarks" not in failed:
            looks.at("benchmarks", look_at_benchmarks, config, Path(scratch))
        looks.at("judge", look_at_judge, config)
    looks.at("memory", look_at_memory, costly, shape, texts)
    disk = looks.at("disk", look_for_folder, runs)
    looks.at("disk", look_at_disk, config, shape, texts, disk)
    if "metrics" not in failed:
        looks.at("metrics", look_at_sinks, config)
    looks.at("store", look_at_store, config)
    looks.at("time", look_at_time, costly, shape, texts, preferences)
    return Findings(findings=tuple(looks.findings))


def look_at_settings(looks: Looks, config: RunConfig) -> None:
    """Schedules as they will run, and settings that do not go together."""
    steps, train = range(config.iterations), config.train
    mixed = any(at(config.pairs.mix_previous, t) for t in steps[1:])
    schedules = {
        "beta": train.beta,
        "learning rate": train.learning_rate,
        "epochs": train.epochs,
        "temperature": config.generate.temperature,
    }
    run_as = ", ".join(f"{name} {listed(at(values, t) for t in steps)}" for name, values in schedules.items())
    trains_on = "the last two iterations' pairs" if mixed else "each iteration's own pairs"
    looks.add("config", f"{count(config.iterations, 'iteration')} on {trains_on}; {run_as}")
    for name, values in schedules_of(config):
        if len(values) > config.iterations:
            unused = len(values) - config.iterations
            said = f"{name} has {len(values)} values for {count(config.iterations, 'iteration')}"
            looks.add("config", f"{said}: the last {unused} go unused", "warn")
    if train.loss in ("t-spin", "space") and any(at(train.beta, t) != 1 for t in steps):
        looks.add("config", f"train.loss {train.loss} is made for train.beta 1, which its paper takes", "warn")


def look_at_measures(_looks: Looks, config: RunConfig) -> None:
    """What is to choose the weights is measured."""
    from spin_core.training.held_out import check_settings

    check_settings(config.train)
    check_settings(config.sft.train)


def schedules_of(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Dotted name and values of every setting that has one value an iteration."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from schedules_of(value, f"{prefix}{name}.")
        elif SCHEDULE in field.metadata and isinstance(value, tuple):
            yield prefix + name, value


def look_at_ranks(looks: Looks, config: RunConfig) -> None:
    """The processes that train together, if there are several: DeepSpeed, its settings and the devices are there."""
    speed = config.train.speed
    ranks = speed.ranks * speed.nodes
    if ranks == 1 and not speed.deepspeed:
        return
    import torch

    from spin_core.runtime.devices import device_of
    from spin_core.training.deepspeed_config import MISSING, stage_of, zero_settings

    stage = stage_of(zero_settings(config.train, config.model.dtype))
    if find_spec("deepspeed") is None:
        raise ConfigError(MISSING)
    there = torch.cuda.device_count()
    if device_of(config.model).type == "cuda" and there < speed.ranks:
        raise ConfigError(f"train.speed.ranks is {speed.ranks}, and this node has {there} GPUs: one is needed for each")
    looks.add("config", f"trains on {count(ranks, 'rank')} on {count(speed.nodes, 'node')}, ZeRO stage {stage}")
    if ranks > config.train.batch_size:
        idle = ranks - config.train.batch_size
        looks.add("config", f"{count(idle, 'rank')} will idle: set train.batch_size to {ranks} or more", "warn")


def look_at_engine(looks: Looks, config: RunConfig) -> None:
    """Which engine will answer, and that it is there."""
    generate = config.generate
    engine, why = interpreter.chosen(generate, config.model), interpreter.reason(generate, config.model)
    if engine == "transformers":
        looks.add("engine", f"transformers answers: {why}")
        return
    speed = generate.vllm.speed
    python = interpreter.required_python(generate.vllm)
    room = (
        f"{speed.cache_gb:g} GiB"
        if speed.cache_gb
        else f"{speed.memory_fraction:.0%} of a GPU's memory, 2 GiB on a CPU"
    )
    looks.add("engine", f"vLLM answers ({why}), run by {python}; its room for keys and values: {room}")


def look_at_benchmarks(looks: Looks, config: RunConfig, scratch: Path) -> None:
    """lm-eval's suites: they go together, their engine is there, and so are their rows if they come from a folder."""
    settings = config.evaluate.lm_eval
    tasks = {task.name: task for _, tasks in suites.benchmarks(config.evaluate) for task in tasks}
    if not tasks:
        return
    names = ", ".join(tasks)
    engine = "vLLM" if settings.engine == "vllm" else "transformers"
    from spin_core.evaluation.hub import go_offline, is_hub_reachable
    from spin_core.evaluation.local_tasks import write_tasks

    if settings.local_data is None and is_hub_reachable():
        rows = "rows come from the hub when they are needed"
    elif settings.local_data is None:
        from spin_core.evaluation.find_tasks import tasks_from_hub

        go_offline()
        for _ in tasks_from_hub(list(tasks.values())):
            pass
        rows = "the hub is out of reach, and the rows are all in its cache here"
    else:
        if not settings.local_data.is_dir():
            raise ConfigError(
                f"evaluate.lm_eval.local_data {settings.local_data} is not a folder: give one, or unset it"
            )
        local = write_tasks(list(tasks), settings.local_data, scratch)
        borrowers = [
            one.name
            for name, found in local.items()
            for one in found.tasks
            if one.borrows_examples(tasks[name].num_fewshot)
        ]
        rows = f"rows are in {settings.local_data}"
        if borrowers:
            rows += f", which has no rows of their own for the examples in prompts of {', '.join(borrowers)}"
    looks.add("benchmarks", f"{names}, run by {engine}: {rows}")


def look_at_judge(looks: Looks, config: RunConfig) -> None:
    """MT-Bench's judge: its key is set, it answers and has the model; and the questions are there."""
    evaluate = config.evaluate
    if not suites.mt_bench_suites(evaluate):
        return
    from spin_core.evaluation.mt_bench.endpoint import JudgeEndpoint
    from spin_core.evaluation.mt_bench.judge_prompts import OWN_PROMPTS, read_prompts
    from spin_core.evaluation.mt_bench.questions import HUB, load_questions

    folder = evaluate.mt_bench.data
    words = "Spin's own words" if read_prompts(folder) is OWN_PROMPTS else "the folder's words"
    asked = f"{len(load_questions(folder))} questions in {folder}" if folder else f"questions are fetched from {HUB}"
    hurried = evaluate.judge.speed.model_copy(update={"timeout_seconds": 10.0})
    endpoint = JudgeEndpoint(evaluate.judge.model_copy(update={"speed": hurried}))
    endpoint.check(attempts=1)
    looks.add("judge", f"{evaluate.judge.model} at {endpoint.url} answers, and is asked in {words}; {asked}")


def look_at_sinks(looks: Looks, config: RunConfig) -> None:
    """What the sinks of metrics need is there."""
    if config.metrics.sinks:
        looks.add("metrics", f"go to {', '.join(config.metrics.sinks)}")
    known = "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").exists()
    if "wandb" in config.metrics.sinks and not known and os.environ.get("WANDB_MODE", "online") == "online":
        looks.add("metrics", "W&B has no key: set WANDB_API_KEY, or WANDB_MODE to offline and sync later", "warn")


def look_at_store(looks: Looks, config: RunConfig) -> None:
    """The store that is to hold a copy can be written to: a small file is written, and removed."""
    from spin_core.remote import storage

    if config.push.url:
        storage.check(config.push.url)
        how = "read back to compare digests" if config.push.read_back else "not read back"
        looks.add("store", f"{config.push.url} can be written to; what is pushed is {how}")
