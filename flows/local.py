"""Prefect for one person at one machine: where its state lies, and whether `spin up` is serving it.

Whoever has set up Prefect already (PREFECT_API_URL, PREFECT_HOME or PREFECT_PROFILE) keeps their own.
"""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

from flows import api

OWN = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE")
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
ORPHAN_GRACE_SECONDS = 40.0
"""How long a run whose worker is gone may take to end by itself."""


def prepare(runs: Path, *, quiet: bool) -> None:
    """Set Prefect's environment. Call it before Prefect is imported.

    State lies in `<runs>/.prefect`, and the server is the one that `spin up` runs there; if none does, Prefect starts
    a temporary one of its own. `quiet` leaves the terminal to our own display.
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
    url, theirs = serving(runs), any(name in os.environ for name in OWN)
    if not theirs:
        settings["PREFECT_HOME"] = str(state_folder(runs))
        if url is not None:
            settings["PREFECT_API_URL"] = f"{url}/api"
    if url is not None and (not theirs or os.environ.get("PREFECT_API_URL", "").rstrip("/") == f"{url}/api"):
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


def address_file(runs: Path) -> Path:
    """Holds the process of the folder's `spin up` and then its server's address. It is locked as long as that lives."""
    return state_folder(runs) / "server.url"


def find_up(runs: Path) -> Up | None:
    """The `spin up` that lives for this folder, starting and ending ones too; None if there is none."""
    try:
        with address_file(runs).open(encoding="utf-8") as file:
            if not is_locked(file.fileno()):
                return None  # a killed `spin up` left it, and another's server may have that port by now
            words, since = file.read().split(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    return Up(int(words[0]), words[1] if len(words) > 1 else "", since) if words else None


def serving(runs: Path) -> str | None:
    """The address of the server that `spin up` runs for this folder; None if none answers."""
    up = find_up(runs)
    return up.url if up and up.url and api.healthy(up.url) else None


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
        time.sleep(ORPHAN_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
