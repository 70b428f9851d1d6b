"""Phase `pairs`: build the pairs of an iteration: `python -m spin_core.phases.pairs JOB`.

Writes `pairs.parquet`.
"""

import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.data.drops import Drops, list_drops, nothing_left
from spin_core.data.files.digests import DigestSet
from spin_core.data.files.example_files import GroupWriter
from spin_core.data.pairs import FIXES, AnsweredPrompts, nearest_length_first, reasons_to_drop, schema_of
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PairsJob
from spin_core.store.records import PairDataset

log = logging.getLogger("spin_core")


def run(job: PairsJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Join, filter, write."""
    batches = [job.generations, *([job.previous] if job.previous is not None else [])]
    rows_in = job.prompts.rows * sum(batch.answers for batch in batches)
    progress.start(rows_in, "pair")
    rows_by_t: list[tuple[int, int]] = []
    drops: Drops = Counter()
    seen = DigestSet()
    prompts = job.prompts.path / "train.parquet"
    schema = schema_of(prompts, with_initial=job.initial is not None)
    done = 0
    with contextlib.closing(GroupWriter(scratch / "pairs.parquet", schema)) as file:
        for batch in batches:
            kept = 0
            for pairs in AnsweredPrompts(prompts, batch, job.initial).parts():
                if job.config.answers == "nearest-length":
                    pairs = pairs.take(pa.array(nearest_length_first(pairs, batch.answers)))
                reasons = reasons_to_drop(pairs, job.config, seen, batch.answers)
                drops.update(reason for reason in reasons if reason is not None)
                file.add(pairs.filter(pa.array([reason is None for reason in reasons])))
                kept += reasons.count(None)
                done += len(pairs)
                progress.report(done)
            rows_by_t.append((batch.t, kept))
    rows = sum(kept for _, kept in rows_by_t)
    if not rows:
        raise nothing_left("pair", drops, FIXES)
    log.info("kept %d of %d pairs%s", rows, rows_in, list_drops(drops))
    return {
        "t": job.t,
        "rows_in": rows_in,
        "rows": rows,
        "drops": dict(sorted(drops.items())),
        "mix": {str(t): kept for t, kept in reversed(rows_by_t) if kept},
    }


if __name__ == "__main__":
    main(PairsJob, PairDataset, run)
