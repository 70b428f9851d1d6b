"""Questions for vLLM, asked in its own environment: `.venv-vllm/bin/python vllm_probe.py questions.json results.json`.

The environment has no pytest and starts slowly, so `test_vllm_engine.py` asks everything in one process. A question has
a model's folder, settings of `GenerateConfig` and prompts with seeds; a result has the answers, or the error.
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


def plain(answers: list[Answer]) -> list[Any]:
    return [[answer.response_ids, answer.finish_reason] for answer in answers]


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
        group_answers = [plain(answer_requests(engine, group)) for group in groups]
    except SpinError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "answers": group_answers,
        "batch_size": engine.batch_size,
        "cached": sum(cached),
        "settings": settings_in(engine),
    }


def settings_in(engine: Any) -> dict[str, Any]:
    """The settings that vLLM itself reports."""
    model, cache = engine.engine.model_config, engine.engine.vllm_config.cache_config
    return {"dtype": str(model.dtype), "context": model.max_model_len, "prefix_caching": cache.enable_prefix_caching}


def count_cached(engine: Any) -> list[int]:
    """How many tokens of each answered prompt were found in the cache; filled as answers come."""
    step, cached = engine.engine.step, []

    def counted() -> Any:
        outputs = step()
        cached.extend(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    engine.engine.step = counted
    return cached


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


def error_of_unknown_finish_reason() -> str:
    """The error for an unknown finish reason."""
    from types import SimpleNamespace

    from spin_core.inference.vllm_engine import _answer_of

    try:
        _answer_of(SimpleNamespace(outputs=[SimpleNamespace(finish_reason="abort", token_ids=[1])]))
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    questions = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    results = {name: ask(question) for name, question in questions.items()}
    heavy = sorted({"prefect", "datasets", "lm_eval", "peft"} & sys.modules.keys())
    Path(sys.argv[2]).write_text(
        json.dumps({**results, "heavy": heavy, "unknown finish reason": error_of_unknown_finish_reason()}), "utf-8"
    )
