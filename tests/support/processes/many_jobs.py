"""Several jobs one after the other on the ranks of one torchrun, since starting ranks takes longer than they do.

Each is a training or a scoring.

`jobs.json` holds pairs of a job and the step at which it is to be stopped, or null.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from spin_core.errors import Stopped
from spin_core.phases import score, train
from spin_core.runtime import phase, progress, ranks
from spin_core.store.jobs import ScoreJob, TrainJob
from spin_core.store.records import ScoredPairs, TrainRun


class StopsAt(progress.Progress):
    """Progress of a job that is stopped in a step."""

    def __init__(self, step: int | None) -> None:
        super().__init__(out=sys.stderr, quiet=True)
        self.last, self.done = step, 0

    @property
    def stopping(self) -> bool:
        return self.done + 1 == self.last

    def show(self, done: int, **_metrics: float) -> None:
        self.done = done


def do_on_ranks(folder: Path, size: int, jobs: list[tuple[TrainJob | ScoreJob, int | None]]) -> None:
    """Run the jobs on this many ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "jobs.json"
    file.write_text(json.dumps([[job.model_dump_json(), stop] for job, stop in jobs]))
    meeting = ["--rdzv-id", "spin-tests", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *meeting, "--local-addr", "127.0.0.1",
         "--nproc-per-node", str(size), __file__, file],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]


def main() -> None:
    """What each rank does."""
    local = ranks.join(on_gpu=False)
    for text, stop in json.loads(Path(sys.argv[1]).read_text()):
        try:
            if json.loads(text)["phase"] == "score":
                phase.execute(ScoreJob.model_validate_json(text), ScoredPairs, score.run, StopsAt(stop))
            else:
                phase.execute(TrainJob.model_validate_json(text), TrainRun, train.run, StopsAt(stop))
        except Stopped:
            assert stop is not None
        local.wait()
    ranks.leave()
    # All is published. A thread of gloo's that is still ending would abort the interpreter's own end on a busy machine.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
