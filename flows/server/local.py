"""Prefect for one person on one machine: where its state is, and whether a `spin up` serves it.

A user who has set up Prefect already (PREFECT_HOME or PREFECT_PROFILE) keeps that. PREFECT_API_URL names the server
that runs report to; it does not change which database `spin up` serves.
"""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

import click

from flows.server import api, state
from spin_core.errors import ConfigError, TryAgain
from spin_core.reports import links
from spin_core.runtime import grace, process, proxies
from spin_core.store.files import storage_errors

HOME = Path(__file__).resolve().parents[2]
"""The folder that has the packages: a checkout, or an environment's site-packages."""

OWN = ("PREFECT_HOME", "PREFECT_PROFILE")

DEFAULT_PORT = 4200

RERUNS = 3
"""How often a crashed run is started again automatically; `spin up --reruns` overrides it."""

OF_RERUNS = "SPIN_RERUNS"
"""The environment variable by which `spin up` passes that number to the processes it starts."""

HEARTBEAT_SECONDS = 30
"""How often a run sends a heartbeat. Prefect allows no shorter interval."""

POOL = "spin"
"""The work pool of the local worker."""

WORKER = f"spin up on {os.uname().nodename}"
"""The name of the local worker. Workers label the runs that they start with their names."""

ANSWER_SECONDS = 240.0
"""How long a command waits for the server of a `spin up` that starts or ends."""

ORPHAN_SECONDS = 10.0
"""How long a run whose worker is gone may take to end, once its phase has ended."""


def prepare(runs: Path, *, quiet: bool, to_serve: bool = False) -> bool:
    """Set Prefect's environment variables. Call it before Prefect is imported.

    Prefect's state is in `<runs>/.prefect`, and its server is the `spin up` of that folder. If there is none, Prefect
    starts a temporary one, with the same password.

    Args:
        runs: The folder that holds lineages.
        quiet: Turn off Prefect's log in the terminal, for `spin`'s own display.
        to_serve: This process starts the server, so PREFECT_API_URL is ignored.

    Returns:
        Whether a run needs a temporary server with the state in `prefect_home`.

    Raises:
        TryAgain: PREFECT_API_URL is set, and nothing answers there.
        ConfigError: The environment has a proxy that cannot be used.
        ConfigError: The state belongs to another user.
    """
    proxies.check()
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
    if named and named != f"{url}/api" and not api.is_reachable(named):
        raise TryAgain(
            f"no server answers at {named}, which PREFECT_API_URL names: start it, or unset PREFECT_API_URL to do "
            "without it"
        )
    has_own_prefect = any(name in os.environ for name in OWN) or named not in ("", f"{url}/api")
    folder = state.state_folder(runs)
    if not has_own_prefect:
        with storage_errors(folder):
            state.prepare_state(folder)
        settings |= {"PREFECT_HOME": str(folder), links.OF_PAGES: links.LINEAGES}
        if url is not None:
            settings["PREFECT_API_URL"] = f"{url}/api"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if url is not None and (not has_own_prefect or named == f"{url}/api"):
        os.environ[state.OF_CLIENTS] = state.read_password(folder)
    elif not has_own_prefect:  # the temporary server takes it from the environment, too
        with storage_errors(folder):
            os.environ[state.OF_SERVER] = os.environ[state.OF_CLIENTS] = state.choose_password(folder)
    return url is None and (not has_own_prefect or _has_chosen_home_alone())


def prefect_home(runs: Path) -> Path:
    """The folder of Prefect's state: the user's own, or that of the runs folder."""
    return Path(os.environ.get("PREFECT_HOME", "") or state.state_folder(runs)).expanduser().absolute()


def _has_chosen_home_alone() -> bool:
    """Whether a user has set PREFECT_HOME, but no server: neither in the environment nor in a profile of that home."""
    home = os.environ.get("PREFECT_HOME", "")
    if not home or any(
        os.environ.get(name) for name in ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_API_URL")
    ):
        return False
    try:
        return "PREFECT_API_URL" not in (Path(home).expanduser() / "profiles.toml").read_text("utf-8", "replace")
    except OSError:
        return True


class Up(NamedTuple):
    """A `spin up` that is running."""

    pid: int
    url: str
    """The address of its server; empty while it starts."""
    since: float
    """Since when it has been up, in seconds since the epoch."""
    elsewhere: str
    """The name of its machine if that is another one, whose processes and addresses this one cannot use; else empty."""


def address_file(runs: Path) -> Path:
    """The file that names the folder's `spin up`: its process, machine and `place`, then its server's address.

    It is locked as long as that `spin up` runs. Machines that share the folder all see the lock.
    """
    return state.state_folder(runs) / "server.url"


def find_up(runs: Path) -> Up | None:
    """The `spin up` of this folder, also while it starts or ends; None if there is none."""
    try:
        with address_file(runs).open(encoding="utf-8") as file:
            if not _is_locked(file.fileno()):
                return None  # left by a killed `spin up`; another server may have that port by now
            lines, since = file.read().splitlines(), os.fstat(file.fileno()).st_mtime
    except (FileNotFoundError, PermissionError):  # missing, or another user's
        return None
    if not lines:
        return None
    pid, host, place = (*lines[0].split(), "", "")[:3]
    elsewhere = host if place not in ("", process.pid_scope()) else ""
    return Up(int(pid), lines[1] if len(lines) > 1 else "", since, elsewhere)


def serving(runs: Path) -> str | None:
    """The address of the server that `spin up` runs for this folder on this machine; None if none answers."""
    up = find_up(runs)
    return up.url if up and answers(up) else None


def answers(up: Up) -> bool:
    """Whether its server answers on this machine."""
    return not up.elsewhere and bool(up.url) and api.healthy(up.url)


def wait_for_answer(runs: Path) -> Up | None:
    """The folder's `spin up`, once its server answers. While it starts, restarts or ends, this waits and says so.

    Returns:
        None if there is no `spin up` on this machine, or no longer.

    Raises:
        TryAgain: It does not answer in time.
    """
    deadline, has_reported = time.monotonic() + ANSWER_SECONDS, False
    while (up := find_up(runs)) and not up.elsewhere and not answers(up):
        if not has_reported:
            doing = "does not answer: it is busy, restarts, or ends" if up.url else "is starting"
            click.echo(f"spin up {doing}; waiting for it …", err=True)
            has_reported = True
        if time.monotonic() > deadline:
            raise TryAgain(
                f"spin up (process {up.pid}) does not answer after {ANSWER_SECONDS:.0f} s: end it with spin down, and "
                f"see {state.state_folder(runs)}/server.log"
            )
        time.sleep(0.2)
    return up if up and not up.elsewhere else None


def reject_other_machine(up: Up | None, runs: Path) -> None:
    """`ConfigError` if another machine serves the folder."""
    if up and up.elsewhere:
        raise ConfigError(f"{runs} is served by {up.elsewhere}: run spin down there")


def _is_locked(descriptor: int) -> bool:
    """Whether another process has locked the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def end_run_with_worker() -> None:
    """End this run when the worker of `spin up` that started it is gone, even by kill -9.

    Without that, the run would go on unseen and keep its lineage locked. Does nothing in other runs.
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
