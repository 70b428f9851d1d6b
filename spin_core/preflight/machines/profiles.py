"""The machines that `spin check --on` knows, and the shapes of the models that recipes name.

Both are data: `gpus.toml` has the vendors' figures with their sources, `models.toml` the sizes of models.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from spin_core.config.model import ModelConfig
from spin_core.errors import ConfigError
from spin_core.preflight.sizes import FLOAT32, Shape

MOST_GPUS = 1024
"""The most GPUs of a machine, and the most machines, that are taken for a real question."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU; `gpus.toml` explains the fields."""

    name: str
    memory: float
    bandwidth: float
    bfloat16: float
    float32: float
    link: float
    network: float
    source: str

    def flops(self, dtype: str) -> float:
        """The peak of products in this precision."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


@dataclass(frozen=True)
class Machine:
    """Nodes of the same GPUs."""

    gpu: Gpu
    each: int
    """GPUs of a node."""
    nodes: int = 1

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.each * self.nodes

    @property
    def link(self) -> float:
        """Bytes a second from each rank to the next in a ring of all. It leaves a node once, over its whole network."""
        return self.gpu.link if self.nodes == 1 else min(self.gpu.link, self.each * self.gpu.network)


def machine_of(text: str, nodes: int = 1) -> Machine:
    """The machine that a user means by `8xH100`, or by `H100` for one GPU.

    Raises:
        ConfigError: No such machine is known.
    """
    count, name = re.fullmatch(r"(?:(\d{1,6})\s*[xX×*]\s*)?(.*)", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    known = {_plain(key): Gpu(**values) for key, values in _read("gpus.toml").items()}
    if _plain(name) not in known or not 1 <= int(count or 1) <= MOST_GPUS:
        names = ", ".join(_read("gpus.toml"))
        raise ConfigError(f"--on {text!r} is not a known machine: give a number and a GPU, as 8xH100; GPUs are {names}")
    return Machine(known[_plain(name)], int(count or 1), nodes)


def shape_of_known(model: ModelConfig) -> Shape | None:
    """The shape of a model that a recipe names; None for others."""
    values = _read("models.toml").get(model.path)
    return Shape(**values, itemsize=2 if model.dtype == "bfloat16" else FLOAT32) if values else None


def _plain(name: str) -> str:
    """`A100-80GB` for `a100 80gb`: names are compared without case, spaces and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files("spin_core.preflight.machines") / name).read_text("utf-8"))
