"""A small model, prompts and a generation job, for tests of everything that answers prompts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.config.generate import GenerateConfig
from spin_core.phases.generate import run
from spin_core.runtime import phase
from spin_core.runtime.progress import Progress
from spin_core.store import identity
from spin_core.store.jobs import GenerateJob
from spin_core.store.records import GenerationBatch, PromptSet
from tests.support.lineages.small_jobs import CPU, token_ids, version_of

EOS, END_OF_TURN = 2, 30


def prompt_set(folder: Path, rows=20, stop_ids=(EOS, END_OF_TURN)) -> PromptSet:
    """Prompts of random tokens. The last one repeats the first, as when people gave it two responses."""
    prompts = token_ids(np.random.default_rng(0), rows - 1, 1, 12)
    ids = [f"{i:016x}" for i in range(rows - 1)]
    columns = {
        "id": [*ids, ids[0]],
        "prompt_ids": pa.array([*prompts, prompts[0]], pa.list_(pa.int32())),
        "response": ["said"] * rows,
        "response_ids": pa.array([[5, EOS]] * rows, pa.list_(pa.int32())),
        "finish_reason": ["stop"] * rows,
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "train.parquet")
    digest = identity.digest_folder(folder)[0]
    return PromptSet(
        path=folder, digest=digest, source="random", revision=None, rows=rows, held_out=0, drops={}, stop_ids=stop_ids
    )


def generate_job(output: Path, model: Path, prompts: PromptSet, t=0, seed=0, **config) -> GenerateJob:
    """A job that answers the prompts; keyword arguments are settings of `GenerateConfig`."""
    settings = GenerateConfig(**{"max_new_tokens": 24, "batch_size": 4, "shard_size": 6, **config})
    return GenerateJob(
        output=output, seed=seed, t=t, config=settings, model=CPU, opponent=version_of(model, t), prompts=prompts
    )


def run_generation(job: GenerateJob) -> GenerationBatch:
    """Run the phase in this process."""
    return phase.execute(job, GenerationBatch, run, Progress())


def rows_of(record: GenerationBatch) -> list[dict]:
    """All answers of a generation, in the order of its shards."""
    return [row for path in sorted(record.path.glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist()]
