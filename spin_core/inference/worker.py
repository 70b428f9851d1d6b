"""Phase `generate`: the opponent answers the training prompts, y' ~ p_θt(.|x), a shard at a time.

Writes `shard-00000.parquet`, …: id, answer (its number among those to this prompt), opponent (the version t that gave
it), response (text), response_ids, finish_reason. One version fills a shard, and within what a version answers the
prompts are in order. A shard is there whole or not at all, any number of workers may make them (`shards.py`), and a
prompt's random numbers come from its own id: neither workers nor shards nor batches nor a restart change what is said.
"""

import functools
import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spin_core.data.seeds import seed_of
from spin_core.data.sequences import read_token_ids
from spin_core.data.tokenizer import load_tokenizer
from spin_core.inference.answering import answers, requests_for, stop_ids, texts
from spin_core.inference.engine import Engine
from spin_core.inference.factory import make_engine
from spin_core.inference.shards import Claim, Shards, shard_name, work, work_folder
from spin_core.inference.tally import Tally
from spin_core.runtime.progress import Progress
from spin_core.store import files
from spin_core.store.jobs import GenerateJob
from spin_core.store.records import ModelVersion

log = logging.getLogger("spin_core")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("answer", pa.int32()),
        ("opponent", pa.int32()),
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Part:
    """What one shard holds: the answers of one version to these prompts."""

    version: ModelVersion
    prompts: list[int]


def parts(ids: Sequence[str], job: GenerateJob) -> list[Part]:
    """The shards of a job. Who answers a prompt, where several may, is its seed's choice, each as likely."""
    versions = job.answerers or (job.opponent,)
    purpose = f"opponents of iteration {job.t}"
    chosen: list[list[int]] = [[] for _ in versions]
    for place, id in enumerate(ids):
        chosen[seed_of(job.seed, purpose, id) % len(versions) if len(versions) > 1 else 0].append(place)
    size = job.config.shard_size
    return [
        Part(version, prompts[start : start + size])
        for version, prompts in zip(versions, chosen, strict=True)
        for start in range(0, len(prompts), size)
    ]


class Generation:
    """A job in the hands of one of its workers: what each shard holds, and the engine that answers."""

    def __init__(
        self,
        job: GenerateJob,
        scratch: Path,
        progress: Progress,
        *,
        idle: bool = False,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """`idle` leaves all shards to other workers; `on_stop` is called when this one is asked to stop."""
        path = job.prompts.path / "train.parquet"
        self.job, self.progress, self.idle, self.on_stop = job, progress, idle, on_stop
        self.ids: list[str] = pq.read_table(path, columns=["id"])["id"].to_pylist()
        (prompt_ids,) = read_token_ids(path, "prompt_ids")
        prompts = [prompt.tolist() for prompt in prompt_ids]
        self.requests = requests_for(self.ids, prompts, job.seed, f"iteration {job.t}", job.config.answers)
        progress.start(len(self.requests), "prompt" if job.config.answers == 1 else "answer")
        self.parts = parts(self.ids, job)
        self.shards = Shards(scratch, work_folder(job), len(self.parts))
        answers = job.config.answers
        self.tally = Tally(
            self.shards, [[self.ids[i] for i in part.prompts for _ in range(answers)] for part in self.parts], progress
        )
        self.tokenizer = load_tokenizer(job.opponent.path, job.model)
        self.version: ModelVersion | None = None
        self.engine: Engine | None = None
        self.full_batch = 0
        """Prompts at a time, before memory runs out."""

    def work(self) -> None:
        """Do shards until all are there, first those of the version that is loaded."""
        prefer = lambda number: (self.parts[number].version != self.version, number)  # noqa: E731
        work(self.shards, None if self.idle else self.do, prefer, self.tick)

    def do(self, claim: Claim) -> None:
        """Answer a shard."""
        part, answers_each = self.parts[claim.number], self.job.config.answers
        engine = self.engine_of(part.version)
        self.tally.begin()
        rows = [i * answers_each + k for i in part.prompts for k in range(answers_each)]
        requests = [self.requests[row] for row in rows]
        began = time.monotonic()

        def note(items: int, tokens: int) -> None:
            claim.note(items, tokens)
            if self.progress.stopping:  # this shard is finished first
                self.on_stop()
            else:
                self.tally.look(claim)

        found = answers(engine, requests, note)
        columns = {
            "id": [self.ids[row // answers_each] for row in rows],
            "answer": [row % answers_each for row in rows],
            "opponent": [part.version.t] * len(rows),
            "response": texts(self.tokenizer, requests, found),
            "response_ids": [answer.response_ids for answer in found],
            "finish_reason": [answer.finish_reason for answer in found],
        }
        table = pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
        tokens, seconds = sum(len(answer.response_ids) for answer in found), time.monotonic() - began
        timing = {"shard": shard_name(claim.number), "rows": len(found), "tokens": tokens, "seconds": round(seconds, 3)}
        batch = {"batch_size": engine.batch_size, "halved": engine.batch_size < self.full_batch}
        speed = {"tokens/s": round(tokens / max(1e-9, seconds), 1), **batch}
        worker = f"{os.uname().nodename}:{os.getpid()}"
        files.write_json(self.shards.folder / f"{timing['shard']}.json", {**timing, **speed, "worker": worker})
        if not self.shards.publish(claim.number, functools.partial(pq.write_table, table)):
            log.info("%s was published by another worker: ours is not needed", timing["shard"])

    def engine_of(self, version: ModelVersion) -> Engine:
        """The engine with this version loaded, and no other."""
        if self.engine is None or self.version != version:
            self.engine = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            stops = stop_ids(self.job.prompts, self.tokenizer)
            self.engine = make_engine(version.path, self.job.model, stops, self.job.config, self.job.t)
            self.full_batch = self.engine.batch_size
            self.version = version
        return self.engine

    def tick(self) -> None:
        """Between shards: tell how far the set is. Raises `Stopped` if SIGTERM arrived."""
        self.tally.look()
        self.progress.check()
