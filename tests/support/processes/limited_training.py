"""Trains a model on random pairs with a limited address space: `python -m … MODEL FOLDER MEGABYTES`; 0 is no limit.

Prints the tokens in a pass by steps, and the losses, as JSON.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np

from spin_core.store.training_log import METRICS, read_rows
from tests.support.lineages.small_jobs import run_job, score_job, token_ids, train_job, version_of, write_pairs


def main(model: Path, folder: Path, megabytes: int) -> None:
    """Score the pairs without a limit, then train within what this process has and `megabytes` more."""
    rng = np.random.default_rng(0)
    pairs = write_pairs(
        folder / "pairs", *(token_ids(rng, 256, *lengths) for lengths in ((40, 60), (80, 128), (80, 128)))
    )
    start = version_of(model)
    scores = run_job(score_job(folder / "scores", start, pairs, micro_batch_tokens=2048))
    job = train_job(folder, start, pairs, scores, batch_size=64, learning_rate=1e-5)
    if megabytes:
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + megabytes * 2**20, resource.RLIM_INFINITY))
    record = run_job(job)
    losses = [row["loss"] for row in read_rows(record.path / METRICS)]
    print(json.dumps({"passes": record.micro_batch_tokens, "losses": losses}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
