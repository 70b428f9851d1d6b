"""What an unfinished training leaves on disk: its metrics so far, and checkpoints that go on to the same bits.

A checkpoint is a folder `step-00000100` with `state.json` (the step, how many ranks wrote, and how long the growing
files were) and each rank's share of weights, optimizer and random state, `state-00000.safetensors` and so on. Whoever
goes on reads all shares, however many ranks that is; all must see the same folder. A checkpoint is whole or invisible,
and holds no pickle, so that reading it runs no code. `best-00000100` is such a folder too: the best step so far by what
is measured on held-out pairs.
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
from spin_core.store import files as store_files
from spin_core.store.training_log import HELD_OUT, METRICS, TIMING

log = logging.getLogger("spin_core")

CHECKPOINTS = "checkpoints"

STATE, PARTIAL = "state.json", ".partial"

ALONE = Ranks()

DAMAGE = (OSError, SafetensorError, json.JSONDecodeError)
"""What reading a damaged checkpoint raises."""


class Journal:
    """The growing files of a training and its checkpoints, which know how far each file had grown.

    All ranks have one. The first writes the growing files; a checkpoint all write together.
    """

    def __init__(self, scratch: Path, keep: int, every: int = 1, *, held_out: bool = False, us: Ranks = ALONE) -> None:
        """`keep` checkpoints stay, the last regular one among them: one at a multiple of `every` steps."""
        self.folder, self.keep, self.every, self.us = scratch / CHECKPOINTS, keep, every, us
        self._files = contextlib.ExitStack()
        self.growing: dict[str, IO[bytes]] = {}
        if us.first:
            (scratch / TIMING).parent.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, TIMING, *([HELD_OUT] if held_out else [])):
                self.growing[name] = self._files.enter_context((scratch / name).open("ab"))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self._files.close()

    def write(self, name: str, row: Mapping[str, float]) -> None:
        """Add a row to a file. It is seen at once, and safe from a power cut with the next checkpoint."""
        if not self.us.first:
            return
        # JSON has no word for what is not finite.
        told = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self.growing[name].write(json.dumps(told).encode() + b"\n")
        self.growing[name].flush()

    def save(self, step: int, tensors: Mapping[str, Tensor], *, best: bool = False) -> None:
        """Checkpoint `step` steps done, of which these are this rank's share, then drop all but the newest few.

        With `best` it is the best so far. The best that the last checkpoint knows of stays until one knows of the new
        best, since a run that resumes there may need it; those in between are dropped.
        """
        self._sync()
        if best and self.us.first:
            self._drop("best", after=max(map(step_of, checkpoints(self.folder)), default=0))
        lengths = {name: file.tell() for name, file in self.growing.items()}
        name = f"{'best' if best else 'step'}-{step:08d}"
        share = {**tensors, **random_state(self.us.rank)}
        save_checkpoint(self.folder / name, share, {"step": step, **lengths}, self.us)
        if not best and self.us.first:
            there, bests = checkpoints(self.folder), checkpoints(self.folder, "best")
            regular = [path for path in there if step_of(path) % self.every == 0]
            for old in {*there[: -self.keep], *bests[:-1]} - {*regular[-1:]}:
                shutil.rmtree(old)

    def tensors_at(self, step: int) -> Mapping[str, Tensor]:
        """The tensors of the checkpoint of that step, which must be there. `DamagedArtifact` if it is not."""
        for kind in ("step", "best"):
            with contextlib.suppress(*DAMAGE):
                return load_checkpoint(self.folder / f"{kind}-{step:08d}")[1]
        raise DamagedArtifact(
            f"the weights of step {step} are to be published, and {self.folder} has no whole checkpoint of it: remove "
            f"{self.folder.parent} and run again, which trains anew"
        )

    def resume(self) -> tuple[int, Mapping[str, Tensor]]:
        """Steps done and tensors of the last checkpoint, (0, {}) if there is none; files are cut to what it knew."""
        step = self._cut() if self.us.first else 0
        step = int(self.us.total(step))  # all ranks go on from what the first could read
        if not step:
            return 0, {}
        _, tensors = load_checkpoint(self.folder / f"step-{step:08d}")
        set_random_state(tensors, self.us.rank)
        return step, tensors

    def _cut(self) -> int:
        """Bring files and checkpoints back to the last checkpoint that can be read; its step. They are made again."""
        state, _ = latest_checkpoint(self.folder) or ({"step": 0}, {})
        for name, file in self.growing.items():
            file.truncate(state.get(name, 0))
            file.seek(0, os.SEEK_END)
        for kind in ("step", "best"):
            self._drop(kind, after=state["step"])
        self._sync()
        return state["step"]

    def _drop(self, kind: str, *, after: int) -> None:
        """Remove the checkpoints of later steps."""
        for path in checkpoints(self.folder, kind):
            if step_of(path) > after:
                shutil.rmtree(path)

    def _sync(self) -> None:
        for file in self.growing.values():
            file.flush()
            os.fsync(file.fileno())


def save_checkpoint(final: Path, tensors: Mapping[str, Tensor], state: Mapping[str, int], us: Ranks = ALONE) -> None:
    """Write a checkpoint under another name, each rank its share, flush it to disk; then the first rank renames it."""
    scratch = final.parent / PARTIAL
    if us.first:
        for leftover in (scratch, final):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir(parents=True)
    us.wait()
    share = scratch / share_name(us.rank)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, share)
    store_files.sync(share)
    us.wait()
    if us.first:
        store_files.write_json(scratch / STATE, {**state, "ranks": us.size})
        store_files.sync(scratch)
        scratch.replace(final)
        store_files.sync(final.parent)
    us.wait()


class Shares(Mapping[str, Tensor]):
    """The tensors of all ranks' files, on the CPU. Each is read when it is asked for, since all may be too many."""

    def __init__(self, files: list[Path]) -> None:
        self._files: list[Any] = [safe_open(file, "pt") for file in files]
        self._at = {name: number for number, file in enumerate(self._files) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        # A copy: a tensor in a file may lie at an odd address, where arithmetic can round otherwise.
        tensor: Tensor = self._files[self._at[name]].get_tensor(name).clone()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def latest_checkpoint(folder: Path) -> tuple[dict[str, int], Shares] | None:
    """State and tensors of the newest checkpoint that can be read; None if there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except DAMAGE as error:
            log.warning("%s cannot be read (%s): going back to the one before it", path, error)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, int], Shares]:
    """State and tensors of a checkpoint. Raises what its files raise if they are damaged."""
    state: dict[str, int] = json.loads((path / STATE).read_text("utf-8"))
    return state, Shares([path / share_name(rank) for rank in range(state["ranks"])])


def share_name(rank: int) -> str:
    """The file that a rank writes."""
    return f"state-{rank:05d}.safetensors"


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """The checkpoints in a folder, or with `best` the best so far, oldest first."""
    return sorted(folder.glob(f"{kind}-*"))


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def random_state(rank: int) -> dict[str, Tensor]:
    """The state of torch's random generators on a rank, by name."""
    states = {f"random/{rank}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random/{rank}/cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(tensors: Mapping[str, Tensor], rank: int) -> None:
    """Put back what `random_state` gave. A rank that was not there goes on from its seed."""
    if (state := tensors.get(f"random/{rank}/cpu")) is not None:
        torch.set_rng_state(state)
    if (state := tensors.get(f"random/{rank}/cuda")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state)


def ranks_of(timings: Sequence[Mapping[str, float]]) -> tuple[tuple[int, int], ...]:
    """How many steps were taken by how many ranks, `((40, 2), (24, 1))`, from the rows of `TIMING`."""
    return tuple((len(list(rows)), int(size)) for size, rows in groupby(row["ranks"] for row in timings))
