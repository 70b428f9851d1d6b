"""Prefect for one person at one machine: where its state lies, and whether `spin up` is serving it.

Whoever has set up Prefect already (PREFECT_HOME or PREFECT_PROFILE) keeps their own. PREFECT_API_URL names the server
that runs tell of themselves; which database `spin up` serves has nothing to do with it.
"""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

from flows.server import api
from spin_core.errors import ConfigError, TryAgain
from spin_core.inference import shards
from spin_core.runtime import grace

OWN = ("PREFECT_HOME", "PREFECT_PROFILE")

DEFAULT_PORT = 4200

RERUNS = 3
"""How often a crashed run is started again by itself, unless `spin up --reruns` says otherwise."""

OF_RERUNS = "SPIN_RERUNS"
"""The variable by which `spin up` tells its parts."""

HEARTBEAT_SECONDS = 30
"""How often a run says that it lives. Prefect takes nothing shorter."""

POOL = "spin"
"""The work pool of the local worker."""

WORKER = f"spin up on {os.uname().nodename}"
"""What the local worker is called. It labels the runs that it starts with that, as others do with their names."""

ORPHAN_SECONDS = 10.0
"""How long a run whose worker is gone may take to end by itself once its phase has."""


def prepare(runs: Path, *, quiet: bool, to_serve: bool = False) -> None:
    """Set Prefect's environment. Call it before Prefect is imported.

    State lies in `<runs>/.prefect`, and the server is the one that `spin up` runs there; if none does, Prefect starts
    a temporary one of its own. `quiet` leaves the terminal to our own display. Whoever is about to serve needs no
    server: PREFECT_API_URL is let be. Else `TryAgain` if nothing answers there.
    """
    settings = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
    }
    if quiet:
        settings |= {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL"}
    url, named = serving(runs), "" if to_serve else os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if named and named != f"{url}/api" and not api.reached(named):
        raise TryAgain(
            f"no server answers at {named}, which PREFECT_API_URL names: start it, or unset PREFECT_API_URL to do "
            "without it"
        )
    theirs = any(name in os.environ for name in OWN) or named not in ("", f"{url}/api")
    if not theirs:
        settings["PREFECT_HOME"] = str(state_folder(runs))
        if url is not None:
            settings["PREFECT_API_URL"] = f"{url}/api"
    if url is not None and (not theirs or named == f"{url}/api"):
        settings[api.OF_CLIENTS] = api.read_password(state_folder(runs))
    elif not theirs:  # the temporary server wants what the environment says
        settings[api.OF_CLIENTS] = os.environ.get(api.OF_SERVER, "")
    for name, value in settings.items():
        if value:
            os.environ.setdefault(name, value)


def state_folder(runs: Path) -> Path:
    """Where the local server keeps its database."""
    return runs / ".prefect"


class Up(NamedTuple):
    """A `spin up` that lives."""

    pid: int
    url: str
    """The address of its server; empty while it starts."""
    since: float
    """When it was up, as `time.time()` tells."""
    elsewhere: str
    """The name of its machine, where that is another, whose processes and addresses are not ours; else empty."""


def address_file(runs: Path) -> Path:
    """Holds the folder's `spin up` (its process, machine and `place`) and then its server's address.

    It is locked as long as that lives: where machines share the folder, all of them see that.
    """
    return state_folder(runs) / "server.url"


def find_up(runs: Path) -> Up | None:
    """The `spin up` that lives for this folder, starting and ending ones too; None if there is none."""
    try:
        with address_file(runs).open(encoding="utf-8") as file:
            if not is_locked(file.fileno()):
                return None  # a killed `spin up` left it, and another's server may have that port by now
            lines, since = file.read().splitlines(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    if not lines:
        return None
    pid, host, place = (*lines[0].split(), "", "")[:3]
    elsewhere = host if place not in ("", shards.place()) else ""
    return Up(int(pid), lines[1] if len(lines) > 1 else "", since, elsewhere)


def serving(runs: Path) -> str | None:
    """The address of the server that `spin up` runs for this folder on this machine; None if none answers."""
    up = find_up(runs)
    return up.url if up and answers(up) else None


def answers(up: Up) -> bool:
    """Whether its server can be asked from here."""
    return not up.elsewhere and bool(up.url) and api.healthy(up.url)


def refuse_elsewhere(up: Up | None, runs: Path) -> None:
    """`ConfigError` if another machine serves the folder."""
    if up and up.elsewhere:
        raise ConfigError(f"{runs} is served by {up.elsewhere}: run spin down there")


def is_locked(descriptor: int) -> bool:
    """Another process has locked the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def end_with_worker() -> None:
    """In a run that the worker of `spin up` has started: end it when that worker is gone, be it by kill -9.

    Such a run would go on unseen, holding its lineage.
    """
    if "SPIN_UP" not in os.environ:
        return
    worker = os.getppid()

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # a phase saves its work
        time.sleep(grace.longest_grace() + ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
