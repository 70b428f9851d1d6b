"""What an unfinished training leaves on disk: its metrics so far, and checkpoints to resume from.

A checkpoint is a folder `step-00000100` with two kinds of files:

- `state.json`: the step, the number of ranks that wrote, and the length of each file of metrics at that moment.
- `state-00000.safetensors`, …: one a rank, with its share of the weights, the optimizer's state and the random state.

A training that resumes reads all shares, on any number of ranks; all ranks must see the same folder. A checkpoint
appears whole or not at all, since it is renamed when all is written. It holds no pickle, so reading it runs no code.

`best-00000100` is such a folder too: the best step so far, measured on held-out pairs. Training never resumes from it.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spin_core.errors import DamagedArtifact
from spin_core.runtime.ranks import Ranks
from spin_core.store import files
from spin_core.store.training_log import HELD_OUT, METRICS, TIMING

log = logging.getLogger("spin_core")

CHECKPOINTS = "checkpoints"

_STATE, _PARTIAL = "state.json", ".partial"

_ALONE = Ranks()

_DAMAGE = (OSError, SafetensorError, json.JSONDecodeError)
"""Errors that reading a damaged checkpoint raises."""


class Journal:
    """The files of metrics of a training and its checkpoints.

    Every rank has a journal. The first rank alone writes metrics; all ranks write a checkpoint together.
    """

    def __init__(
        self, scratch: Path, keep: int, every: int = 1, *, held_out: bool = False, world: Ranks = _ALONE
    ) -> None:
        """Open the files of metrics for appending.

        Args:
            scratch: The training's folder.
            keep: How many checkpoints stay. The last regular one stays in addition.
            every: A checkpoint is regular if its step is a multiple of this.
            held_out: Whether there is a file for held-out metrics.
            world: All ranks of the training.
        """
        self.folder, self.keep, self.every, self.world = scratch / CHECKPOINTS, keep, every, world
        self._files = contextlib.ExitStack()
        self._metrics: dict[str, IO[bytes]] = {}
        if world.first:
            (scratch / TIMING).parent.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, TIMING, *([HELD_OUT] if held_out else [])):
                self._metrics[name] = self._files.enter_context((scratch / name).open("ab"))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self._files.close()

    def write(self, name: str, row: Mapping[str, float]) -> None:
        """Append a row to a file. Readers see it at once; it survives a power cut from the next checkpoint on."""
        if not self.world.first:
            return
        # JSON has no value for NaN and infinity.
        values = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self._metrics[name].write(json.dumps(values).encode() + b"\n")
        self._metrics[name].flush()

    def save(self, step: int, tensors: Mapping[str, Tensor], *, best: bool = False) -> None:
        """Write a checkpoint, and remove those that are not needed any more.

        Args:
            step: The number of steps done.
            tensors: This rank's share of the state.
            best: Keep the step as the best so far. The best step before the last regular save also stays until the next
                one: a training that resumes at that save has forgotten the new best, and needs the old one. Best steps
                between the two are removed.
        """
        self._sync()
        if best and self.world.first:
            self._remove("best", after=max(map(step_of, checkpoints(self.folder)), default=0))
        lengths = {name: file.tell() for name, file in self._metrics.items()}
        name = f"{'best' if best else 'step'}-{step:08d}"
        share = {**tensors, **_random_state(self.world.rank)}
        save_checkpoint(self.folder / name, share, {"step": step, **lengths}, self.world)
        if not best and self.world.first:
            saved, bests = checkpoints(self.folder), checkpoints(self.folder, "best")
            regular = [path for path in saved if step_of(path) % self.every == 0]
            for old in {*saved[: -self.keep], *bests[:-1]} - {*regular[-1:]}:
                shutil.rmtree(old)

    def tensors_at(self, step: int) -> Mapping[str, Tensor]:
        """The tensors of the checkpoint of that step. Raises `DamagedArtifact` if there is no whole one."""
        for kind in ("step", "best"):
            with contextlib.suppress(*_DAMAGE):
                return _load_checkpoint(self.folder / f"{kind}-{step:08d}")[1]
        raise DamagedArtifact(
            f"the weights of step {step} are to be published, and {self.folder} has no whole checkpoint of it: remove "
            f"{self.folder.parent} and run again, which trains from the start"
        )

    def resume(self) -> tuple[int, Mapping[str, Tensor]]:
        """Cut the files of metrics to the last whole checkpoint, and restore its random state.

        Returns:
            Its step and tensors; (0, {}) if there is none.
        """
        step = self._cut() if self.world.first else 0
        step = int(self.world.total(step))  # all ranks resume from what the first rank could read
        if not step:
            return 0, {}
        _, tensors = _load_checkpoint(self.folder / f"step-{step:08d}")
        _set_random_state(tensors, self.world.rank)
        return step, tensors

    def _cut(self) -> int:
        """Remove what is newer than the last whole checkpoint; returns its step."""
        state, _ = latest_checkpoint(self.folder) or ({"step": 0}, {})
        for name, file in self._metrics.items():
            file.truncate(state.get(name, 0))
            file.seek(0, os.SEEK_END)
        for kind in ("step", "best"):
            self._remove(kind, after=state["step"])
        self._sync()
        return state["step"]

    def _remove(self, kind: str, *, after: int) -> None:
        """Remove the checkpoints of steps later than this."""
        for path in checkpoints(self.folder, kind):
            if step_of(path) > after:
                shutil.rmtree(path)

    def _sync(self) -> None:
        for file in self._metrics.values():
            file.flush()
            os.fsync(file.fileno())


def save_checkpoint(
    final: Path, tensors: Mapping[str, Tensor], state: Mapping[str, int], world: Ranks = _ALONE
) -> None:
    """Write a checkpoint, each rank its share, under a hidden name; the first rank renames it when all is on disk."""
    scratch = final.parent / _PARTIAL
    if world.first:
        for leftover in (scratch, final):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir(parents=True)
    world.wait()
    share = scratch / _share_name(world.rank)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, share)
    files.sync(share)
    world.wait()
    if world.first:
        files.write_json(scratch / _STATE, {**state, "ranks": world.size})
        files.sync(scratch)
        scratch.replace(final)
        files.sync(final.parent)
    world.wait()


class _Shares(Mapping[str, Tensor]):
    """The tensors in the files of all ranks, on the CPU. Each is read when it is needed, since all may not fit."""

    def __init__(self, paths: list[Path]) -> None:
        self._files: list[Any] = [safe_open(path, "pt") for path in paths]
        self._file_of = {name: number for number, file in enumerate(self._files) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        # A copy: a tensor in a mapped file may have an unaligned address, where arithmetic can round differently.
        tensor: Tensor = self._files[self._file_of[name]].get_tensor(name).clone()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def latest_checkpoint(folder: Path) -> tuple[dict[str, int], _Shares] | None:
    """State and tensors of the newest checkpoint that can be read; None if there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            return _load_checkpoint(path)
        except _DAMAGE as error:
            log.warning("%s cannot be read (%s): going back to the one before it", path, error)
    return None


