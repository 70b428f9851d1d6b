"""Phase `preferences`: tokenise preference data for DPO: `python -m spin_core.phases.preferences JOB`."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data import prompts
from spin_core.data.chat import Renderer
from spin_core.data.pairs import SCHEMA
from spin_core.data.preferences import SETTING, as_prompts, preferences, refuse_empty, tokenised
from spin_core.data.sources import preference_rows
from spin_core.data.tokenizer import load_tokenizer
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PreferencesJob
from spin_core.store.records import PairDataset

log = logging.getLogger("spin_core")


def run(job: PreferencesJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Read, tokenise and write."""
    name = job.source.path
    rows = preference_rows(job.source, f"{SETTING}.source")
    found, drops = preferences(rows, job.columns, name)
    renderer = Renderer(load_tokenizer(job.tokenizer.path, prompts.trust(as_prompts(job))), job.chat)
    pairs, more = tokenised(found, job, renderer, progress)
    drops += more
    if job.sample is not None and len(pairs) > job.sample:
        drops["not-sampled"] += len(pairs) - job.sample
        ranked = sorted(range(len(pairs)), key=lambda place: prompts.order(pairs[place]["id"], job.seed))
        pairs = [pairs[place] for place in sorted(ranked[: job.sample])]
    if not pairs:
        refuse_empty(name, drops)
    pq.write_table(pa.Table.from_pylist(pairs, SCHEMA), scratch / "pairs.parquet")
    log.info("%s: kept %d of %d preferences%s", name, len(pairs), len(rows), prompts.listed(drops))
    return {"t": 0, "rows_in": len(rows), "rows": len(pairs), "drops": dict(sorted((+drops).items())), "mix": {}}


if __name__ == "__main__":
    main(PreferencesJob, PairDataset, run)
