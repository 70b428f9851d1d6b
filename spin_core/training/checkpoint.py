"""What an unfinished training leaves on disk: its metrics so far, and checkpoints to resume from.

A checkpoint is a folder `step-00000100` with two kinds of files:

- `state.json`: the step, the number of ranks that wrote, the length of each file of metrics at that moment, and
  checksums of all these files and of itself.
- `state-00000.safetensors`, …: one a rank, with its share of the weights, the optimizer's state and the random state.

A training that resumes reads all shares, on any number of ranks; all ranks must see the same folder. A checkpoint
appears whole or not at all, since it is renamed when all is written. It holds no pickle, so reading it runs no code.

A disk may still damage what was written. So a checkpoint is used only if all checksums match, those of the metrics
included; otherwise the one before it is used, and without any the training starts over. The checksums are CRC-32, which
finds every flipped bit and is several times as fast as a digest; nobody forges a checkpoint. Checkpoints of earlier
versions have none, and are read as they are.

`best-00000100` is such a folder too: the best step so far, measured on held-out pairs. Training never resumes from it.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spin_core.errors import DamagedArtifact, first_line
from spin_core.runtime.ranks import Ranks
from spin_core.store import files
from spin_core.store.training_log import HELD_OUT, METRICS, TIMING

log = logging.getLogger("spin_core")

CHECKPOINTS = "checkpoints"

_STATE, _PARTIAL = "state.json", ".partial"

_CHECKSUMS, _OWN_CHECKSUM = "checksums", "checksum"
"""Keys of the state: the checksum of each file by its name, and that of the state without this key."""

_ALONE = Ranks()

_State = dict[str, Any]
"""The content of `state.json`: `step`, `ranks`, the length of each file of metrics by its name, and checksums."""


class TrainingRecorder:
    """Writes the metrics and the checkpoints of a training, and reads the last checkpoint to resume.

    Every rank has a recorder. The first rank alone writes metrics; all ranks write a checkpoint together.
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
        self._checksums: dict[str, int] = {}
        """The checksum of each file of metrics, as far as it is written."""
        if world.first:
            (scratch / TIMING).parent.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, TIMING, *([HELD_OUT] if held_out else [])):
                self._metrics[name] = self._files.enter_context((scratch / name).open("ab"))
                self._checksums[name] = files.checksum(scratch / name)

    def __enter__(self) -> "TrainingRecorder":
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
        line = json.dumps(values).encode() + b"\n"
        self._metrics[name].write(line)
        self._metrics[name].flush()
        self._checksums[name] = zlib.crc32(line, self._checksums[name])

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
        save_checkpoint(self.folder / name, share, {"step": step, **lengths}, self._checksums, self.world)
        if not best and self.world.first:
            saved, bests = checkpoints(self.folder), checkpoints(self.folder, "best")
            regular = [path for path in saved if step_of(path) % self.every == 0]
            for old in {*saved[: -self.keep], *bests[:-1]} - {*regular[-1:]}:
                shutil.rmtree(old)

    def tensors_at(self, step: int) -> Mapping[str, Tensor]:
        """The tensors of the checkpoint of that step. Raises `DamagedArtifact` if there is no whole one."""
        for kind in ("step", "best"):
            path = self.folder / f"{kind}-{step:08d}"
            with contextlib.suppress(DamagedArtifact):
                return _open_shares(path, _verified_state(path) if self.world.first else _read_state(path))
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
        path = self.folder / f"step-{step:08d}"
        tensors = _open_shares(path, _read_state(path))
        _set_random_state(tensors, self.world.rank)
        return step, tensors

    def _cut(self) -> int:
        """Remove what is newer than the last whole checkpoint; returns its step."""
        state, _ = latest_checkpoint(self.folder, self.folder.parent) or ({"step": 0}, {})
        for name, file in self._metrics.items():
            file.truncate(state.get(name, 0))
            file.seek(0, os.SEEK_END)
            self._checksums[name] = files.checksum(self.folder.parent / name)
        for kind in ("step", "best"):
            self._remove(kind, after=state["step"])
        self._sync()
        step: int = state["step"]
        return step

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
    final: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, int],
    checksums: Mapping[str, int] = MappingProxyType({}),
    world: Ranks = _ALONE,
) -> None:
    """Write a checkpoint, each rank its share, under a hidden name; the first rank renames it when all is on disk.

    Args:
        final: The checkpoint's folder.
        tensors: This rank's share.
        state: The step, and the length of each file of metrics.
        checksums: The checksum of each file of metrics.
        world: All ranks of the training.
    """
    scratch = final.parent / _PARTIAL
    if world.first:
        for leftover in (scratch, final):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir(parents=True)
    world.wait()
    share = scratch / _share_name(world.rank)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, share)
    files.sync(share)
    checksum = files.checksum(share)
    # A sum over the ranks, to which one rank alone adds its number, brings that number to the first rank.
    of_shares = {
        _share_name(rank): int(world.total(checksum if rank == world.rank else 0)) for rank in range(world.size)
    }
    if world.first:
        whole = {**state, "ranks": world.size, _CHECKSUMS: {**checksums, **of_shares}}
        files.write_json(scratch / _STATE, {**whole, _OWN_CHECKSUM: _checksum_of(whole)})
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


