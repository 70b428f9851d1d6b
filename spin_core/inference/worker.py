"""A worker of phase `generate`: the opponent answers the training prompts, y' ~ p_θt(.|x), one shard at a time.

Each shard `shard-00000.parquet` has the columns of `SCHEMA`. One version fills a shard, and the answers are in the
order of the prompts. A prompt's random numbers come from its own id, so workers, shards, batches and restarts do not
change what is answered.
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

from spin_core.data.files.answer_files import SCHEMA
from spin_core.data.seeds import seed_of
from spin_core.data.sequences import read_token_ids
from spin_core.data.tokenizer import load_tokenizer
from spin_core.inference.answering import answer_requests, decode_answers, ends_of, requests_for
from spin_core.inference.engine import Answer, Engine
from spin_core.inference.factory import make_engine
from spin_core.inference.shard_loop import make_shards
from spin_core.inference.shards import Claim, Shards, shard_name, work_folder
from spin_core.inference.tally import Tally
from spin_core.runtime.progress import Progress
from spin_core.store import files
from spin_core.store.jobs import GenerateJob
from spin_core.store.records import ModelVersion

log = logging.getLogger("spin_core")


class GenerationWorker:
    """Works on a job together with any number of other workers: makes shards until none is missing."""

    def __init__(
        self,
        job: GenerateJob,
        scratch: Path,
        progress: Progress,
        *,
        idle: bool = False,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Read the prompts and plan the shards; loads no weights.

        Args:
            job: The job, the same for all its workers.
            scratch: Where finished shards appear.
            progress: Gets the progress of the whole job, and knows whether this process is asked to stop.
            idle: Make no shard here, but wait for other workers.
            on_stop: Is called when this process is asked to stop, before it finishes its shard.
        """
        path = job.prompts.path / "train.parquet"
        self.job, self.progress, self.idle, self.on_stop = job, progress, idle, on_stop
        self.ids: list[str] = pq.read_table(path, columns=["id"])["id"].to_pylist()
        (prompt_ids,) = read_token_ids(path, "prompt_ids")
        prompts = [prompt.tolist() for prompt in prompt_ids]
        self.answers = job.config.answers
        self.requests = requests_for(self.ids, prompts, job.seed, f"iteration {job.t}", self.answers)
        self.plans = plan_shards(self.ids, job)
        self.shards = Shards(scratch, work_folder(job), len(self.plans))
        progress.start(len(self.requests), "prompt" if self.answers == 1 else "answer")
        self.tally = Tally(self.shards, [self._ids_in(plan) for plan in self.plans], progress)
        self.tokenizer = load_tokenizer(job.opponent.path, job.model)
        self.ends = ends_of(job.prompts, self.tokenizer)
        self._version: ModelVersion | None = None
        self._engine: Engine | None = None
        self._full_batch = 0
        """Prompts at a time before memory ran out."""

    def run(self) -> None:
        """Make shards until all exist. Raises `Stopped` between two shards if SIGTERM arrived."""
        make_shards(self.shards, None if self.idle else self._make_shard, self._order, self._between_shards)

    def _order(self, number: int) -> tuple[bool, int]:
        """Shards of the version that is loaded come first, since loading another takes long."""
        return self.plans[number].version != self._version, number

    def _between_shards(self) -> None:
        self.tally.update()
        self.progress.check()

    def _make_shard(self, claim: Claim) -> None:
        plan = self.plans[claim.number]
        engine = self._engine_with(plan.version)
        self.tally.start_clock()
        started = time.monotonic()
        rows = self._rows_of(plan)
        answers = answer_requests(
            engine, [self.requests[row] for row in rows], functools.partial(self._report_progress, claim)
        )
        self._write_timing(claim, answers, engine, time.monotonic() - started)
        table = self._table(plan, rows, answers)
        if not self.shards.publish(claim.number, functools.partial(pq.write_table, table)):
            log.info("%s was published by another worker: this copy is dropped", shard_name(claim.number))

    def _report_progress(self, claim: Claim, items: int, tokens: int) -> None:
        claim.set_progress(items, tokens)
        if self.progress.stopping:  # this shard is finished first
            self.on_stop()
        else:
            self.tally.update(claim)

    def _rows_of(self, plan: "ShardPlan") -> list[int]:
        """The requests that a shard answers, as indices of `requests`: all answers to a prompt follow each other."""
        return [prompt * self.answers + number for prompt in plan.prompts for number in range(self.answers)]

    def _ids_in(self, plan: "ShardPlan") -> list[str]:
        return [self.ids[row // self.answers] for row in self._rows_of(plan)]

    def _table(self, plan: "ShardPlan", rows: Sequence[int], answers: Sequence[Answer]) -> pa.Table:
        columns = {
            "id": self._ids_in(plan),
            "answer": [row % self.answers for row in rows],
            "opponent": [plan.version.t] * len(rows),
            "response": decode_answers(self.tokenizer, [self.requests[row] for row in rows], answers, self.ends),
            "response_ids": [answer.response_ids for answer in answers],
            "finish_reason": [answer.finish_reason for answer in answers],
        }
        return pa.table(columns, schema=SCHEMA)

    def _write_timing(self, claim: Claim, answers: Sequence[Answer], engine: Engine, seconds: float) -> None:
        """Write a shard's timing next to the claims; `merge_timings` collects them."""
        tokens = sum(len(answer.response_ids) for answer in answers)
        timing = {
            "shard": shard_name(claim.number),
            "rows": len(answers),
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens/s": round(tokens / max(1e-9, seconds), 1),
            "batch_size": engine.batch_size,
            "halved": engine.batch_size < self._full_batch,
            "worker": f"{os.uname().nodename}:{os.getpid()}",
        }
        files.write_json(self.shards.folder / f"{timing['shard']}.json", timing)

    def _engine_with(self, version: ModelVersion) -> Engine:
        """The engine with this version loaded, and no other in memory."""
        if self._engine is None or self._version != version:
            self._engine = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._engine = make_engine(
                version.path, self.job.model, self.ends.ids, self.job.config, self.job.t, self.ends.strings
            )
            self._full_batch = self._engine.batch_size
            self._version = version
        return self._engine


@dataclass(frozen=True)
class ShardPlan:
    """What a shard holds: the answers of one version to these prompts."""

    version: ModelVersion
    prompts: list[int]
    """Indices of the job's prompts."""


def plan_shards(ids: Sequence[str], job: GenerateJob) -> list[ShardPlan]:
    """Divide a job's prompts into shards.

    Where several versions answer, the seed and a prompt's id choose one of them, each with the same probability.
    """
    versions = job.answerers or (job.opponent,)
    purpose = f"opponents of iteration {job.t}"
    prompts_by_version: list[list[int]] = [[] for _ in versions]
    for index, id in enumerate(ids):
        choice = seed_of(job.seed, purpose, id) % len(versions) if len(versions) > 1 else 0
        prompts_by_version[choice].append(index)
    size = job.config.shard_size
    return [
        ShardPlan(version, prompts[start : start + size])
        for version, prompts in zip(versions, prompts_by_version, strict=True)
        for start in range(0, len(prompts), size)
    ]
