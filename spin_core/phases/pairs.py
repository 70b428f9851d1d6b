"""Phase `pairs`: build the pairs of an iteration: `python -m spin_core.phases.pairs JOB`."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data.pairs import CURES, INITIAL, faults_of, initial_ids, joined, nearest_first
from spin_core.errors import DataError
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PairsJob
from spin_core.store.records import PairDataset

log = logging.getLogger("spin_core")


def run(job: PairsJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Join, filter, write."""
    prompts = pq.read_table(job.prompts.path / "train.parquet")
    batches = [job.generations, *([job.previous] if job.previous is not None else [])]
    rows_in = len(prompts) * sum(batch.answers for batch in batches)
    progress.start(rows_in, "pair")
    kept: list[pa.Table] = []
    drops: Counter[str] = Counter()
    seen: set[bytes] = set()
    for number, batch in enumerate(batches, start=1):
        pairs = joined(prompts, batch)
        if job.initial is not None:
            pairs = pairs.append_column(INITIAL, initial_ids(prompts, job.initial, batch.answers))
        if job.config.answers == "nearest-length":
            pairs = pairs.take(pa.array(nearest_first(pairs, batch.answers)))
        faults = list(faults_of(pairs, job.config, seen, batch.answers))
        drops.update(fault for fault in faults if fault is not None)
        kept.append(pairs.filter(pa.array([fault is None for fault in faults])))
        progress.tell(rows_in * number // len(batches))
    table = pa.concat_tables(kept)
    if not len(table):
        reason, count = drops.most_common(1)[0]
        raise DataError(f"no pair is left ({count} of {rows_in} dropped as {reason}): {CURES[reason]}")
    pq.write_table(table, scratch / "pairs.parquet")
    dropped = "".join(f"; {count:,} {reason}" for reason, count in sorted(drops.items()))
    log.info("kept %d of %d pairs%s", len(table), rows_in, dropped)
    return {
        "t": job.t,
        "rows_in": rows_in,
        "rows": len(table),
        "drops": dict(sorted(drops.items())),
        "mix": {str(batch.t): len(part) for batch, part in reversed([*zip(batches, kept, strict=True)]) if len(part)},
    }


if __name__ == "__main__":
    main(PairsJob, PairDataset, run)
