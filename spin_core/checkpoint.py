"""What an unfinished training leaves on disk: its metrics so far, and checkpoints that go on to the same bits.

A checkpoint is a folder `step-00000100` with `state.safetensors` (weights, optimizer, random state) and `state.json`
(the step, and how long the growing files were). It is whole or invisible, and holds no pickle, so that reading it
runs no code. `best-00000100` is such a folder too: the best step so far by what is measured on held-out pairs.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spin_core import store

log = logging.getLogger("spin_core")

METRICS, TIMING, CHECKPOINTS = "metrics.jsonl", "log/timing.jsonl", "checkpoints"
HELD_OUT = "held_out.jsonl"
TENSORS, STATE = "state.safetensors", "state.json"


class Journal:
    """The growing files of a training and its checkpoints, which know how far each file had grown."""

    def __init__(self, scratch: Path, keep: int, every: int = 1, *, held_out: bool = False) -> None:
        """`keep` checkpoints stay, the last regular one among them: one at a multiple of `every` steps."""
        self.folder, self.keep, self.every = scratch / CHECKPOINTS, keep, every
        (scratch / TIMING).parent.mkdir(parents=True, exist_ok=True)
        self._files = contextlib.ExitStack()
        self.growing: dict[str, IO[bytes]] = {
            name: self._files.enter_context((scratch / name).open("ab"))
            for name in (METRICS, TIMING, *([HELD_OUT] if held_out else []))
        }

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self._files.close()

    def write(self, name: str, row: Mapping[str, float]) -> None:
        """Add a row to a file. It is seen at once, and safe from a power cut with the next checkpoint."""
        # JSON has no word for what is not finite.
        told = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self.growing[name].write(json.dumps(told).encode() + b"\n")
        self.growing[name].flush()

    def save(self, step: int, tensors: Mapping[str, Tensor], *, best: bool = False) -> None:
        """Checkpoint `step` steps done, then drop all checkpoints but the newest few.

        With `best` it is the best so far. The best before it stays until a checkpoint knows of the new one, since a
        run that resumes before the new one may need it.
        """
        self._sync()
        lengths = {name: file.tell() for name, file in self.growing.items()}
        name = f"{'best' if best else 'step'}-{step:08d}"
        save_checkpoint(self.folder / name, {**tensors, **random_state()}, {"step": step, **lengths})
        if not best:
            there, bests = checkpoints(self.folder), checkpoints(self.folder, "best")
            regular = [path for path in there if step_of(path) % self.every == 0]
            for old in {*there[: -self.keep], *bests[:-1]} - {*regular[-1:]}:
                shutil.rmtree(old)

    def tensors_at(self, step: int) -> dict[str, Tensor]:
        """The tensors of the checkpoint of that step, which must be there."""
        found = [path for kind in ("step", "best") for path in checkpoints(self.folder, kind) if step_of(path) == step]
        return load_checkpoint(found[0])[1]

    def resume(self) -> tuple[int, dict[str, Tensor]]:
        """Steps done and tensors of the last checkpoint, (0, {}) if there is none; files are cut to what it knew."""
        state, tensors = latest_checkpoint(self.folder) or ({"step": 0}, {})
        for name, file in self.growing.items():
            file.truncate(state.get(name, 0))
            file.seek(0, os.SEEK_END)
        for path in checkpoints(self.folder, "best"):
            if step_of(path) > state["step"]:  # it will be made again
                shutil.rmtree(path)
        if tensors:
            set_random_state(tensors)
        return state["step"], tensors

    def _sync(self) -> None:
        for file in self.growing.values():
            file.flush()
            os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a file that a journal wrote, but for a last line that a kill cut short; empty if there is no file."""
    if not path.exists():
        return []
    *whole, _ = path.read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in whole]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def save_checkpoint(final: Path, tensors: Mapping[str, Tensor], state: Mapping[str, int]) -> None:
    """Write a checkpoint under another name, flush it to disk, rename."""
    scratch = final.parent / ".partial"
    for leftover in (scratch, final):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, scratch / TENSORS)
    store.write_json(scratch / STATE, state)
    store.sync(scratch / TENSORS)
    store.sync(scratch)
    scratch.replace(final)
    store.sync(final.parent)


def latest_checkpoint(folder: Path) -> tuple[dict[str, int], dict[str, Tensor]] | None:
    """State and tensors (on the CPU) of the newest checkpoint that can be read; None if there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            log.warning("%s cannot be read (%s): going back to the one before it", path, error)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """State and tensors of a checkpoint."""
    return json.loads((path / STATE).read_text("utf-8")), load_file(path / TENSORS)


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """The checkpoints in a folder, or with `best` the best so far, oldest first."""
    return sorted(folder.glob(f"{kind}-*"))


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def random_state() -> dict[str, Tensor]:
    """The state of torch's random generators, by name."""
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
