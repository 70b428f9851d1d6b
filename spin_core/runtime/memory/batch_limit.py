"""How much one pass through a model holds where a setting says `auto`, and how that shrinks when memory runs out.

The size is guessed once for a job and kept in a file of its scratch folder, so that a later attempt continues with the
same one: other sizes round differently. It is halved

- by the phase, when a GPU or an allocation fails with an error;
- by the next attempt, when the kernel killed this one for memory. Such a kill leaves no error. It shows in the kernel's
  own count, which is noted when an attempt begins.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from spin_core.runtime.memory.free import kills_by_kernel
from spin_core.runtime.ranks import Ranks
from spin_core.store import files

log = logging.getLogger("spin_core")

LIMIT = "log/batch_limit.json"
"""The file in a job's scratch folder: the sizes so far, and the kernel's count while an attempt is running."""


class BatchLimit:
    """The most that one pass holds: tokens of a micro-batch, or prompts that are answered at a time."""

    def __init__(self, sizes: Sequence[int], unit: str, path: Path | None = None) -> None:
        """Take the sizes so far, of which the last one counts.

        Args:
            sizes: The sizes, each smaller than the one before.
            unit: What they count, for messages.
            path: The file that keeps them; None for a size that the user has set, which never changes.
        """
        self.sizes, self.unit, self.path = list(sizes), unit, path

    @property
    def size(self) -> int:
        """The size that counts now."""
        return self.sizes[-1]

    def halve(self, least: int = 1) -> bool:
        """Halve the size, but not below `least`. Returns False if it is the user's or cannot be smaller."""
        if self.path is None or self.size <= least:
            return False
        self.sizes.append(max(least, self.size // 2))
        log.warning("out of memory: continuing with %d %s", self.size, self.unit)
        self._write(kills_by_kernel())
        return True

    @contextlib.contextmanager
    def attempt(self, world: Ranks) -> Iterator[None]:
        """Note that an attempt is running, so that the next one knows if the kernel killed it. The first rank notes."""
        if self.path is None or not world.first:
            yield
            return
        self._write(kills_by_kernel())
        try:
            yield
        finally:
            self._write(None)

    def _write(self, kills: int | None) -> None:
        assert self.path is not None
        self.path.parent.mkdir(exist_ok=True)
        kept = _read(self.path).get("sizes") or self.sizes
        if kept[-1] < self.size:  # another rank has run out of memory, which ends this one too
            self.sizes = kept
        files.write_json(self.path, {"sizes": self.sizes, "kills": kills})


def open_limit(
    setting: int | Literal["auto"], scratch: Path, guess: Callable[[], int], unit: str, world: Ranks | None = None
) -> BatchLimit:
    """The limit of a job: the user's number, the size of an earlier attempt, or a new guess. The same on all ranks.

    Args:
        setting: The user's setting.
        scratch: The job's scratch folder.
        guess: Returns the size that should fit. Called on the first rank only.
        unit: What the size counts, for messages.
        world: The ranks that share the job; one by default.
    """
    if setting != "auto":
        return BatchLimit([setting], unit)
    world, path = world or Ranks(), scratch / LIMIT
    limit = BatchLimit([], unit, path)
    if world.first:
        kept = _read(path)
        limit.sizes = kept.get("sizes") or [guess()]
        if kept.get("kills") is not None and kills_by_kernel() > kept["kills"]:
            log.warning("the kernel killed the last attempt for memory")
            limit.halve()
        log.info("at most %d %s", limit.size, unit)
    limit.sizes = world.broadcast(limit.sizes)
    return limit


def _read(path: Path) -> dict[str, Any]:
    """What an earlier attempt has left; empty if there is nothing, or if it is damaged."""
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
