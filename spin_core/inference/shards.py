"""Work in shards: each is claimed, done and published by one worker, however many there are and wherever they run.

Workers share a folder and nothing else. In it a claim is a file that bears the holder's machine, process and birth,
and is written again every few seconds. Where a claim is dead, the next worker sets one of the next turn beside it: the
highest turn counts, nothing is ever taken away from others, and of two that race one finds the file there. A shard
itself appears under its name whole or not at all, and never twice: whoever comes second, having been taken for dead,
throws his away.

Names are given by hard links, which never replace what is there. Where a file system refuses them, a claim is created
under its name and then written, and a shard is renamed by whoever holds a claim on its name.

`python -m spin_core.phases.join job.json` joins a generation that runs elsewhere, on any machine that sees its folders
under the same paths, and ends when every shard is there.
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
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spin_core.errors import WorkersLost
from spin_core.runtime import process
from spin_core.store import files
from spin_core.store import identity as store_identity
from spin_core.store.jobs import Job

log = logging.getLogger("spin_core")

HEARTBEAT_SECONDS = 2.0
"""How often a claim is written again."""

STALE_SECONDS = 60.0
"""A claim from another machine is dead when it has not changed for so long, by the watch of whoever looks. One from
this machine is dead as soon as its process is."""

POLL_SECONDS = 0.2
"""How often a worker looks, while all that is left is in others' hands."""

WAITING_SECONDS = 60.0
"""How often it says so."""

PATIENCE_SECONDS = 5.0
"""How long nobody may be at work before a run that does no shard itself ends, once it is told that nobody will come:
between two shards a worker that joined by itself holds no claim."""

LAST_WORDS = "last-words.txt"
"""In the folder of the claims: that the workers that were started elsewhere have all ended, and what they said."""

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without hard links answer: exFAT, some network disks and buckets that are mounted."""

Holder = dict[str, Any]
"""Who holds a claim (`host`, `place`, `pid`, `born`), and how far it is (`items`, `tokens`)."""


class Claim:
    """A shard that this process is at work on. As a context it shows that we are alive, and lets go at the end."""

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        self.items = self.tokens = 0
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def note(self, items: int, tokens: int) -> None:
        """Say how far the shard is."""
        self.items, self.tokens = items, tokens

    def __enter__(self) -> Self:
        self._beats.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beats.join()
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            scratch = beside(self.path)
            # A full disk or a folder that is gone ends the shard itself, in the worker's own words.
            with contextlib.suppress(OSError):
                scratch.write_text(json.dumps({**ourselves(), "items": self.items, "tokens": self.tokens}), "utf-8")
                scratch.replace(self.path)


class Shards:
    """`count` shards that appear in `final`, and the claims on them in `folder`, on the same disk."""

    def __init__(self, final: Path, folder: Path, count: int, stale: float = STALE_SECONDS) -> None:
        self.final, self.folder, self.count, self.stale = final, folder, count, stale
        self._seen: dict[str, tuple[int, float]] = {}
        """When each claim was written last, and since when we know."""

    def path(self, number: int) -> Path:
        """Where a shard is, once it is done."""
        return self.final / f"{shard_name(number)}.parquet"

    def missing(self) -> list[int]:
        """The shards that nobody has done. None is missing when the folder is gone: then it has been published."""
        if not self.folder.exists():
            return []
        there = set(self.final.iterdir())
        return [number for number in range(self.count) if self.path(number) not in there]

    def claim(self, numbers: Iterable[int], kind: str = "claim") -> Claim | None:
        """The first of these shards that nobody works on, as ours; None if there is none."""
        claims = self.claims(kind)
        for number in numbers:
            turn, path = claims.get(number, (-1, None))
            if path is not None and self.holder(path):
                continue
            ours = self.folder / f"{shard_name(number)}.{kind}-{turn + 1:04d}"
            if not self._offer(ours):
                continue
            if self.path(number).exists():
                ours.unlink()
            else:
                if path is not None:
                    log.info("%s was left unfinished: taking it over", shard_name(number))
                return Claim(number, ours)
        return None

    def claims(self, kind: str = "claim") -> dict[int, tuple[int, Path]]:
        """The claim that counts on each shard that has one: its turn, and its file."""
        found: dict[int, tuple[int, Path]] = {}
        for path in self.folder.glob(f"shard-*.{kind}-*"):
            number, turn = (int(part.rpartition("-")[2]) for part in path.name.split("."))
            found[number] = max(found.get(number, (turn, path)), (turn, path))
        return found

    def holder(self, path: Path) -> Holder | None:
        """Who holds a claim; None if nobody does any more."""
        try:
            with path.open(encoding="utf-8") as file:  # on a network's disk, opening is what brings news
                written = os.fstat(file.fileno()).st_mtime_ns
                holder: Holder = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError:  # without links it is created first and written then
            holder = {"host": "somebody", "place": "", "pid": 0, "born": "", "items": 0, "tokens": 0}
        if holder["place"] and holder["place"] == place():
            return holder if process.birth(holder["pid"]) == holder["born"] else None
        before, since = self._seen.get(path.name, (None, 0.0))
        if before != written:
            self._seen[path.name] = written, time.monotonic()
            return holder
        return holder if time.monotonic() - since < self.stale else None

    def holders(self) -> list[tuple[int, Holder]]:
        """Who is at work on what."""
        found = [(number, self.holder(path)) for number, (_, path) in sorted(self.claims().items())]
        return [(number, holder) for number, holder in found if holder is not None]

    def last_words(self) -> str:
        """What the workers elsewhere said when the last of them had ended; empty while one may come."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / LAST_WORDS).read_text("utf-8").strip()
        return ""

    def publish(self, number: int, write: Callable[[Path], None]) -> bool:
        """Let `write` make a shard's file, and publish it. False if another worker was first: then his stands."""
        partial = beside(self.folder / shard_name(number))
        try:
            write(partial)
            files.sync(partial)
            first = self._name(partial, number)
        finally:
            partial.unlink(missing_ok=True)
        files.sync(self.final)
        return first

    def _name(self, partial: Path, number: int) -> bool:
        """Give a shard's file its name; False if another worker was first."""
        final = self.path(number)
        if (first := place_once(partial, final)) is not None:
            return first
        while not final.exists():
            claim = self.claim([number], "name")
            if claim is not None:
                with claim:
                    partial.rename(final)
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _offer(self, claim: Path) -> bool:
        scratch, words = beside(claim), json.dumps({**ourselves(), "items": 0, "tokens": 0})
        try:
            scratch.write_text(words, "utf-8")
            first = place_once(scratch, claim)
        finally:
            scratch.unlink(missing_ok=True)
        return create_once(claim, words) if first is None else first


