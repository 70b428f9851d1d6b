"""The cost of the loop in addition to its phases: `python tests/benchmarks/loop.py [recipe] [--set a.b=c]…`.

Plays a recipe in a folder of its own, twice in one process group, and prints a table: the phases' own seconds, what
orchestration adds (Prefect's runs, artifacts, pages and plots: the flow's wall time less the time in phases), the start
of the temporary server, a second run that reuses everything, and the peak memory of each phase.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ITERATIONS = 2


def play(runs: Path, recipe: str, sets: list[str]) -> dict[str, float]:
    """Play in this process; returns seconds to the flow's first line, in the flow, and in phases."""
    from flows.server import local
    from spin_core.config.resolve import resolve
    from spin_core.preflight.prepare import prepare_run
    from spin_core.runtime import launch

    began = time.monotonic()
    local.prepare(runs, quiet=True)
    from flows import spin

    seconds = {"start": 0.0, "flow": 0.0, "phases": 0.0}
    run_phase, body = launch.run_phase, spin.run_locked

    def timed_phase(*args, **kwargs):
        start = time.monotonic()
        try:
            return run_phase(*args, **kwargs)
        finally:
            seconds["phases"] += time.monotonic() - start

    def timed_body(*args):
        start = time.monotonic()
        seconds["start"] = start - began
        try:
            return body(*args)
        finally:
            seconds["flow"] = time.monotonic() - start

    launch.run_phase, spin.run_locked = timed_phase, timed_body
    spin.run_local(prepare_run(resolve(recipe, sets=sets, iterations=ITERATIONS), runs, "bench"))
    return {**seconds, "all": time.monotonic() - began}


def main() -> None:
    """Play twice, each in a fresh interpreter, and print the table."""
    recipe, *sets = [word for word in sys.argv[1:] if word != "--set"] or ["demo"]
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--play", folder, recipe, *sets],
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                ).stdout.splitlines()[-1]
            )
            for _ in range(2)
        )
        table = Table("figure", "value", title=f"{recipe}, {ITERATIONS} iterations")
        table.add_row("first run, all", f"{first['all']:.1f} s")
        table.add_row("  start of Prefect and its temporary server", f"{first['start']:.1f} s")
        table.add_row("  in phases", f"{first['phases']:.1f} s")
        table.add_row("  orchestration, an iteration", f"{(first['flow'] - first['phases']) / ITERATIONS:.2f} s")
        table.add_row("second run, all reused", f"{second['all']:.1f} s")
        table.add_row("  of it the start of the server", f"{second['start']:.1f} s")
        peaks: dict[str, float] = {}
        for path in Path(folder).rglob("manifest.json"):
            manifest = json.loads(path.read_text("utf-8"))
            peak = manifest["usage"].get("peak_memory_mb", 0.0)
            peaks[path.parent.name] = max(peaks.get(path.parent.name, 0.0), peak)
        for name, peak in sorted(peaks.items(), key=lambda item: -item[1]):
            if peak:
                table.add_row(f"peak memory, {name}", f"{peak:,.0f} MB")
        Console(width=80).print(table)


if __name__ == "__main__":
    if "--play" in sys.argv:
        _, _, runs, recipe, *sets = sys.argv
        print(json.dumps(play(Path(runs), recipe, sets)))
    else:
        main()
