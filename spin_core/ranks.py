"""The processes that train together, as the training loop sees them.

A rank is a process with a device of its own. One rank alone needs no process group, and then nothing here costs
anything.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """This is the rank that writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place, the same on each."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.sum(torch.tensor(float(flag))).item()) if self.size > 1 else flag

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            torch.distributed.barrier()


def here() -> Ranks:
    """This process's place, from the environment that torchrun sets."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