def work(
    shards: Shards,
    do: Callable[[Claim], None] | None,
    prefer: Callable[[int], Any] = lambda number: number,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Do shards until all are there, those first that `prefer` sorts first. `tick` is called between them.

    Without `do`, they are left to others, and `WorkersLost` says that none is left. Returns too when the folder is
    gone: then another worker did the last ones.
    """
    told = alive = time.monotonic()
    while True:
        tick()
        try:
            words = shards.last_words() if do is None else ""  # before the shards: who speaks last may have done them
            missing = shards.missing()
            if not missing:
                return
            if not words or shards.holders():
                alive = time.monotonic()
            elif time.monotonic() - alive > PATIENCE_SECONDS:
                (shards.folder / LAST_WORDS).unlink(missing_ok=True)  # the next attempt has workers of its own
                raise WorkersLost(
                    f"no worker is left, and {len(missing)} of {shards.count} shards are missing ({words}): mend that "
                    "and run the same command again; what is finished is kept"
                )
            claim = shards.claim(sorted(missing, key=prefer)) if do is not None else None
            if do is not None and claim is not None:
                with claim:
                    do(claim)
                continue
        except FileNotFoundError:
            if shards.folder.exists():
                raise
            return
        if time.monotonic() - told > WAITING_SECONDS:
            told = time.monotonic()
            others = ", ".join(f"{who['host']} ({shard_name(number)})" for number, who in shards.holders())
            log.info("waiting for %d shards, at work: %s", len(missing), others or "nobody")
        time.sleep(POLL_SECONDS)


def shard_name(number: int) -> str:
    """`shard-00007`."""
    return f"shard-{number:05d}"


def beside(path: Path) -> Path:
    """A hidden name beside a path that nobody else uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def place_once(scratch: Path, final: Path) -> bool | None:
    """Give a finished file its name; False if that is taken, None if the file system has no hard links.

    Unlike a rename, a link never replaces what is there.
    """
    try:
        os.link(scratch, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in NO_LINKS:
            return None
        raise
    return True


def create_once(path: Path, text: str) -> bool:
    """Create a file with this text; False if it is there. Others may see it before the text is in it."""
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


@cache
def place() -> str:
    """Where process numbers mean what they mean here: this boot of this machine, this container. Empty: unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip() + str(
            Path("/proc/self/ns/pid").readlink()
        )
    except OSError:
        return ""


def ourselves() -> Holder:
    """This process as the holder of a claim."""
    pid = os.getpid()
    return {"host": os.uname().nodename, "place": place(), "pid": pid, "born": process.birth(pid)}


# Joining from elsewhere.


def work_folder(job: Job) -> Path:
    """Where the workers on a job keep claims and what is in the making. Other work has another name."""
    identity = store_identity.digest_of(store_identity.identity_of(job))
    return job.output.with_name(f".{job.output.name}.{identity[:16]}.work")
