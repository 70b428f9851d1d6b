"""Clicks that a busy server refuses: `make bench-writes`, or `python tests/benchmarks/writes.py [--requests 500]`.

While a run of the demo reports to `spin up`, runs far in the future are created at a few a second, as the UI's form
creates them, and none is sent again. Printed are how many the server refused, how long its answers took, and what the
run itself wrote meanwhile: requests by kind from the server's access log, and new rows of the tables that are written
without a request of their own.
"""

import argparse
import contextlib
import re
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
from operate import machine, phases

from tests.support.servers import served
from tests.support.servers.served import Up, free_port, wait_for

served.TIMEOUT_SECONDS = 900.0

GAME = {"prompts": {"sample": 600}, "train": {"epochs": 20}, "gate": {"rule": "always"}}
"""The demo with trainings that last longer than the measurement."""

AT_ONCE = 4
"""How many requests may wait for an answer, as from so many open pages."""

MOST_SECONDS = 400.0
"""The measurement ends after this time, with fewer requests where answers take long."""

LATER = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}

WRITE = re.compile(r'"(POST|PUT|PATCH|DELETE) /api/([a-z_-]+)(?:/[^/ ]*)?(/[a-z_-]+)?/? HTTP[^"]*" (\d+)')
"""A line of the access log."""

TIMEOUT_SECONDS = 60.0
"""A request without an answer after this time counts as refused."""

TABLES = ("events", "task_run_state", "flow_run_state", "log", "artifact")
"""Tables that grow while a run reports."""


def counts(up: Up) -> tuple[Counter[str], dict[str, int]]:
    """The writing requests in the server's log so far, by kind, and the number of rows of each table."""
    lines = (up.runs / ".prefect" / "server.log").read_text("utf-8", "replace")
    kinds = Counter(
        f"{path}{action}" for _, path, action, _ in WRITE.findall(lines) if action not in ("/filter", "/count")
    )
    database = up.runs / ".prefect" / "prefect.db"
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
        rows = {name: connection.execute(f"select count(*) from {name}").fetchone()[0] for name in TABLES}
    return kinds, rows


def click(up: Up, requests: int, a_second: float) -> tuple[Counter[int], list[float]]:
    """Create runs far in the future, each once: the answers' statuses, and their times in seconds."""
    path = f"/deployments/{up.deployment('spin')['id']}/create_flow_run"
    up.request("POST", path, {"state": LATER})  # fetches the token that changes need
    statuses, seconds = Counter[int](), []
    began = time.monotonic()

    def one(number: int) -> None:
        time.sleep(max(0.0, began + number / a_second - time.monotonic()))
        if time.monotonic() - began < MOST_SECONDS:
            sent = time.monotonic()
            statuses[send(up, path)] += 1
            seconds.append(time.monotonic() - sent)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(requests)))
    return statuses, seconds


def send(up: Up, path: str) -> int:
    """Send one request, and return the status of the answer; 0 without an answer."""
    body: Any = {"parameters": {"lineage": "later"}, "state": LATER}
    url = f"http://127.0.0.1:{up.port}/api{path}"
    with contextlib.suppress(httpx.TransportError):
        return up.client.post(url, json=body, headers=up.headers, auth=up.auth, timeout=TIMEOUT_SECONDS).status_code
    return 0


def measure(requests: int, a_second: float) -> None:
    """Measure once, and print."""
    with tempfile.TemporaryDirectory(prefix="spin-writes-") as scratch:
        logged = {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"}  # with an access log
        up = Up(Path(scratch) / "runs", free_port(), secrets=logged)
        with up:
            run = up.trigger("spin", {"recipe": "demo", "lineage": "busy", "overrides": GAME})
            wait_for(lambda: phases(up.runs))
            (kinds, rows), began = counts(up), time.monotonic()
            statuses, seconds = click(up, requests, a_second)
            state = up.request("GET", f"/flow_runs/{run['id']}")["state_type"]
            (kinds_then, rows_then), wall = counts(up), time.monotonic() - began
    refused = sum(number for status, number in statuses.items() if status != 201)
    print(f"refused     {refused} of {len(seconds)} ({dict(statuses)}), the run was {state} at the end")
    print(f"answers     median {statistics.median(seconds):.3f} s, worst {max(seconds):.2f} s")
    print(f"requests    a second, over {wall:.0f} s:")
    for kind, number in (kinds_then - kinds).most_common():
        print(f"    {kind:<40} {number / wall:6.2f}")
    print("new rows    a second:")
    for name in TABLES:
        print(f"    {name:<40} {(rows_then[name] - rows[name]) / wall:6.2f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--a-second", type=float, default=4.0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    print(machine())
    measure(given.requests, given.a_second)


if __name__ == "__main__":
    main()
