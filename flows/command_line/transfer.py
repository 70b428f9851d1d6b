"""`spin push` and `spin pull`, with a bar that shows how far they are."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from spin_core.config.push import PushConfig
from spin_core.errors import ConfigError
from spin_core.lineage import lineage as lineages
from spin_core.preflight.findings import size
from spin_core.remote import pull as pulls
from spin_core.remote import push as pushes
from spin_core.remote.push import Moved
from spin_core.store import lock


def push(runs: Path, name: str, url: str | None, *, again: bool, replace: bool) -> str:
    """Bring a lineage's copy up to date, at `url` or at its own; returns what there is to say."""
    game = lineages.find(runs, name)
    # Unchecked as yet, for the sake of one line that leaves out the URL: it is where the store is met.
    settings = PushConfig.model_construct(url=url, read_back=game.config.push.read_back) if url else game.config.push
    if not settings.url:
        raise ConfigError(f"lineage {name} has no push.url: name one, as in spin push {name} s3://bucket/folder")
    with lock.locked(game.root), bar("push") as tell:
        pushed = pushes.push(game, settings, again=again, replace=replace, tell=tell)
    how = "and read back" if settings.read_back else "not read back"
    return f"{settings.url}/{name} holds {told(pushed, f'uploaded now, {how}')}"


def pull(runs: Path, name: str, url: str) -> str:
    """Bring a lineage back from its copy; returns what there is to say."""
    with bar("pull") as tell:
        pulled = pulls.pull(runs, name, url, tell)
    return f"{runs / name} holds {told(pulled, 'downloaded now')}; all have the digests that were pushed"


def told(done: Moved, what: str) -> str:
    """`96 files, 12 of them (3.1 MB) uploaded now`."""
    return f"{done.files:,} files, {done.moved:,} of them ({size(done.bytes)}) {what}"


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many bytes of how many have gone."""
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True) as live:
        shown = live.add_task(title, total=None)
        yield lambda gone, total: live.update(shown, completed=gone, total=total)
