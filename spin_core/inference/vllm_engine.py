"""vLLM as an engine: its offline interface in this very process, and the tokens that it sampled as they are.

It runs in a virtual environment of its own (`make vllm`; `launch.interpreter` finds it).

Random numbers belong to the request, so what is said to a prompt depends on its seed alone, up to rounding: a batch of
another composition changes the last bits of logits, and with them now and then a token. The same requests in the same
call, after whichever others, give the same tokens on the same machine: they are batched by their order and not by when
messages between processes arrive, and no call sees what another has cached.
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
from spin_core.inference.engine import Answer, Request, room
from spin_core.inference.sampling import Sampling
from spin_core.models import adapters
from spin_core.models.files import check_safetensors, is_stacked, weights_of
from spin_core.models.loading import load_model
from spin_core.store import files

log = logging.getLogger("spin_core")

SURROUNDINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process of its own would batch requests as they happen to arrive
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",  # the model lies in a folder
}
"""vLLM's environment, where ours does not say otherwise."""

CPU_CACHE_GB = 2.0

GREEDY = 0.01
"""vLLM takes a temperature below this for this, so colder ones are the greedy choice."""

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Adapters' ranks that vLLM has kernels for; a smaller one is filled up."""


class VllmEngine:
    """Samples from any causal language model that vLLM runs, on GPUs or on a CPU."""

    def __init__(
        self, folder: Path, model: ModelConfig, stop_ids: Sequence[int], sampling: Sampling, config: VllmConfig
    ) -> None:
        """Load the version in `folder`. `SpinError` says in one line why it cannot be."""
        self.sampling, self.batch_size = sampling, config.speed.batch_size
        self.vllm = import_vllm()
        on_cpu = check_device(model)
        self.stop_ids = sorted({*stop_ids, *sampling.stop_ids})
        self.ids = itertools.count()
        with contextlib.ExitStack() as while_loading:
            settings = settings_of(model, config, on_cpu=on_cpu)
            if on_cpu and config.speed.tensor_parallel > 1:
                # Left to itself it wants a memory node for each part of the model.
                os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            apply = is_stacked(folder) and config.adapters == "apply"
            weights = weights_of(folder)
            if is_stacked(folder) and not apply:
                weights = while_loading.enter_context(merged(folder, model))
            check_safetensors(weights)
            if apply:
                settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank_of(folder)}
            try:
                llm = self.vllm.LLM(
                    model=str(weights),
                    tokenizer=str(folder),
                    skip_tokenizer_init=not sampling.stop_strings,
                    **settings,
                )
                self.adapter = load_adapter(llm, folder, while_loading) if apply else None
            except (ValueError, RuntimeError, OSError, MemoryError, AssertionError, LookupError, ImportError) as error:
                raise start_error(error, folder) from error
        self.engine: Any = llm.llm_engine
        # What holds a device's memory is let go with us, so that another version can be loaded after this one.
        weakref.finalize(self, self.engine.engine_core.shutdown)
        log.info("answering with vLLM %s, at most %d prompts at a time", self.vllm.__version__, self.batch_size)
        self.context: int = self.engine.model_config.max_model_len
        self.vocabulary: int = self.engine.model_config.get_vocab_size()

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answer every request once; yields (index of the request, answer) as answers are finished.

        Raises what `room` does. Whatever ends it, no request stays in the engine.
        """
        limits = [room(one.prompt_ids, self.sampling.max_new_tokens, self.context, self.vocabulary) for one in requests]
        self.engine.reset_prefix_cache()
        waiting, flying = deque(range(len(requests))), dict[str, int]()
        try:
            while waiting or flying:
                while waiting and len(flying) < self.batch_size:
                    i, name = waiting.popleft(), str(next(self.ids))
                    flying[name] = i
                    self.add(name, requests[i], limits[i])
                for output in self.engine.step():
                    yield flying.pop(output.request_id), answer_of(output)
        finally:
            if flying:
                self.engine.abort_request(list(flying))

    def add(self, name: str, request: Request, limit: int) -> None:
        """Give the engine one request."""
        said = self.sampling
        parameters = self.vllm.SamplingParams(
            temperature=said.temperature if said.temperature >= GREEDY else 0.0,
            top_p=said.top_p,
            top_k=said.top_k,
            min_p=said.min_p,
            repetition_penalty=said.repetition_penalty,
            stop=list(said.stop_strings) or None,
            stop_token_ids=self.stop_ids,
            ignore_eos=True,  # the model's own opinion of what ends an answer: ours is in stop_token_ids
            max_tokens=limit,
            seed=request.seed % 2**63,
            detokenize=bool(said.stop_strings),
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        prompt = self.vllm.inputs.tokens_input(list(request.prompt_ids))
        self.engine.add_request(name, prompt, parameters, lora_request=self.adapter)


def answer_of(output: Any) -> Answer:
    """A finished request's tokens. They end in what stopped them, be it a stop token or a stop string's last."""
    [said] = output.outputs
    if said.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended an answer with {said.finish_reason!r}")
    return Answer(list(said.token_ids), said.finish_reason)


def import_vllm() -> Any:
    """The package. `ConfigError` where it is not installed."""
    for name, value in SURROUNDINGS.items():
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
    """Whether vLLM runs on a CPU. `ConfigError` if the model is to run elsewhere."""
    from vllm.platforms import current_platform

    on_cpu = bool(current_platform.is_cpu())
    if model.device != "auto" and on_cpu != (model.device == "cpu"):
        have = "its CPU build, or sees no GPU" if on_cpu else "its GPU build"
        raise ConfigError(
            f"model.device is {model.device}, and vLLM is {have}: set model.device to auto, or generate.engine to "
            "transformers"
        )
    return on_cpu


def settings_of(model: ModelConfig, config: VllmConfig, *, on_cpu: bool) -> dict[str, Any]:
    """vLLM's own names for our settings."""
    speed = config.speed
    cache_gb = speed.cache_gb or (CPU_CACHE_GB if on_cpu else None)
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
        # vLLM turns a seeded generator back after a part of a prompt, and a CPU's cannot be turned back.
        "enable_chunked_prefill": not on_cpu,
        "quantization": config.quantization or None,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "seed": 0,
    }


