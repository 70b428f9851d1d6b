"""Shards of a job's output, and the claims with which several workers divide them.

Workers share a folder and nothing else, so the folder decides every race:

- A claim is a file `shard-00007.claim-0000` that names its holder (machine, process id, start time). The worker writes
  it under a hidden name first and then links it to its real name. A hard link never replaces an existing file, so of
  two workers that want the same claim exactly one gets it.
- The holder rewrites its claim every few seconds. A claim is dead when its process has ended or, on another machine,
  when the file has not changed for a minute.
- A dead claim is never removed by others: between check and removal another worker may already have taken over, and
  the removal would hit the new claim. Instead the next worker adds `claim-0001`; the highest number counts.
- A worker that gets a claim checks again whether the shard exists, since its last holder may have published it in the
  meantime.
- A shard is written under a hidden name, flushed to disk, and linked to its real name. So it appears whole or not at
  all, and only once: a worker that was slow and counted as dead finds the name taken, and drops its own copy. Both
  copies have the same content.

Some file systems have no hard links. There a claim is created exclusively under its real name and then filled, so that
others may see it empty for a moment; and a shard is renamed by the worker that holds a second claim, on the shard's
name.
"""

import contextlib
import errno
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

from spin_core.runtime import process
from spin_core.store import files, identity
from spin_core.store.jobs import Job

log = logging.getLogger("spin_core")

HEARTBEAT_SECONDS = 2.0
"""How often a claim is rewritten."""

POLL_SECONDS = 0.2
"""How often a worker checks for changes while all missing shards are claimed by others."""

WORKERS_ENDED = "workers-ended.txt"
"""A file next to the claims: all workers on other machines have ended, and with which messages."""

