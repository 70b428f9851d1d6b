"""The ranks of a distributed job: processes that train or score together, each with a device of its own.

A job on one device is rank 0 of 1. It needs no process group, and these calls cost nothing. torchrun gives each
process its rank in environment variables, see `torchrun.start_ranks`.

Light to import: torch is loaded where several ranks communicate.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from spin_core.errors import ConfigError, TryAgain

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")

RUN_ID = "spin-"
"""How the torchrun ids of SPIN's own jobs begin."""

TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one another: for the last node to join, or for rank 0 to write."""

_FAILURE = "spin/failed"
"""The key under which a rank leaves the error that ends it."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank, the number of ranks, and how they communicate. All ranks must make the same calls."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """This is the rank that writes files and reports."""
        return self.rank == 0

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The sum of a tensor over all ranks, in place, the same on each."""
        if self.size > 1:
            import torch

            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.total(float(flag)) > 0 if self.size > 1 else flag

    def total(self, number: float) -> float:
        """The sum of a number over all ranks, in float64."""
        if self.size == 1:
            return number
        import torch

        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        return self.sum(torch.tensor(number, dtype=torch.float64, device=device)).item()

    def wait(self) -> None:
        """Return when all ranks have made this call."""
        self.total(0.0)

    def gather(self, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """The tensors of all ranks on the first one; an empty dictionary on the others."""
        if self.size == 1:
            return dict(tensors)
        import torch

        gathered: list[dict[str, Tensor]] | None = [{} for _ in range(self.size)] if self.first else None
        torch.distributed.gather_object(dict(tensors), gathered)
        return {name: tensor for share in gathered or () for name, tensor in share.items()}

    def broadcast(self, value: _T) -> _T:
        """The value that the first rank passes."""
        if self.size == 1:
            return value
        import torch

        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def fail(self, message: Mapping[str, Any]) -> None:
        """Leave the error that ends this rank for the others to read."""
        if self.size > 1 and (store := _store()) is not None:
            with contextlib.suppress(RuntimeError):
                store.set(_FAILURE, json.dumps(message))

    def failure(self) -> dict[str, Any] | None:
        """The error that ended another rank; None if there is none."""
        if self.size > 1 and (store := _store()) is not None:
            with contextlib.suppress(RuntimeError):
                if store.check([_FAILURE]):
                    message: dict[str, Any] = json.loads(store.get(_FAILURE))
                    return message
        return None


def current() -> Ranks:
    """The rank of this process, from torchrun's environment variables."""
    if not is_rank():
        return Ranks()
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def is_rank() -> bool:
    """Whether SPIN has started this process as a rank.

    The variables alone do not show this: another program that uses torchrun may have started SPIN.
    """
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(RUN_ID)


def join(on_gpu: bool) -> Ranks:
    """Join the process group of all ranks, if this process is one; on GPUs, take the one with the rank's number.

    Raises:
        ConfigError: This node has fewer GPUs than ranks.
        TryAgain: Not all ranks joined in time.
    """
    world = current()
    if not is_rank():
        return world
    import torch

    if on_gpu:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ConfigError(
                f"train.speed.ranks is {os.environ['LOCAL_WORLD_SIZE']}, and this node has {gpus} GPUs: one is needed "
                "for each rank"
            )
        torch.cuda.set_device(local)
    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
            world.wait()
        except RuntimeError as error:
            raise TryAgain(
                f"not all {world.size} ranks joined: start all nodes, and let each reach {os.environ['MASTER_ADDR']} "
                f"({(str(error).splitlines() or ['no reason given'])[0]})"
            ) from error
    return world


def leave(*, failed: bool = False) -> None:
    """Leave the process group, if this process is in one.

    A process that ends without leaving gloo aborts, and its exit status is lost. One that has `failed` does not try to
    leave NCCL, which could wait for the other ranks.
    """
    if is_rank():
        import torch

        if torch.distributed.is_initialized() and not (failed and torch.distributed.get_backend() == "nccl"):
            torch.distributed.destroy_process_group()


def _store() -> Any:
    """The key-value store that all ranks share; None before they have joined."""
    import torch

    if not torch.distributed.is_initialized():
        return None
    return torch.distributed.distributed_c10d._get_default_store()
