"""vLLM as an engine: its offline interface in this process, and the very tokens that it sampled.

It runs in a virtual environment of its own (`make vllm`; `runtime.interpreter` finds it).

Random numbers belong to the request, so an answer depends on its seed alone, up to rounding: a batch of another
composition changes the last bits of logits, and with them now and then a token. The same requests in one call give the
same tokens on the same machine, whatever was answered before: they are batched by their order and not by the arrival of
messages between processes, and each call starts with an empty prefix cache.
"""

import contextlib
import itertools
import logging
import os
import re
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spin_core.config.generate import VllmConfig
from spin_core.config.model import ModelConfig
from spin_core.errors import ConfigError, ModelError, SpinError, TryAgain, first_line
from spin_core.inference.engine import Answer, Request, token_limit
from spin_core.inference.sampling import Sampling
from spin_core.models.adapters import combine_adapters, read_adapters, write_adapter
from spin_core.models.files import check_safetensors, is_stacked, weights_of
from spin_core.models.loading import load_model
from spin_core.store import files

log = logging.getLogger("spin_core")

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # another process would batch requests as messages arrive
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",  # the model is in a folder
}
"""Defaults of environment variables that vLLM reads."""

_CPU_CACHE_GB = 2.0

_LOWEST_TEMPERATURE = 0.01
"""vLLM raises a lower temperature to this, so lower ones are passed as 0, the greedy choice."""

_ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM has kernels for; smaller adapters are padded."""


class VllmEngine:
    """Samples from any causal language model that vLLM runs, on GPUs or on a CPU."""

    def __init__(
        self, folder: Path, model: ModelConfig, stop_ids: Sequence[int], sampling: Sampling, config: VllmConfig
    ) -> None:
        """Load the version in `folder`. Raises `SpinError` with one line when that fails."""
        self.sampling, self.batch_size = sampling, config.speed.batch_size
        self._vllm = import_vllm()
        on_cpu = check_device(model)
        self._stop_ids = sorted({*stop_ids, *sampling.stop_ids})
        self._names = itertools.count()
        with contextlib.ExitStack() as while_loading:
            settings = vllm_settings(model, config, on_cpu=on_cpu)
            if on_cpu and config.speed.tensor_parallel > 1:
                # By default it wants one memory node for each part of the model.
                os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            apply = is_stacked(folder) and config.adapters == "apply"
            weights = weights_of(folder)
            if is_stacked(folder) and not apply:
                weights = while_loading.enter_context(merged_weights(folder, model))
            check_safetensors(weights)
            if apply:
                settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _adapter_rank(folder)}
            try:
                llm = self._vllm.LLM(
                    model=str(weights),
                    tokenizer=str(folder),
                    skip_tokenizer_init=not sampling.stop_strings,
                    **settings,
                )
                self._adapter = _load_adapter(llm, folder, while_loading) if apply else None
            except (ValueError, RuntimeError, OSError, MemoryError, AssertionError, LookupError, ImportError) as error:
                raise start_error(error, folder) from error
        self.engine: Any = llm.llm_engine
        # Free the device's memory together with this object, so that another version can be loaded after it.
        weakref.finalize(self, self.engine.engine_core.shutdown)
        log.info("answering with vLLM %s, at most %d prompts at a time", self._vllm.__version__, self.batch_size)
        self.context: int = self.engine.model_config.max_model_len
        self.vocabulary: int = self.engine.model_config.get_vocab_size()

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answer every request once; yields (index of the request, answer) as answers end.

        Raises the errors of `token_limit`. However this ends, no request stays in the engine.
        """
        most = self.sampling.max_new_tokens
        limits = [token_limit(request.prompt_ids, most, self.context, self.vocabulary) for request in requests]
        self.engine.reset_prefix_cache()
        waiting, in_progress = deque(range(len(requests))), dict[str, int]()
        try:
            while waiting or in_progress:
                while waiting and len(in_progress) < self.batch_size:
                    i, name = waiting.popleft(), str(next(self._names))
                    in_progress[name] = i
                    self._add(name, requests[i], limits[i])
                for output in self.engine.step():
                    yield in_progress.pop(output.request_id), _answer_of(output)
        finally:
            if in_progress:
                self.engine.abort_request(list(in_progress))

    def _add(self, name: str, request: Request, limit: int) -> None:
        """Add a request to vLLM's queue."""
        sampling = self.sampling
        parameters = self._vllm.SamplingParams(
            temperature=sampling.temperature if sampling.temperature >= _LOWEST_TEMPERATURE else 0.0,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            stop=list(sampling.stop_strings) or None,
            stop_token_ids=self._stop_ids,
            ignore_eos=True,  # it comes from the model's files; the configured ones are in stop_token_ids
            max_tokens=limit,
            seed=request.seed % 2**63,
            detokenize=bool(sampling.stop_strings),
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        prompt = self._vllm.inputs.tokens_input(list(request.prompt_ids))
        self.engine.add_request(name, prompt, parameters, lora_request=self._adapter)


def _answer_of(output: Any) -> Answer:
    """The answer in vLLM's output. Its tokens include the stop token, or the last token of the stop string."""
    [completion] = output.outputs
    if completion.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended an answer with {completion.finish_reason!r}")
    return Answer(list(completion.token_ids), completion.finish_reason)


def import_vllm() -> Any:
    """The package vllm. Raises `ConfigError` where it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
        import vllm.inputs
        import vllm.sampling_params
    except ImportError as error:
        raise ConfigError(
            f"vLLM cannot be imported by this interpreter ({first_line(error)}): run `make vllm`, and start the phase "
            "with .venv-vllm/bin/python, or set generate.engine to transformers"
        ) from error
    return vllm


def check_device(model: ModelConfig) -> bool:
    """Whether vLLM runs on a CPU. Raises `ConfigError` if the configuration wants another device."""
    from vllm.platforms import current_platform

    on_cpu = bool(current_platform.is_cpu())
    if model.device != "auto" and on_cpu != (model.device == "cpu"):
        build = "its CPU build, or sees no GPU" if on_cpu else "its GPU build"
        raise ConfigError(
            f"model.device is {model.device}, and vLLM is {build}: set model.device to auto, or generate.engine to "
            "transformers"
        )
    return on_cpu


def vllm_settings(model: ModelConfig, config: VllmConfig, *, on_cpu: bool) -> dict[str, Any]:
    """The settings as arguments of `vllm.LLM`."""
    speed = config.speed
    cache_gb = speed.cache_gb or (_CPU_CACHE_GB if on_cpu else None)
    return {
        "dtype": model.dtype if config.dtype == "model" else config.dtype,
        "trust_remote_code": model.trust_remote_code,
        "tensor_parallel_size": speed.tensor_parallel,
        "gpu_memory_utilization": speed.memory_fraction,
        "kv_cache_memory_bytes": cache_gb and int(cache_gb * 2**30),
        "max_num_seqs": speed.batch_size,
        "max_model_len": config.max_length,
        "enable_prefix_caching": speed.prefix_caching,
        "enforce_eager": speed.eager or on_cpu,  # compiling for a CPU takes longer than it saves
        # After a part of a prompt vLLM resets a seeded generator, which fails on a CPU.
        "enable_chunked_prefill": not on_cpu,
        "quantization": config.quantization or None,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "seed": 0,
    }


@contextlib.contextmanager
def merged_weights(folder: Path, model: ModelConfig) -> Iterator[Path]:
    """A temporary folder with a version's weights, its adapters merged into them as `load_model` does."""
    scratch = Path(tempfile.gettempdir())
    with files.storage_errors(scratch), tempfile.TemporaryDirectory(prefix="spin-merged-") as name:
        load_model(folder, model.model_copy(update={"device": "cpu"})).save_pretrained(name)
        yield Path(name)


def _adapter_rank(folder: Path) -> int:
    """The smallest rank with kernels in vLLM that fits a version's adapters combined into one."""
    rank = combine_adapters(read_adapters(folder)).config["r"]
    if rank > _ADAPTER_RANKS[-1]:
        raise ConfigError(
            f"the adapters in {folder} have rank {rank} together, and vLLM applies at most {_ADAPTER_RANKS[-1]}: set "
            "generate.vllm.adapters to merge"
        )
    return min(supported for supported in _ADAPTER_RANKS if supported >= rank)


def _load_adapter(llm: Any, folder: Path, scratch: contextlib.ExitStack) -> Any:
    """Load all of a version's adapters as one; returns what every request must name."""
    from vllm.lora.request import LoRARequest

    path = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="spin-adapter-"))) / "adapter"
    write_adapter(combine_adapters(read_adapters(folder)), path)
    adapter = LoRARequest("opponent", 1, str(path))
    llm.llm_engine.add_lora(adapter)
    llm.llm_engine.pin_lora(1)
    return adapter


def start_error(error: Exception, folder: Path) -> SpinError:
    """The error for a user when vLLM does not start: one line with the fix. The log has the rest."""
    summary = _summary(error)
    if "architectures" in summary:
        names = re.search(r"\[[^\]]*\]", summary)
        return ModelError(
            f"vLLM does not run the architecture {names[0] if names else 'of this model'} of {folder}: set "
            "generate.engine to transformers"
        )
    if "already in use" in summary or "EADDRINUSE" in summary:
        return TryAgain(f"vLLM needs a port that is taken ({summary}): the same command may find another")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or re.search(r"(?i)\bmemory\b|kv cache", summary):
        return ModelError(
            f"there is not enough memory to start vLLM ({summary}): lower generate.vllm.max_length, set "
            "generate.vllm.speed.cache_gb or memory_fraction to what is free, or raise tensor_parallel there"
        )
    log.warning("vLLM's error:", exc_info=error)
    return ModelError(f"vLLM cannot load {folder} ({summary}): fix that, or set generate.engine to transformers")


def _summary(error: Exception) -> str:
    """An error's message in one line, without what pydantic adds to it."""
    text = re.sub(r"^\d+ validation errors? for \w+ (Value error, )?|\[type=.*", "", " ".join(str(error).split()))
    return f"{text[:200]}…" if len(text) > 200 else text.strip() or type(error).__name__