_STALE_SECONDS = 60.0
"""A claim from another machine is dead when it has not changed for this long, by the reader's own clock."""

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems without hard links: exFAT, some network disks, mounted buckets."""


class Holder(TypedDict):
    """The content of a claim: who holds it, and how far the shard is."""

    host: str
    pid_scope: str
    """Where `pid` is valid, see `process.pid_scope`."""
    pid: int
    start_time: str
    """When the process started, see `process.start_time`."""
    items: int
    tokens: int


class Claim:
    """A shard that this process works on. As a context manager it keeps the claim alive, and removes it at the end."""

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        self.items = self.tokens = 0
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._rewrite_until_ended, daemon=True)

    def set_progress(self, items: int, tokens: int) -> None:
        """Set how far the shard is; other workers read it from the claim."""
        self.items, self.tokens = items, tokens

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._heartbeat.join()
        self.path.unlink(missing_ok=True)

    def _rewrite_until_ended(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            scratch = _hidden(self.path)
            # A full disk or a removed folder also ends the worker's own write, whose error is clearer than this one.
            with contextlib.suppress(OSError):
                scratch.write_text(_claim_text(self.items, self.tokens), "utf-8")
                scratch.replace(self.path)


class Shards:
    """The shards of one job: which exist, who works on which, and the ways to claim and to publish one."""

    def __init__(self, final: Path, folder: Path, count: int, stale_seconds: float = _STALE_SECONDS) -> None:
        """Describe the shards; touches no file.

        Args:
            final: Where finished shards appear.
            folder: Where claims and unfinished shards are, on the same disk as `final`.
            count: How many shards the job has.
            stale_seconds: After how long without a change a claim from another machine is dead.
        """
        self.final, self.folder, self.count, self.stale_seconds = final, folder, count, stale_seconds
        self._changes: dict[str, tuple[int, float]] = {}
        """By name of a claim: its last modification time, and when this process first saw that time, on its own
        clock."""

    def path(self, number: int) -> Path:
        """The path of a finished shard."""
        return self.final / f"{shard_name(number)}.parquet"

    def missing(self) -> list[int]:
        """The numbers of the unfinished shards. Empty when the folder is gone: then the job has been published."""
        if not self.folder.exists():
            return []
        finished = set(self.final.iterdir())
        return [number for number in range(self.count) if self.path(number) not in finished]

    def claim(self, numbers: Iterable[int], kind: str = "claim") -> Claim | None:
        """Claim the first of these shards that is unfinished and has no live claim; None if there is none."""
        claims = self.claims(kind)
        for number in numbers:
            turn, current = claims.get(number, (-1, None))
            if current is not None and self.holder(current):
                continue
            path = self.folder / f"{shard_name(number)}.{kind}-{turn + 1:04d}"
            if not self._create_claim(path):
                continue  # another worker was faster
            if self.path(number).exists():
                path.unlink()  # published after the caller's check and before this claim
                continue
            if current is not None:
                log.info("%s was left unfinished: taking it over", shard_name(number))
            return Claim(number, path)
        return None

    def claims(self, kind: str = "claim") -> dict[int, tuple[int, Path]]:
        """By shard, the claim with the highest turn: (turn, file)."""
        highest: dict[int, tuple[int, Path]] = {}
        for path in self.folder.glob(f"shard-*.{kind}-*"):
            number, turn = (int(word.rpartition("-")[2]) for word in path.name.split("."))
            highest[number] = max(highest.get(number, (turn, path)), (turn, path))
        return highest

    def holder(self, path: Path) -> Holder | None:
        """The holder of a claim; None if the claim is gone or dead."""
        try:
            with path.open(encoding="utf-8") as file:  # network disks refresh a file's times when it is opened
                modified = os.fstat(file.fileno()).st_mtime_ns
                holder: Holder = json.load(file)
                if not Holder.__required_keys__ <= holder.keys():
                    raise ValueError("a claim of another version")
        except FileNotFoundError:
            return None
        except ValueError:  # or a claim that was created without hard links and is not filled yet
            holder = {"host": "unknown", "pid_scope": "", "pid": 0, "start_time": "", "items": 0, "tokens": 0}
        if holder["pid_scope"] and holder["pid_scope"] == process.pid_scope():
            return holder if process.start_time(holder["pid"]) == holder["start_time"] else None
        # Clocks of two machines may differ, so only the fact that a claim changes counts, timed by this machine's
        # clock.
        last_modified, since = self._changes.get(path.name, (None, 0.0))
        if last_modified != modified:
            self._changes[path.name] = modified, time.monotonic()
            return holder
        return holder if time.monotonic() - since < self.stale_seconds else None

    def holders(self) -> list[tuple[int, Holder]]:
        """The shards in progress with their holders, in order."""
        holders = [(number, self.holder(path)) for number, (_, path) in sorted(self.claims().items())]
        return [(number, holder) for number, holder in holders if holder is not None]

    def workers_ended(self) -> str:
        """The last messages of the workers on other machines when all have ended; empty while one may come."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / WORKERS_ENDED).read_text("utf-8").strip()
        return ""

    def publish(self, number: int, write: Callable[[Path], None]) -> bool:
        """Write a shard's file by `write(path)` and publish it.

        Returns:
            False if another worker has published the shard before; its file stays.
        """
        partial = _hidden(self.folder / shard_name(number))
        try:
            write(partial)
            files.sync(partial)
            is_first = self._move_into_place(partial, number)
        finally:
            partial.unlink(missing_ok=True)
        files.sync(self.final)
        return is_first

    def _move_into_place(self, partial: Path, number: int) -> bool:
        """Give a shard's file its name; False if the name is taken."""
        final = self.path(number)
        if (is_first := _link_once(partial, final)) is not None:
            return is_first
        # A rename would replace another worker's shard, so only the holder of a claim on the name may rename.
        while not final.exists():
            claim = self.claim([number], "name")
            if claim is not None:
                with claim:
                    partial.rename(final)
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _create_claim(self, path: Path) -> bool:
        """Create a claim of this process; False if the name is taken."""
        scratch, text = _hidden(path), _claim_text()
        try:
            scratch.write_text(text, "utf-8")
            is_first = _link_once(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        return _create_once(path, text) if is_first is None else is_first


def shard_name(number: int) -> str:
    """`shard-00007`."""
    return f"shard-{number:05d}"


def work_folder(job: Job) -> Path:
    """The folder of a job's claims and unfinished shards. Its name has the job's identity, so jobs do not mix."""
    digest = identity.digest_of(identity.identity_of(job))
    return job.output.with_name(f".{job.output.name}.{digest[:16]}.work")


def _claim_text(items: int = 0, tokens: int = 0) -> str:
    """A claim of this process as JSON."""
    pid = os.getpid()
    holder: Holder = {
        "host": os.uname().nodename, "pid_scope": process.pid_scope(), "pid": pid,
        "start_time": process.start_time(pid), "items": items, "tokens": tokens,
    }  # fmt: skip
    return json.dumps(holder)


def _hidden(path: Path) -> Path:
    """A hidden path in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _link_once(scratch: Path, final: Path) -> bool | None:
    """Link a finished file to its name; False if the name is taken, None if the file system has no hard links."""
    try:
        os.link(scratch, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            return None
        raise
    return True


def _create_once(path: Path, text: str) -> bool:
    """Create a file with this text; False if it exists. Others may see it before the text is in it."""
    try:
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        return False
    return True
