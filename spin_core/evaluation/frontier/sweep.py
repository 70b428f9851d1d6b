"""The suite `frontier`: one model at several temperatures, on two axes.

A lower temperature makes nearly every sampler better on one axis and worse on the other. So a method that claims to
beat training by likelihood is compared with the whole curve of the model that it started from (arXiv 1811.02549).

    total_variation, invalid_mass    where p_data is known: from one pass of the network for all temperatures
    those of `text`                  elsewhere: of answers to the held-out prompts at each temperature

Writes `frontier.parquet`, one row for each temperature, metric and held-out prompt. The report has no scores: a curve
is not a column of the leaderboard.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import transformers

from spin_core.data.tokenizer import load_tokenizer
from spin_core.evaluation.exact import demo_distances
from spin_core.evaluation.frontier.axes import EXACT, FILE, SCHEMA
from spin_core.evaluation.frontier.text import text_values
from spin_core.evaluation.items import Values
from spin_core.evaluation.suites import FRONTIER
from spin_core.inference.answering import ends_of
from spin_core.models.loading import load_model
from spin_core.runtime.progress import Progress
from spin_core.store.evaluation_jobs import FrontierJob
from spin_core.store.tables import read_table


def measure(job: FrontierJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Measure the model at every temperature, write the file, and return the fields of the report."""
    held_out = read_table(job.prompts.path / "held_out.parquet")
    if job.generate is None:
        measured = _exact_values(job, held_out, progress)
    else:
        measured = text_values(job, held_out, scratch, progress)
    ids = held_out["id"].to_pylist()
    rows = [
        row
        for temperature, values in zip(job.config.temperatures, measured, strict=True)
        for row in _rows(temperature, ids, values)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), scratch / FILE)
    return {
        "model": job.player.digest,
        "suite": FRONTIER,
        "harness": f"transformers {transformers.__version__}",
        "scores": {},
    }


def _exact_values(job: FrontierJob, held_out: pa.Table, progress: Progress) -> list[Values]:
    """Both exact distances of each prompt, by name, for each temperature."""
    progress.start(len(job.config.temperatures), "temperature")
    tokenizer = load_tokenizer(job.player.path, job.model)
    by_temperature = demo_distances(
        load_model(job.player.path, job.model),
        tokenizer,
        held_out,
        end_id=ends_of(job.prompts, tokenizer).ids[0],
        temperatures=job.config.temperatures,
        batch_size=job.speed.batch_size,
    )
    progress.report(len(job.config.temperatures))
    return [{name: values[name] for name in EXACT} for values in by_temperature]


def _rows(temperature: float, ids: list[str], values: Values) -> Iterator[dict[str, Any]]:
    """The rows of one temperature, for the items that count."""
    for task, value_N in values.items():
        for item, value in zip(ids, value_N, strict=True):
            if not np.isnan(value):
                yield {"temperature": temperature, "task": task, "item": item, "value": float(value)}
