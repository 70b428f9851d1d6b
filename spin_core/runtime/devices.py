"""The device of a model, and how the GPUs of a machine are divided among workers."""

import os

import torch

from spin_core.config.model import ModelConfig
from spin_core.errors import ModelError


def environments(workers: int, devices: int, each: int = 1) -> list[dict[str, str]]:
    """The environment variables of each worker on this machine: its GPUs, or its number of threads without GPUs.

    Workers share GPUs if there are too few.

    Args:
        workers: How many workers there are.
        devices: How many GPUs this process sees.
        each: How many GPUs a worker takes.
    """
    if not devices:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // max(1, workers))))
        return [{"OMP_NUM_THREADS": threads} for _ in range(workers)]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else [str(number) for number in range(devices)]
    groups = [names[first : first + each] for first in range(0, len(names) - each + 1, each)]
    groups = groups or [names]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[number % len(groups)])} for number in range(workers)]


def device_of(config: ModelConfig) -> torch.device:
    """The device that the configuration names. `ModelError` if it is a GPU and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is cuda, but torch sees no GPU: set model.device to auto or cpu")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)