def _load_checkpoint(path: Path) -> tuple[dict[str, int], _Shares]:
    """State and tensors of a checkpoint. Raises one of `_DAMAGE` if it is damaged."""
    state: dict[str, int] = json.loads((path / _STATE).read_text("utf-8"))
    return state, _Shares([path / _share_name(rank) for rank in range(state["ranks"])])


def _share_name(rank: int) -> str:
    """The file that a rank writes."""
    return f"state-{rank:05d}.safetensors"


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """The checkpoints in a folder, oldest first; with kind `best` those of the best steps."""
    return sorted(folder.glob(f"{kind}-*"))


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def _random_state(rank: int) -> dict[str, Tensor]:
    """The state of torch's random generators on a rank, by name."""
    states = {f"random/{rank}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random/{rank}/cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_state(tensors: Mapping[str, Tensor], rank: int) -> None:
    """Restore what `_random_state` returned. A rank that did not exist then keeps the state of its seed."""
    if (state := tensors.get(f"random/{rank}/cpu")) is not None:
        torch.set_rng_state(state)
    if (state := tensors.get(f"random/{rank}/cuda")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state)


def ranks_of(timings: Sequence[Mapping[str, float]]) -> tuple[tuple[int, int], ...]:
    """How many steps were taken by how many ranks, `((40, 2), (24, 1))`, from the rows of `TIMING`."""
    return tuple((len(list(rows)), int(size)) for size, rows in groupby(row["ranks"] for row in timings))
