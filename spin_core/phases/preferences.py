"""Phase `preferences`: read and tokenise preference data for DPO: `python -m spin_core.phases.preferences JOB`.

Writes `pairs.parquet`, as phase `pairs` does.
"""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.config.model import ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.drops import list_drops
from spin_core.data.examples import ExampleBuilder
from spin_core.data.files.example_files import TOOLS
from spin_core.data.files.ids import numbers_of, sample
from spin_core.data.pairs import SCHEMA
from spin_core.data.preferences import SETTING, PreferenceReader, build_pairs, no_preference_left
from spin_core.data.sources import open_preferences
from spin_core.data.tokenizer import load_tokenizer, model_ends
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PreferencesJob
from spin_core.store.records import PairDataset

log = logging.getLogger("spin_core")


def run(job: PreferencesJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Read, tokenise, sample and write."""
    name = job.source.path
    reader = PreferenceReader(job.columns, name)
    parts = open_preferences(job.source, f"{SETTING}.source", job.columns)
    items = [preference for part in parts for preference in reader.read(part)]
    reader.check_columns()
    drops = reader.drops
    tokenizer = load_tokenizer(job.tokenizer.path, ModelConfig(trust_remote_code=job.trust_remote_code))
    renderer = Renderer(tokenizer, job.chat, model_ends(job.tokenizer.path))
    builder = ExampleBuilder(renderer, job.max_prompt_tokens, job.max_new_tokens)
    held_out = set(pq.read_table(job.prompts.path / "held_out.parquet")["id"].to_pylist())
    pairs, dropped = build_pairs(items, builder, held_out, progress)
    builder.remarks.log(name)
    drops += dropped
    if job.sample is not None:
        chosen = sample(numbers_of(pair["id"] for pair in pairs), job.sample, job.seed)
        drops["not-sampled"] += len(pairs) - len(chosen)
        pairs = [pairs[row] for row in chosen]
    if not pairs:
        raise no_preference_left(name, drops)
    schema = SCHEMA.append(TOOLS) if any(pair[TOOLS.name] for pair in pairs) else SCHEMA
    pq.write_table(pa.Table.from_pylist(pairs, schema), scratch / "pairs.parquet")
    log.info("%s: kept %d of %d preferences%s", name, len(pairs), reader.rows, list_drops(drops))
    if reader.unused:
        log.info("%s: columns without influence: %s", name, ", ".join(sorted(reader.unused)))
    return {"t": 0, "rows_in": reader.rows, "rows": len(pairs), "drops": dict(sorted((+drops).items())), "mix": {}}


if __name__ == "__main__":
    main(PreferencesJob, PairDataset, run)
