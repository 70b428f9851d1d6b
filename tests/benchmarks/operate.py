"""What operation costs: `make bench-operate`, or `python tests/benchmarks/operate.py [--only start,click] [--quick]`.

    start      `spin up` in an empty folder, and again: server answering, deployments made, worker there
    click      from POST create_flow_run, as the UI's form sends it, until the first phase has a process
    memory     proportional memory (PSS) of what `spin up` keeps running while nothing else does
    iteration  an iteration run by the flow, compared with its phases' command lines from the same job files
    map        a generation of 200 shards as one task, compared with the phase alone; 200 tasks and 200 calls of threads
    runs       the delay until a scheduled run is taken, as runs come faster: SQLite (`spin up`), and PostgreSQL with
               Redis (the services of infra/compose.yaml, where PostgreSQL and Redis are installed)

Everything runs on this machine, the load too. Folders and ports are its own.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import prefect_aside

from tests.support.servers import served
from tests.support.servers.served import Up, free_port, wait_for

served.TIMEOUT_SECONDS = 900.0
served.PAUSE = 0.1

LIMIT_SECONDS = 5.0
"""The middle delay from which on a server counts as holding no more."""
GAME = {
    "sft": {"train": {"epochs": 1}},
    "prompts": {"sample": 600},
    "controls": {"sft_continued": False, "temperatures": []},
    "gate": {"rule": "always"},
    "evaluate": {"frontier": []},
}
"""The demo, small: what is measured does not depend on its size."""

Row = tuple[str, str, str]
"""A figure, its value, and what it consists of."""


# What the kernel reports of processes.


def pss_mb(processes: Sequence[int]) -> float:
    """Proportional resident memory of processes: what they share is divided among those that share it."""
    kilobytes = 0
    for process in processes:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process}/smaps_rollup").read_text("utf-8")
            kilobytes += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return kilobytes / 1024


def cpu_seconds(processes: Sequence[int]) -> float:
    """CPU time of running processes since they started, and of the children that they have waited for."""
    ticks = 0
    for process in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text("utf-8").rpartition(")")[2].split()[1])
    family_ids, last = {process}, set[int]()
    while family_ids != last:
        last = set(family_ids)
        family_ids |= {child for child, parent in parents.items() if parent in family_ids}
    return sorted(family_ids)


def middle(values: Sequence[float]) -> str:
    """`4.1 s (3.9 to 4.4)`."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def tenth(values: Sequence[float]) -> float:
    """The value that nine of ten do not pass."""
    return sorted(values)[min(len(values) - 1, int(0.9 * len(values)))]


# The stages.


def start(up: Up) -> list[Row]:
    """Start it in its folder, be that new or not, and leave it up."""
    began, clock = time.monotonic(), datetime.now(UTC)
    seconds: list[float] = []

    def listen() -> None:
        up.start()
        seconds.append(time.monotonic() - began)

    listener = threading.Thread(target=listen)
    listener.start()
    up.request("GET", "/health")
    server = time.monotonic() - began
    listener.join()

    def worker() -> bool:
        there = up.request("POST", "/work_pools/spin/workers/filter", {})
        return any(datetime.fromisoformat(worker["last_heartbeat_time"]) > clock for worker in there)

    wait_for(worker)
    ready = time.monotonic() - began
    return [
        ("", f"{ready:.1f} s", f"server answers {server:.1f}, deployments created {seconds[0]:.1f}, worker {ready:.1f}")
    ]


