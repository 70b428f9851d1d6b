"""The speed of this device now, measured within a second: what `timing` estimates times from."""

import time
from collections.abc import Callable
from typing import Any

from spin_core.config.run import RunConfig
from spin_core.preflight.sizes import FLOAT32, Shape, Texts, prompts_at_a_time, tokens_in_a_pass
from spin_core.preflight.times.timing import Speed

TRIED_SECONDS = 0.12
"""How long each operation is repeated."""

_MOST_ROWS = {"cpu": 2048, "cuda": 16384}
"""The most rows of the product that is measured. A GPU is idle for half the time of a short one."""


def measure(shape: Shape, config: RunConfig, texts: Texts, device: Any) -> Speed:
    """Measure products and attention of this model's widths on a torch device, and operations that compute nothing."""
    import torch

    from spin_core.models.loading import SINGLE_THREAD_PARAMETERS

    dtype = getattr(torch, config.model.dtype)
    width = min(shape.intermediate, 4096)
    weight_HI = torch.full((shape.hidden, width), 0.01, dtype=dtype, device=device)

    def flops(rows: int) -> float:
        rows_RH = torch.full((rows, shape.hidden), 0.01, dtype=dtype, device=device)
        return 2.0 * rows * shape.hidden * width / _fastest(lambda: rows_RH @ weight_HI, device)

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if shape.parameters < SINGLE_THREAD_PARAMETERS else threads)  # as `load_model` does

    def attention() -> float:
        """Seconds of one layer's attention over one token, in sequences of the data's mean length."""
        length = max(1, round(texts.prompt_tokens + texts.response_tokens))
        rows = max(1, min(_MOST_ROWS[device.type], tokens_in_a_pass(config.train, texts.longest)) // length)
        size = (rows, shape.heads, length, max(1, shape.query_width // shape.heads))
        query, key, value = (torch.full(size, 0.01, dtype=dtype, device=device) for _ in range(3))
        attend = torch.nn.functional.scaled_dot_product_attention
        return _fastest(lambda: attend(query, key, value, is_causal=True), device) / (rows * length)

    try:
        large, tiny = (torch.zeros(size, device=device) for size in (4_000_000, 8))
        return Speed(
            batch_flops=flops(min(_MOST_ROWS[device.type], tokens_in_a_pass(config.train, texts.longest))),
            row_flops=flops(min(prompts_at_a_time(config.generate), texts.prompts)),
            bandwidth=2.0 * FLOAT32 * len(large) / _fastest(lambda: large + 1, device),
            attention=attention(),
            start=_fastest(lambda: tiny + 1, device),
            own_device=device.type == "cuda",
        )
    finally:
        torch.set_num_threads(threads)


def _fastest(work: Callable[[], Any], device: Any) -> float:
    """Seconds that `work` takes when nothing disturbs it: the minimum of `TRIED_SECONDS` of repetitions."""
    import torch

    def timed() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    work()  # the first call may compile or allocate
    end = time.perf_counter() + TRIED_SECONDS
    seconds = timed()
    while time.perf_counter() < end:
        seconds = min(seconds, timed())
    return seconds
