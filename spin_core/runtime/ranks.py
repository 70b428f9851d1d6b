"""The processes that train together, as the training loop sees them.

A rank is a process with a device of its own. One rank alone needs no process group, and then nothing here costs
anything. Which ranks there are, torchrun tells each in its environment (see `torchrun.start_ranks`).

Light to import: torch is loaded where several ranks speak to one another.
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

T = TypeVar("T")

RUN_ID = "spin-"
"""How the names of our runs begin, by which a rank knows that it is one of ours."""

PATIENCE = timedelta(minutes=30)
"""How long ranks wait for one another: for the last node to come, or for rank 0 to write."""

FAILED = "spin/failed"


@dataclass(frozen=True)
class Ranks:
    """This process's place among them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """This is the rank that writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The sum over all ranks, in place, the same on each."""
        if self.size > 1:
            import torch

            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return self.total(float(flag)) > 0 if self.size > 1 else flag

    def total(self, number: float) -> float:
        """The sum of a number over all ranks."""
        if self.size == 1:
            return number
        import torch

        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        return self.sum(torch.tensor(number, dtype=torch.float64, device=device)).item()

    def wait(self) -> None:
        """Until all ranks are here."""
        self.total(0.0)

    def gather(self, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """The tensors of all ranks, on the first; the others get none."""
        if self.size == 1:
            return dict(tensors)
        import torch

        found: list[dict[str, Tensor]] | None = [{} for _ in range(self.size)] if self.first else None
        torch.distributed.gather_object(dict(tensors), found)
        return {name: tensor for share in found or () for name, tensor in share.items()}

    def told(self, value: T) -> T:
        """What the first rank has."""
        if self.size == 1:
            return value
        import torch

        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def fail(self, message: Mapping[str, Any]) -> None:
        """Leave the error that ends this rank where the others find it."""
        if self.size > 1 and (store := meeting_place()) is not None:
            with contextlib.suppress(RuntimeError):
                store.set(FAILED, json.dumps(message))

    def failure(self) -> dict[str, Any] | None:
        """The error that ended another rank, if one did."""
        if self.size > 1 and (store := meeting_place()) is not None:
            with contextlib.suppress(RuntimeError):
                if store.check([FAILED]):
                    found: dict[str, Any] = json.loads(store.get(FAILED))
                    return found
        return None


def here() -> Ranks:
    """This process's place, from the environment that torchrun sets."""
    if not inside():
        return Ranks()
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def inside() -> bool:
    """Whether this process is a rank that we started, and not, say, in a container that belongs to another program."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(RUN_ID)


def meet(on_gpu: bool) -> Ranks:
    """Form the process group of all ranks, if there is more than this process; each takes the GPU of its number."""
    us = here()
    if not inside():
        return us
    import torch

    if on_gpu:
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ConfigError(
                f"train.speed.ranks is {os.environ['LOCAL_WORLD_SIZE']}, and this node has {there} GPUs: one is needed "
                "for each rank"
            )
        torch.cuda.set_device(local)
    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
            us.wait()
        except RuntimeError as error:
            raise TryAgain(
                f"not all {us.size} ranks met: start all nodes, and let each reach {os.environ['MASTER_ADDR']} "
                f"({(str(error).splitlines() or ['no reason given'])[0]})"
            ) from error
    return us


def part(*, failed: bool = False) -> None:
    """Leave the process group, if this process is in one.

    A process that ends without having left gloo aborts, which hides how it ended. One that has `failed` does not try
    to leave NCCL, which might wait for the others.
    """
    if inside():
        import torch

        if torch.distributed.is_initialized() and not (failed and torch.distributed.get_backend() == "nccl"):
            torch.distributed.destroy_process_group()


def meeting_place() -> Any:
    """The key-value store that all ranks know; None if they have not met."""
    import torch

    if not torch.distributed.is_initialized():
        return None
    return torch.distributed.distributed_c10d._get_default_store()