def click(up: Up, rounds: int) -> list[Row]:
    """Trigger runs and cancel each as soon as its first phase runs."""
    times: list[tuple[float, float, float]] = []
    for number in range(rounds):
        there = set(phases(up.runs))
        began = time.time()
        run = up.trigger("spin", {"recipe": "demo", "lineage": f"click-{number}", "iterations": 1, "overrides": GAME})
        wait_for(lambda there=there: set(phases(up.runs)) - there)
        first = time.time() - began
        states = up.request("GET", f"/flow_run_states/?flow_run_id={run['id']}")
        at = {
            state["type"]: datetime.fromisoformat(state["timestamp"]).timestamp() - began for state in reversed(states)
        }
        times.append((at["PENDING"], at["RUNNING"], first))
        up.request("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
        up.finish(run)
    taken, running, first = ([row[place] for row in times] for place in range(3))
    parts = f"taken by the worker {statistics.median(taken):.1f}, running {statistics.median(running):.1f}"
    return [("click to the first phase running", middle(first), parts)]


def phases(runs: Path) -> list[Path]:
    """What says that a phase has a process, with the time at which it began to."""
    return [path for folder in (runs, runs / ".sft") for path in folder.glob("**/jobs/*.pid")]


def memory(up: Up) -> list[Row]:
    """What stays in memory while nothing runs."""
    time.sleep(10)
    everyone = family(up.process.pid)
    parts = {name: pss_mb(sorted({process for pid in up.alive(word) for process in family(pid)} & set(everyone)))
             for name, word in (("server", "flows.server.app"), ("worker", "worker"))}  # fmt: skip
    total = pss_mb(everyone)
    parts["spin up itself, which watches"] = total - sum(parts.values())
    return [("idle stack, PSS", f"{total:.0f} MB", ", ".join(f"{name} {value:.0f}" for name, value in parts.items()))]


def run_bench_lineage(up: Up, iterations: int) -> Path:
    """A lineage of this many iterations, run by the worker; its folder has its run's id."""
    root = up.runs / "bench"
    if not (root / "run").exists():
        parameters = {"recipe": "demo", "lineage": "bench", "iterations": iterations, "overrides": GAME}
        run = up.finish(up.trigger("spin", parameters))
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        (root / "run").write_text(run["id"])
    return root


def iteration(up: Up, rounds: int) -> list[Row]:
    """Iterations of one run, and the same again by hand: with cold processes, and with the next one made ready.

    Iteration 0 is left out, since it alone prepares prompts.
    """
    root = run_bench_lineage(up, rounds + 1)
    query = {"flow_runs": {"id": {"any_": [(root / "run").read_text()]}}, "limit": 200}
    tasks = up.request("POST", "/task_runs/filter", query)
    at = {task["name"]: [datetime.fromisoformat(task[side]) for side in ("start_time", "end_time")] for task in tasks}
    again = range(1, rounds + 1)
    flow = [(at[f"publish t={t}"][1] - at[f"generate t={t}"][0]).total_seconds() for t in again]
    lines = [aside("lines", up, str(t))["phases"] for t in again]
    measurements = [aside("aside", up, str(t)) for t in again]
    warm, pages = (
        [measurement["phases"] for measurement in measurements],
        [measurement["pages"] for measurement in measurements],
    )
    over = [whole - phases - page for whole, phases, page in zip(flow, warm, pages, strict=True)]
    ratio = statistics.median(value / other for value, other in zip(flow, lines, strict=True))
    return [
        ("an iteration, by the flow", middle(flow), "from its first task's start until its page is there"),
        ("its phases by their command lines", middle(lines), f"the flow takes {ratio:.2f} of that"),
        ("its phases, while the next loads", middle(warm), "as in the flow, without Prefect"),
        ("its leaderboard, report and pages", middle(pages), "without Prefect"),
        ("overhead of Prefect", middle(over), "the flow, less the two rows above"),
    ]


def mapped(up: Up) -> list[Row]:
    """Shards through Prefect and without."""
    run_bench_lineage(up, 2)
    shards, tasks = aside("shards", up), aside("tasks", up)
    over, each = shards["task"] - shards["phase"], (tasks["prefect"] - tasks["plain"]) / prefect_aside.SHARDS
    return [
        (
            f"overhead on a generation of {shards['shards']:.0f} shards",
            f"{over:.2f} s",
            f"{1000 * over / shards['shards']:.1f} ms a shard: one task around a phase of {shards['phase']:.1f} s",
        ),
        (
            f"overhead, were each of {prefect_aside.SHARDS} shards a task",
            f"{tasks['prefect'] - tasks['plain']:.2f} s",
            f"{1000 * each:.0f} ms a shard, over {prefect_aside.THREADS} threads; trivial work, "
            f"{tasks['plain']:.2f} s by a thread pool",
        ),
    ]


def aside(what: str, up: Up, *arguments: str) -> dict[str, float]:
    """A measure of `prefect_aside`."""
    words = [sys.executable, prefect_aside.__file__, what, str(up.runs), *arguments]
    done = subprocess.run(words, env=Up.all_environment(), stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def runs_held(
    name: str,
    kind: str,
    pool: str,
    rates: Sequence[int],
    seconds: float,
    environment: dict[str, str],
    roles: dict[str, Callable[[], list[int]]],
) -> list[Row]:
    """Increase the rate of runs a minute, each for `seconds`, until runs wait too long; one row for each rate."""
    words = [sys.executable, str(Path(__file__).with_name("held_runs.py")), kind, pool, json.dumps(list(rates))]
    surroundings = {**environment, "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL"}
    rows: list[Row] = []
    with subprocess.Popen(
        [*words, str(seconds), str(LIMIT_SECONDS)], env=surroundings, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        roles = {**roles, "load": lambda: family(process.pid)}
        began, used = 0.0, dict[str, float]()
        for line in process.stdout:
            message = json.loads(line)
            now = {role: cpu_seconds(processes()) for role, processes in roles.items()}
            if "begins" in message:
                began, used = time.monotonic(), now
                continue
            wall = time.monotonic() - began
            cores = ", ".join(f"{role} {(now[role] - used[role]) / wall:.2f}" for role in roles)
            half = statistics.median(message["delays"])
            rows.append(
                (
                    f"{name}, {message['rate']} runs a minute",
                    f"{half:.1f} s" + (" (too long)" if half > LIMIT_SECONDS else ""),
                    f"90 % within {tenth(message['delays']):.1f} s; cores: {cores}",
                )
            )
    assert process.returncode == 0, f"{name}: the load ended with status {process.returncode}"
    return rows


@contextlib.contextmanager
def team_server(folder: Path) -> Iterator[tuple[dict[str, str], Callable[[], list[int]]]]:
    """Server and services of infra/compose.yaml over PostgreSQL and Redis: what clients need, and its processes."""
    import httpx

    from tests.support.servers.stack import Stack, documented, loopback_addresses, postgres, redis

    database, cache, api = (free_port() for _ in range(3))
    places = loopback_addresses(database, cache, api, "benchmark")
    passwords = dict.fromkeys(("SPIN_DATABASE_PASSWORD", "SPIN_REDIS_PASSWORD"), "benchmark")
    stack = Stack(folder, documented() | {"SPIN_AUTH": "team:benchmark"} | passwords, places)

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{places['PREFECT_API_URL']}/ready", timeout=5).is_success
        return False

    with postgres(database, "benchmark"), redis(folder, cache, stack.services["redis"]):
        try:
            stack.finish("migrate")
            stack.start("server")
            stack.start("services")
            wait_for(ready)
            environment = {**stack.environment("worker-cpu"), "PREFECT_WORKER_QUERY_SECONDS": "2"}
            yield environment, lambda: [pid for part in stack.running.values() for pid in family(part.pid)]
        finally:
            for name in reversed(list(stack.running)):
                stack.end(name, signal.SIGKILL)


def runs(up: Up, folder: Path, quick: bool) -> list[Row]:
    """Both servers."""
    from tests.support.servers.stack import postgres_programs

    seconds, held = (8.0, [30, 60]) if quick else (20.0, [60, 120, 240, 480, 960])
    environment = {
        **Up.all_environment(),
        "SPIN_RUNS": str(up.runs),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    processes, seconds_each = ([10], 12.0) if quick else ([10, 20, 40, 80], seconds)

    def part(name: str) -> Callable[[], list[int]]:
        return lambda: sorted({process for pid in up.alive(name) for process in family(pid)})

    both, alone = {name: part(name) for name in ("server", "worker")}, {"server": part("server")}
    rows = runs_held("a process each, SQLite", "process", "spin", processes, seconds_each, environment, both)
    rows += runs_held("held, SQLite", "held", "bench", held, seconds, environment, alone)
    if postgres_programs() is None or shutil.which("redis-server") is None:
        return [*rows, ("held, PostgreSQL", "not measured", "there is no PostgreSQL or no Redis here")]
    up.end()  # two servers on one machine would share its cores
    (folder / "team").mkdir()
    with team_server(folder / "team") as (environment, services):
        rows += runs_held("held, PostgreSQL", "held", "bench", held, seconds, environment, {"server": services})
    return rows


# The whole.

STAGES = ("start", "click", "memory", "iteration", "map", "runs")


def measure(stages: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows, as they are found."""
    clicks, rounds = (1, 1) if quick else (3, 2)
    with tempfile.TemporaryDirectory(prefix="spin-operate-") as scratch:
        folder = Path(scratch)
        up = Up(folder / "runs", free_port())
        try:
            rows = start(up)
            if "start" in stages:
                yield ("spin up, the first time in a folder", *rows[0][1:])
                up.end()
                yield ("spin up, again", *start(up)[0][1:])
            if "memory" in stages:
                yield from memory(up)
            if "click" in stages:
                yield from click(up, clicks)
            if "iteration" in stages:
                yield from iteration(up, rounds)
            if "map" in stages:
                yield from mapped(up)
            if "runs" in stages:
                yield from runs(up, folder, quick)
        finally:
            if up.process.poll() is None:
                up.end()


def machine() -> str:
    """What measured: processor, load, versions, commit."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    load = ", ".join(f"{load_average:.1f}" for load_average in os.getloadavg())
    return (
        f"{os.cpu_count()} cores of {name}, load {load}; Python {platform.python_version()}, Prefect "
        f"{version('prefect')}, torch {version('torch')}; commit {commit}"
    )


def main() -> None:
    """The command line."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(STAGES), help="stages, separated by commas")
    parser.add_argument("--quick", action="store_true", help="one round of each, and two rates of runs")
    given = parser.parse_args()
    stages = given.only.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}: choose among {', '.join(STAGES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    began, before = time.monotonic(), machine()
    table = Table("figure", "value", "which consists of", title="What operation costs", caption_justify="left")
    for row in measure(stages, given.quick):
        print(*row, sep="  ", file=sys.stderr, flush=True)
        table.add_row(*row)
    table.caption = f"{before}. Load at the end {os.getloadavg()[0]:.1f}, after {time.monotonic() - began:.0f} s."
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
