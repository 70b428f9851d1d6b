"""How fast this device is just now, tried in a moment: what `estimate.py` reckons times from."""

import time
from collections.abc import Callable
from typing import Any

from spin_core.config.run import RunConfig
from spin_core.preflight.estimate import FLOAT32, Shape, Speed, Texts, tokens_in_a_pass

TRIED_SECONDS = 0.12
"""How long each operation is tried."""

ROWS_TRIED = {"cpu": 2048, "cuda": 16384}
"""Rows of the product that is tried, at most: a GPU is idle for half the time of a short one."""


def measure(shape: Shape, config: RunConfig, texts: Texts, device: Any) -> Speed:
    """Try matrix products of this model's widths on the device, and operations that compute next to nothing."""
    import torch

    from spin_core.models.loading import SINGLE_THREAD_PARAMETERS

    dtype = getattr(torch, config.model.dtype)
    width = min(shape.intermediate, 4096)
    weight_HI = torch.full((shape.hidden, width), 0.01, dtype=dtype, device=device)

    def product(rows: int) -> float:
        rows_RH = torch.full((rows, shape.hidden), 0.01, dtype=dtype, device=device)
        return 2.0 * rows * shape.hidden * width / fastest(lambda: rows_RH @ weight_HI, device)

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if shape.parameters < SINGLE_THREAD_PARAMETERS else threads)  # as `load_model` does
    try:
        long, little = (torch.zeros(size, device=device) for size in (4_000_000, 8))
        return Speed(
            batch_flops=product(min(ROWS_TRIED[device.type], tokens_in_a_pass(config.train, texts.longest))),
            row_flops=product(min(config.generate.batch_size, texts.prompts)),
            bandwidth=2.0 * FLOAT32 * len(long) / fastest(lambda: long + 1, device),
            start=fastest(lambda: little + 1, device),
            own_device=device.type == "cuda",
        )
    finally:
        torch.set_num_threads(threads)


def fastest(work: Callable[[], Any], device: Any) -> float:
    """Seconds that `work` takes when nothing disturbs it: the least of what fits into a tenth of a second."""
    import torch

    def timed() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    work()
    end = time.perf_counter() + TRIED_SECONDS
    found = timed()
    while time.perf_counter() < end:
        found = min(found, timed())
    return found
