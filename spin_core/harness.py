"""lm-eval's view of a model, on either engine. Heavy imports wait until the engine is chosen: each has an environment.

What is longer than the model's context loses its beginning, as in lm-eval, and is counted.
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

from spin_core import vllm_engine
from spin_core.errors import ConfigError
from spin_core.jobs import BenchmarkJob
from spin_core.models import check_safetensors, is_stacked, load_model, load_tokenizer, weights_of


class Fitting:
    """What makes requests fit into a model's context, before the class of lm-eval's that answers them."""

    room: int
    """Most tokens of a prompt and what follows it."""
    max_length: int
    max_gen_toks: int
    tok_encode: Any

    def reset(self) -> None:
        """Count from 0 on."""
        self.asked = self.cut = 0
        self.longest: tuple[int, int] | None = None
        """Tokens of an answer that there is room for, and that the task would allow, where those are more."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        fitting = []
        for text, context, continuation in requests:
            # lm-eval itself refuses a continuation that is longer than the model's context.
            kept = continuation[-(self.room - 1) :]
            before = context[-(self.room - len(kept)) :]
            self.cut += len(before) + len(kept) < len(context) + len(continuation)
            fitting.append((text, before, kept))
        self.asked += len(requests)
        return super()._loglikelihood_tokens(fitting, *args, **kwargs)  # type: ignore[misc]

    def generate_until(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        from lm_eval.models.utils import normalize_gen_kwargs

        fitting = []
        for request in requests:
            prompt, given = request.args
            allowed = normalize_gen_kwargs(given, self.max_gen_toks)["max_gen_toks"]
            # lm-eval itself refuses to answer where that would leave no room for a prompt.
            longest = min(allowed, self.max_length // 2)
            if longest < allowed:
                self.longest = (longest, allowed)
                request = dataclasses.replace(request, arguments=(prompt, {**given, "max_gen_toks": longest}))
            self.cut += len(self.tok_encode(prompt)) > self.max_length - longest
            fitting.append(request)
        self.asked += len(requests)
        return super().generate_until(fitting, *args, **kwargs)  # type: ignore[misc]

    def fit(self) -> dict[str, Any]:
        """What did and did not fit since the last `reset`."""
        return {"asked": self.asked, "cut": self.cut, "context": int(self.max_length), "longest": self.longest}


def notes_of(task: str, fits: Sequence[Mapping[str, Any]]) -> list[str]:
    """What did not fit in a task, or in all tasks of a group, for people."""
    asked, cut = (sum(fit[name] for fit in fits) for name in ("asked", "cut"))
    found = []
    if cut:
        found.append(
            f"{task}: {cut:,} of {asked:,} prompts are longer than the model's context of "
            f"{fits[0]['context']:,} tokens, and lost their beginning"
        )
    shortened = sorted({tuple(fit["longest"]) for fit in fits if fit["longest"]})
    return found + [f"{task}: answers have room for {room:,} tokens, not {wanted:,}" for room, wanted in shortened]


def load(job: BenchmarkJob) -> Any:
    """The model as lm-eval wants it. `SpinError` says in one line why it cannot be."""
    if job.config.apply_chat_template and not load_tokenizer(job.player.path, job.model).chat_template:
        raise ConfigError(
            "evaluate.lm_eval.apply_chat_template is on, but the tokenizer has no chat template: turn it off"
        )
    harness = on_vllm(job) if job.config.engine == "vllm" else on_transformers(job)
    harness.reset()
    return harness


def on_transformers(job: BenchmarkJob) -> Any:
    """lm-eval's `hf` model."""
    from lm_eval.models.huggingface import HFLM

    class Harness(Fitting, HFLM):  # type: ignore[misc]
        pass

    tokenizer = load_tokenizer(job.player.path, job.model)
    harness = Harness(
        pretrained=load_model(job.player.path, job.model),
        tokenizer=tokenizer,
        batch_size=job.config.speed.batch_size,
    )
    harness.room = int(harness.max_length) + 1  # the last token is asked for, and never read
    return harness


def lm_evals_vllm() -> Any:
    """lm-eval's class for vLLM, whose version it asks for by that name; the CPU build is installed under another."""
    vllm, version = vllm_engine.import_vllm(), importlib.metadata.version
    with mock.patch("importlib.metadata.version", lambda name: vllm.__version__ if name == "vllm" else version(name)):
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


def on_vllm(job: BenchmarkJob) -> Any:
    """lm-eval's `vllm` model. It asks for all at once, and vLLM batches by what it has room for."""
    base: Any = lm_evals_vllm()

    class Harness(Fitting, base):  # type: ignore[misc]
        pass

    folder = job.player.path
    settings = vllm_engine.settings_of(job.model, job.config.vllm, on_cpu=vllm_engine.check_device(job.model))
    with contextlib.ExitStack() as while_loading:
        weights = weights_of(folder)
        if is_stacked(folder):
            weights = while_loading.enter_context(vllm_engine.merged(folder, job.model))
        check_safetensors(weights)
        try:
            harness = Harness(pretrained=str(weights), tokenizer=str(folder), batch_size="auto", **settings)
        except (ValueError, RuntimeError, OSError, MemoryError, AssertionError, LookupError, ImportError) as error:
            raise vllm_engine.start_error(error, folder) from error
    harness.room = int(harness.max_length) - 1  # vLLM answers each prompt with a token at least
    return harness
