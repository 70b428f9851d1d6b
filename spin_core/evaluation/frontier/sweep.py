"""The suite `frontier`: one model at several temperatures, on two axes.

A lower temperature makes nearly every sampler better on one axis and worse on the other. So a method that claims to
beat training by likelihood is compared with the whole curve of the model that it started from (arXiv 1811.02549).

    total_variation, invalid_mass    the exact distances of `exact`, from one pass of the network for all temperatures

Writes `frontier.parquet`, one row for each temperature, metric and held-out prompt. The report has no scores: a curve
is not a column of the leaderboard.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import transformers

from spin_core.data.tokenizer import load_tokenizer
from spin_core.evaluation.exact import demo_distances
from spin_core.evaluation.frontier.axes import EXACT, FILE, SCHEMA
from spin_core.evaluation.suites import FRONTIER
from spin_core.inference.answering import ends_of
from spin_core.models.loading import load_model
from spin_core.runtime.progress import Progress
from spin_core.store.evaluation_jobs import FrontierJob
from spin_core.store.tables import read_table

Floats = npt.NDArray[np.float64]


def measure(job: FrontierJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Measure the model at every temperature, write the file, and return the fields of the report."""
    held_out = read_table(job.prompts.path / "held_out.parquet")
    temperatures = job.config.temperatures
    progress.start(len(temperatures), "temperature")
    tokenizer = load_tokenizer(job.player.path, job.model)
    by_temperature = demo_distances(
        load_model(job.player.path, job.model),
        tokenizer,
        held_out,
        end_id=ends_of(job.prompts, tokenizer).ids[0],
        temperatures=temperatures,
        batch_size=job.speed.batch_size,
    )
    progress.report(len(temperatures))
    ids = held_out["id"].to_pylist()
    rows = [
        row
        for temperature, values in zip(temperatures, by_temperature, strict=True)
        for row in _rows(temperature, ids, {name: values[name] for name in EXACT})
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), scratch / FILE)
    return {
        "model": job.player.digest,
        "suite": FRONTIER,
        "harness": f"transformers {transformers.__version__}",
        "scores": {},
    }


def _rows(temperature: float, ids: list[str], values: Mapping[str, Floats]) -> Iterator[dict[str, Any]]:
    """The rows of one temperature."""
    for task, value_N in values.items():
        for item, value in zip(ids, value_N, strict=True):
            yield {"temperature": temperature, "task": task, "item": item, "value": float(value)}
