"""`spin push` and `spin pull`, with a bar that shows their progress."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from flows.command_line.options import warn
from spin_core.config.push import PushConfig
from spin_core.errors import ConfigError, count
from spin_core.lineage.find import find_lineage
from spin_core.preflight.findings import size
from spin_core.remote import pull as remote_pull
from spin_core.remote import push as remote_push
from spin_core.remote.push import Transfer
from spin_core.store import lock


def push(runs: Path, name: str, url: str | None, *, again: bool, replace: bool) -> str:
    """Bring a lineage's copy up to date, at `url` or at its own URL; returns the line to print."""
    lineage = find_lineage(runs, name)
    # Not validated here: the store itself rejects a URL that is wrong, in one line that does not repeat its secrets.
    settings = (
        PushConfig.model_construct(url=url, read_back=lineage.config.push.read_back) if url else lineage.config.push
    )
    if not settings.url:
        raise ConfigError(f"lineage {name} has no push.url: name one, as in spin push {name} s3://bucket/folder")
    with lock.locked(lineage.root), _progress_bar("push") as on_progress:
        pushed = remote_push.push(lineage, settings, again=again, replace=replace, on_bytes=on_progress)
    how = "and read back" if settings.read_back else "not read back"
    return f"{settings.url}/{name} holds {_amount(pushed)} uploaded now, {how}"


def pull(runs: Path, name: str, url: str, *, trust: bool) -> str:
    """Download a lineage from its copy; returns the line to print."""
    with _progress_bar("pull") as on_progress:
        pulled = remote_pull.pull(runs, name, url, on_progress, trust=trust, warn=warn)
    return f"{runs / name} holds {_amount(pulled)} downloaded now; all have the digests that were pushed"


def _amount(done: Transfer) -> str:
    """`96 files, 12 of them (3.1 MB)`."""
    return f"{count(done.files, 'file')}, {done.moved:,} of them ({size(done.bytes)})"


@contextlib.contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows how many bytes of how many are transferred."""
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # On a pipe there is nothing to update, and rich would print an empty line.
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as live:
        bar = live.add_task(title, total=None)
        yield lambda done, total: live.update(bar, completed=done, total=total)
