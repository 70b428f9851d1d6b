"""What vLLM does, asked in its own environment: `.venv-vllm/bin/python tests/vllm_probe.py asked.json told.json`.

The environment has no pytest, and starts slowly, so `test_vllm.py` asks everything of one process. A question names a
model's folder, settings of `GenerateConfig` and prompts with seeds; what is told is the answers, or the error.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from spin_core.config.generate import GenerateConfig
from spin_core.config.model import ModelConfig
from spin_core.errors import SpinError
from spin_core.inference.answering import answer_requests
from spin_core.inference.engine import Answer, Request
from spin_core.inference.factory import make_engine

CPU = ModelConfig(device="cpu")


def plain(found: list[Answer]) -> list[Any]:
    return [[answer.response_ids, answer.finish_reason] for answer in found]


def ask(question: dict[str, Any]) -> Any:
    """All answers to each group of requests, the groups one after the other; and how many fit in memory at the end."""
    settings = {"vllm": {}, **question["settings"]}
    settings["vllm"] = {"speed": {"cache_gb": 0.0625}, **settings["vllm"]}
    config = GenerateConfig(engine="vllm", **settings)
    try:
        engine = make_engine(Path(question["model"]), CPU, question["stops"], config, 0)
        if "fails_at_step" in question:
            engine.batch_size = 8
            run_out_of_memory(engine, question["fails_at_step"])
        groups = [[Request(*request) for request in group] for group in question["groups"]]
        cached = count_cached(engine)
        said = [plain(answer_requests(engine, group)) for group in groups]
    except SpinError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"said": said, "batch_size": engine.batch_size, "cached": sum(cached), "settings": settings_in(engine)}


def settings_in(engine: Any) -> dict[str, Any]:
    """What vLLM itself says of how it runs."""
    model, cache = engine.engine.model_config, engine.engine.vllm_config.cache_config
    return {"dtype": str(model.dtype), "context": model.max_model_len, "prefix_caching": cache.enable_prefix_caching}


def count_cached(engine: Any) -> list[int]:
    """How many tokens of each answered prompt were found in the cache; filled as answers come."""
    step, found = engine.engine.step, []

    def counted() -> Any:
        outputs = step()
        found.extend(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    engine.engine.step = counted
    return found


def run_out_of_memory(engine: Any, step: int) -> None:
    """Let the engine's pass through the model fail once, as it does when a device is full."""
    executor = engine.engine.engine_core.engine_core.model_executor
    execute, count = executor.execute_model, 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise torch.OutOfMemoryError("out of memory")
        return execute(*args, **kwargs)

    executor.execute_model = fail


def refuses_a_stranger() -> str:
    """The error of an answer that ended in a way that nobody asked for."""
    from types import SimpleNamespace

    from spin_core.inference.vllm_engine import _answer_of

    try:
        _answer_of(SimpleNamespace(outputs=[SimpleNamespace(finish_reason="abort", token_ids=[1])]))
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    told = {name: ask(question) for name, question in asked.items()}
    heavy = sorted({"prefect", "datasets", "lm_eval", "peft"} & sys.modules.keys())
    Path(sys.argv[2]).write_text(json.dumps({**told, "heavy": heavy, "stranger": refuses_a_stranger()}), "utf-8")
