"""Kills at random instants: `make chaos`, or `python -m tests.benchmarks.chaos [--kills N] [--seed S] [--kinds A,B]`.

Lineages of every kind are made by `spin run` and by `spin up`, while one of their processes is killed again and again.
Each is continued until it is complete. Then its published folders must have the digests of an uninterrupted lineage,
and no process and no scratch folder may be left. Prints what was killed and the result. Exit status 1 if anything
differs or is left.

The seed decides what is killed, when and by which signal; where that hits a phase also depends on the machine.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.benchmarks.chaos import command_runs, processes, results, served_runs
from tests.benchmarks.chaos.command_runs import CommandRun, run_uninterrupted
from tests.benchmarks.chaos.kinds import KINDS
from tests.benchmarks.chaos.results import Result
from tests.benchmarks.chaos.served_runs import ServedFolder, ServedRun

COMMANDS = {
    "run": "spin run",
    "up": "spin up",
    "served": "spin run, served",
}
"""What makes lineages: the command line with a temporary server; a deployment; the command line with `spin up`."""


def main() -> int:
    """Kill, continue and compare; returns the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    with _folder(options.runs) as folder:
        served: list[ServedFolder] = []
        file = folder / "results.jsonl"
        reject_used_seed(folder, options.seed)
        try:
            _kill_until_enough(options, folder, file, served)
        finally:
            for each in served:
                if left := each.end():
                    results.append(file, Result("all", "spin up", "end", orphans=left))
            rows = results.read(file)
            print(f"\n{results.table(rows)}", flush=True)
            for row in rows:
                for fault in (*row.different, *row.orphans, *row.leftovers, *row.tracebacks):
                    print(f"{row.kind}, {row.command}, seed {row.seed}: {fault}")
    return 0 if rows and all(row.is_good for row in rows) else 1


def _stop(*_: object) -> None:
    """Handler of SIGTERM: the tables follow, and then the exit status is 143, as of a process that SIGTERM ends."""
    print("stopped: the tables are of the lineages that were complete", flush=True)
    sys.exit(128 + signal.SIGTERM)


def reject_used_seed(folder: Path, seed: int) -> None:
    """Exit with a line if the folder already has lineages of the seed, or their results."""
    has_results = any(row.seed.rpartition("-")[0] == str(seed) for row in results.read(folder / "results.jsonl"))
    if has_results or any(folder.glob(f"*-{seed}-[0-9]*")) or (folder / f"up-{seed}").exists():
        sys.exit(f"--runs {folder} already has lineages of seed {seed}: choose another --seed, or another folder")


def _kill_until_enough(options: argparse.Namespace, folder: Path, file: Path, served: list[ServedFolder]) -> None:
    """Make one lineage after the other until there were enough kills."""
    kinds, made, number = _kinds(options.kinds), 0, 0
    while made < options.kills:
        command = options.commands[number % len(options.commands)]
        kind = kinds[number // len(options.commands) % len(kinds)]
        result, began = Result(kind, COMMANDS[command], f"{options.seed}-{number}"), time.monotonic()
        if command != "run" and not served:
            served.append(ServedFolder(folder / f"up-{options.seed}"))
            served[0].start()
        _kill_one(options, folder, served, command, result, min(options.each, options.kills - made))
        results.append(file, result)
        made, number = made + len(result.kills), number + 1
        print(
            f"{kind:6} {result.command:17} seed {result.seed:6} {len(result.kills):3} kills, {made} of {options.kills} "
            f"{time.monotonic() - began:5.0f} s  {'ok' if result.is_good else 'FAILED'}",
            flush=True,
        )


def _kill_one(
    options: argparse.Namespace, folder: Path, served: list[ServedFolder], command: str, result: Result, kills: int
) -> None:
    """Make one lineage with up to so many kills."""
    kind = KINDS[result.kind]
    reference = run_uninterrupted(folder / f"whole-{result.kind}", kind)
    models, rng = reference.parents[1], Random(result.seed)
    name = f"{command}-{result.kind}-{result.seed}"
    if command == "up":
        run = ServedRun(served[0], name, kind, models)
        served_runs.run_killed(run, reference, result, rng, kills, options.within)
    else:
        own = CommandRun(folder / name, kind, models, served[0].runs if command == "served" else None)
        try:
            command_runs.run_killed(own, reference, result, rng, kills, options.within)
        finally:
            processes.send(sorted(processes.marked(own.mark)), signal.SIGKILL)


def _kinds(chosen: str) -> list[str]:
    """The kinds to make: those chosen, or all that can be made here."""
    if not chosen:
        return [name for name, kind in KINDS.items() if kind.is_installed()]
    names = chosen.split(",")
    if unknown := set(names) - set(KINDS):
        sys.exit(f"--kinds {', '.join(sorted(unknown))}: choose from {', '.join(KINDS)}")
    return names


@contextlib.contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    """The folder for all lineages: the chosen one, which is kept, or a temporary one."""
    if chosen:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="chaos-") as name:
            yield Path(name)


def _options() -> argparse.Namespace:
    kinds = "; ".join(f"{name}: {kind.about}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many, in total (200)")
    parser.add_argument("--each", type=int, default=10, help="how many a lineage gets at most (10)")
    parser.add_argument(
        "--within", type=float, default=25.0, metavar="SECONDS", help="the longest wait for a kill (25)"
    )
    parser.add_argument("--kinds", default="", metavar="A,B", help=f"default: all that are installed. {kinds}")
    parser.add_argument("--commands", default="run,up,served", metavar="A,B", help="of run, up, served (all)")
    parser.add_argument("--seed", type=int, default=1, help="decides what is killed and when (1)")
    parser.add_argument("--runs", type=Path, help="a folder that is kept, with results.jsonl; earlier results count")
    options = parser.parse_args()
    options.commands = options.commands.split(",")
    if set(options.commands) - set(COMMANDS):
        parser.error(f"--commands: choose from {', '.join(COMMANDS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
