"""What it costs that phases verify what they read: `python tests/benchmarks/verify.py RUNS LINEAGE`.

Verifies the inputs of every job of a complete lineage again, in the order in which its phases ran, and prints the CPU
seconds next to the seconds that the phases took then.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from spin_core.store.inputs import check_inputs
from spin_core.store.job_types import JOB_TYPES


def files(runs: Path, lineage: str, pattern: str) -> Iterator[Path]:
    """The files of a lineage, and of what it shares with others."""
    for folder in (runs / ".sft", runs / lineage, runs / ".scores"):
        yield from folder.rglob(pattern)


def main(runs: Path, lineage: str) -> None:
    """Verify, and print one line."""
    phases, cpu = 0, 0.0
    with tempfile.TemporaryDirectory() as notes:
        for path in sorted(files(runs, lineage, "jobs/*.json"), key=lambda path: path.stat().st_mtime):
            values = json.loads(path.read_text("utf-8"))
            if kind := JOB_TYPES.get(values.get("phase", "")):
                job = kind.model_validate(values)
                began = time.process_time()
                check_inputs(job, Path(notes, str(path.parent.relative_to(runs))))
                phases, cpu = phases + 1, cpu + time.process_time() - began
    manifests = [json.loads(path.read_text("utf-8")) for path in files(runs, lineage, "manifest.json")]
    seconds = sum((manifest["usage"] or {}).get("seconds", 0.0) for manifest in manifests)
    print(f"{phases} phases took {seconds:.0f} s, and verify their inputs in {cpu:.3f} CPU s ({cpu / seconds:.5%})")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2])
