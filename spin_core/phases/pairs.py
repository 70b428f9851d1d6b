"""Phase `pairs`: build the pairs of an iteration: `python -m spin_core.phases.pairs JOB`.

Writes `pairs.parquet`.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data.drops import Drops, list_drops, nothing_left
from spin_core.data.pairs import CURES, INITIAL, initial_answers, join_answers, nearest_length_first, reasons_to_drop
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
    drops: Drops = Counter()
    seen: set[bytes] = set()
    for number, batch in enumerate(batches, start=1):
        pairs = join_answers(prompts, batch)
        if job.initial is not None:
            pairs = pairs.append_column(INITIAL, initial_answers(prompts, job.initial, batch.answers))
        if job.config.answers == "nearest-length":
            pairs = pairs.take(pa.array(nearest_length_first(pairs, batch.answers)))
        reasons = list(reasons_to_drop(pairs, job.config, seen, batch.answers))
        drops.update(reason for reason in reasons if reason is not None)
        kept.append(pairs.filter(pa.array([reason is None for reason in reasons])))
        progress.report(rows_in * number // len(batches))
    table = pa.concat_tables(kept)
    if not len(table):
        raise nothing_left("pair", drops, CURES)
    pq.write_table(table, scratch / "pairs.parquet")
    log.info("kept %d of %d pairs%s", len(table), rows_in, list_drops(drops))
    rows_by_t = reversed([(batch.t, len(pairs)) for batch, pairs in zip(batches, kept, strict=True)])
    return {
        "t": job.t,
        "rows_in": rows_in,
        "rows": len(table),
        "drops": dict(sorted(drops.items())),
        "mix": {str(t): rows for t, rows in rows_by_t if rows},
    }


if __name__ == "__main__":
    main(PairsJob, PairDataset, run)