def latest_checkpoint(folder: Path, metrics: Path | None = None) -> tuple[_State, _Shares] | None:
    """State and tensors of the newest whole checkpoint; None if there is none.

    Args:
        folder: The folder with checkpoints.
        metrics: The training's folder, if its files of metrics must match, too.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            state = _verified_state(path, metrics)
            return state, _open_shares(path, state)
        except DamagedArtifact as error:
            log.warning("%s: going back to the one before it", error)
    if paths:
        log.warning("%s has no whole checkpoint: the training starts over", folder)
    return None


def _verified_state(path: Path, metrics: Path | None = None) -> _State:
    """The state of a checkpoint whose files have their checksums. Raises `DamagedArtifact` if one has not."""
    state = _read_state(path)
    checksums: dict[str, int] = state.get(_CHECKSUMS, {})
    lengths = {name: state[name] for name in (METRICS, TIMING, HELD_OUT) if name in state} if metrics else {}
    shares = {_share_name(rank): None for rank in range(state["ranks"])}
    for name, length in {**lengths, **shares}.items():
        file = metrics / name if metrics and name in lengths else path / name
        try:
            is_short = length is not None and file.stat().st_size < length
            is_changed = is_short or (name in checksums and files.checksum(file, length) != checksums[name])
        except OSError as error:
            raise DamagedArtifact(f"{path} cannot be used, {file} cannot be read ({error.strerror})") from error
        if is_changed:
            raise DamagedArtifact(f"{path} cannot be used, {file} has changed since the checkpoint")
    return state


def _read_state(path: Path) -> _State:
    """The state of a checkpoint. Raises `DamagedArtifact` if it is not one that `save_checkpoint` wrote."""
    try:
        state = json.loads((path / _STATE).read_bytes())
        whole = {name: value for name, value in state.items() if name != _OWN_CHECKSUM}
        is_whole = (
            all(isinstance(state[name], int) for name in state.keys() - {_CHECKSUMS})
            and state.keys() <= {"step", "ranks", METRICS, TIMING, HELD_OUT, _CHECKSUMS, _OWN_CHECKSUM}
            and state["step"] == step_of(path)
            and state["ranks"] > 0
            # Earlier versions wrote neither of the two.
            and (_OWN_CHECKSUM in state) == (_CHECKSUMS in state)
            and (_OWN_CHECKSUM not in state or state[_OWN_CHECKSUM] == _checksum_of(whole))
        )
    except (OSError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise DamagedArtifact(f"{path} cannot be used, its {_STATE} cannot be read ({first_line(error)})") from error
    if not is_whole:
        raise DamagedArtifact(f"{path} cannot be used, its {_STATE} is not what was written")
    return whole


def _open_shares(path: Path, state: _State) -> _Shares:
    """The tensors of a checkpoint. Raises `DamagedArtifact` if a file cannot be opened."""
    try:
        return _Shares([path / _share_name(rank) for rank in range(state["ranks"])])
    except (OSError, SafetensorError) as error:
        raise DamagedArtifact(f"{path} cannot be used ({first_line(error)})") from error


def _checksum_of(state: _State) -> int:
    """The checksum of a state."""
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def _share_name(rank: int) -> str:
    """The file that a rank writes."""
    return f"state-{rank:05d}.safetensors"


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """The checkpoints in a folder, oldest first; with kind `best` those of the best steps. Other files are ignored."""
    return sorted(
        path for path in folder.glob(f"{kind}-*") if re.fullmatch(rf"{kind}-\d{{8,}}", path.name) and path.is_dir()
    )


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
    return _runs_of("ranks", timings)


def micro_batches_of(timings: Sequence[Mapping[str, float]]) -> tuple[tuple[int, int], ...]:
    """How many steps had how many tokens in a pass, `((40, 16384), (24, 8192))`, from the rows of `TIMING`."""
    return _runs_of("micro_batch_tokens", [row for row in timings if "micro_batch_tokens" in row])


def _runs_of(name: str, timings: Sequence[Mapping[str, float]]) -> tuple[tuple[int, int], ...]:
    """The lengths of runs of the same value, and that value."""
    return tuple((len(list(rows)), int(value)) for value, rows in groupby(row[name] for row in timings))