@contextlib.contextmanager
def merged(folder: Path, model: ModelConfig) -> Iterator[Path]:
    """While this lasts, a folder with a version's weights, its adapters merged into them as `load_model` does."""
    scratch = Path(tempfile.gettempdir())
    with files.storage_errors(scratch), tempfile.TemporaryDirectory(prefix="spin-merged-") as name:
        load_model(folder, model.model_copy(update={"device": "cpu"})).save_pretrained(name)
        yield Path(name)


def rank_of(folder: Path) -> int:
    """A rank that vLLM has kernels for, and that holds a version's adapters side by side."""
    rank = adapters.combined(adapters.read(folder)).config["r"]
    if rank > RANKS[-1]:
        raise ConfigError(
            f"the adapters in {folder} have rank {rank} together, and vLLM applies at most {RANKS[-1]}: set "
            "generate.vllm.adapters to merge"
        )
    return min(known for known in RANKS if known >= rank)


def load_adapter(llm: Any, folder: Path, scratch: contextlib.ExitStack) -> Any:
    """All of a version's adapters as one, loaded; what every request is to name."""
    from vllm.lora.request import LoRARequest

    path = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="spin-adapter-"))) / "adapter"
    adapters.write(adapters.combined(adapters.read(folder)), path)
    adapter = LoRARequest("opponent", 1, str(path))
    llm.llm_engine.add_lora(adapter)
    llm.llm_engine.pin_lora(1)
    return adapter


def start_error(error: Exception, folder: Path) -> SpinError:
    """What kept vLLM from starting, in one line with its cure. The log has the rest."""
    said = gist(error)
    if "architectures" in said:
        names = re.search(r"\[[^\]]*\]", said)
        return ModelError(
            f"vLLM does not run the architecture {names[0] if names else 'of this model'} of {folder}: set "
            "generate.engine to transformers"
        )
    if "already in use" in said or "EADDRINUSE" in said:
        return TryAgain(f"vLLM found a port taken ({said}): the same command may find another")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or re.search(r"(?i)\bmemory\b|kv cache", said):
        return ModelError(
            f"there is not enough memory to start vLLM ({said}): lower generate.vllm.max_length, set "
            "generate.vllm.speed.cache_gb or memory_fraction to what is free, or raise tensor_parallel there"
        )
    log.warning("vLLM's own words:", exc_info=error)
    return ModelError(f"vLLM cannot load {folder} ({said}): mend that, or set generate.engine to transformers")


def gist(error: Exception) -> str:
    """What an error says, in one line and without what pydantic writes around it."""
    said = re.sub(r"^\d+ validation errors? for \w+ (Value error, )?|\[type=.*", "", " ".join(str(error).split()))
    return f"{said[:200]}…" if len(said) > 200 else said.strip() or type(error).__name__
