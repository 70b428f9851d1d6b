"""Which engine runs a model, and which interpreter runs the engine. Light to import: no engine is loaded here."""

import os
import sys
from pathlib import Path

from spin_core.config.generate import GenerateConfig, VllmConfig
from spin_core.config.model import ModelConfig
from spin_core.errors import ConfigError
from spin_core.store import artifacts
from spin_core.store.job_types import JOB_TYPES

_VENV = ".venv-vllm"
"""vLLM's virtual environment, next to SPIN's own."""

GPUS_ELSEWHERE = (
    "generate.engine=auto sees no GPU on this machine and does not look at those of generate.speed.ray: set it to vllm "
    "if the workers there have vLLM's GPU build"
)


def choose_engine(config: GenerateConfig, model: ModelConfig, output: Path | None = None) -> str:
    """The engine to use here and now: `transformers` or `vllm`.

    If `output` is published already, its engine is kept, so that a run may continue on a machine where `auto` would
    choose the other one.
    """
    if config.engine != "auto":
        return config.engine
    built = artifacts.read_manifest(output) if output else None
    kind = JOB_TYPES.get(built["identity"].get("phase", "")) if built else None
    if built and kind and kind.engine_in:
        return str(built["identity"][kind.engine_in]["engine"])
    ready = model.device != "cpu" and sees_gpu() and os.access(vllm_python(config.vllm), os.X_OK)
    return "vllm" if ready else "transformers"


def explain_engine(config: GenerateConfig, model: ModelConfig) -> str:
    """Why `choose_engine` chooses its engine, for people."""
    if config.engine != "auto":
        return "set by generate.engine"
    if model.device == "cpu" or not sees_gpu():
        return GPUS_ELSEWHERE if gpus_elsewhere(config, model) else "there is no GPU to use"
    python = vllm_python(config.vllm)
    return "there is a GPU" if os.access(python, os.X_OK) else f"{python} is missing, make vllm installs it"


def gpus_elsewhere(config: GenerateConfig, model: ModelConfig) -> bool:
    """Whether `auto` sees no GPU here while workers on a Ray cluster have some."""
    ray = config.speed.ray
    return config.engine == "auto" and model.device != "cpu" and not sees_gpu() and ray is not None and ray.gpus > 0


def sees_gpu() -> bool:
    """Whether this machine has a GPU that a process started here would see."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def vllm_python(config: VllmConfig) -> Path:
    """The interpreter of vLLM's environment. It may not exist."""
    return Path(config.python or Path(sys.prefix).parent / _VENV / "bin" / "python").expanduser().absolute()


def required_python(config: VllmConfig, setting: str = "generate.engine") -> Path:
    """The interpreter of vLLM's environment.

    Args:
        config: The settings of vLLM.
        setting: The setting that chose vLLM, for the message.

    Raises:
        ConfigError: There is no such interpreter.
    """
    python = vllm_python(config)
    if not os.access(python, os.X_OK):
        raise ConfigError(
            f"vLLM's environment is missing ({python} is not an interpreter): run `make vllm`, name another in "
            f"generate.vllm.python, or set {setting} to transformers"
        )
    return python
