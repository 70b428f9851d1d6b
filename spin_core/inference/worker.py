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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spin_core.data.files.answer_files import SCHEMA, RowReader, id_digests, ids_in
from spin_core.data.files.digests import count_before
from spin_core.data.seeds import seed_of
from spin_core.data.sequences import Ints, token_ids_in
from spin_core.data.tokenizer import load_tokenizer
from spin_core.inference.answering import answer_requests, decode_answers, ends_of, requests_for
from spin_core.inference.engine import Answer, Engine, Request
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
        batch_size: int | None = None,
        idle: bool = False,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Read the prompts and plan the shards; loads no weights.

        Args:
            job: The job, the same for all its workers.
            scratch: Where finished shards appear.
            progress: Gets the progress of the whole job, and knows whether this process is asked to stop.
            batch_size: Prompts at a time on this machine; None for the job's own number. It is not put into the job,
                whose identity names the folder that all workers share.
            idle: Make no shard here, but wait for other workers.
            on_stop: Is called when this process is asked to stop, before it finishes its shard.
        """
        path = job.prompts.path / "train.parquet"
        self.job, self.progress, self.idle, self.on_stop = job, progress, idle, on_stop
        self._engine_config = job.config.model_copy(update={"batch_size": batch_size} if batch_size else {})
        self.prompts = RowReader([path], ["id", "prompt_ids"])
        self.answers = job.config.answers
        self.plans = plan_shards(ids_in([path]), job)
        self.came_before = count_before(id_digests([path]))
        """How often the id of each prompt came before."""
        self.shards = Shards(scratch, work_folder(job), len(self.plans))
        progress.start(len(self.prompts) * self.answers, "prompt" if self.answers == 1 else "answer")
        self.tally = Tally(self.shards, self._ids_in, progress)
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
        requests = self._requests_of(plan)
        answers = answer_requests(engine, requests, functools.partial(self._report_progress, claim))
        self._write_timing(claim, answers, engine, time.monotonic() - started)
        table = self._table(claim.number, requests, answers)
        if not self.shards.publish(claim.number, functools.partial(pq.write_table, table)):
            log.info("%s was published by another worker: this copy is dropped", shard_name(claim.number))

    def _report_progress(self, claim: Claim, items: int, tokens: int) -> None:
        claim.set_progress(items, tokens)
        if self.progress.stopping:  # this shard is finished first
            self.on_stop()
        else:
            self.tally.update(claim)

    def _requests_of(self, plan: "ShardPlan") -> list[Request]:
        """The requests that a shard answers: those of one prompt follow each other."""
        table = self.prompts.take(plan.prompts)
        return requests_for(
            table["id"].to_pylist(),
            [ids.tolist() for ids in token_ids_in(table["prompt_ids"])],
            self.job.seed,
            f"iteration {self.job.t}",
            self.answers,
            self.came_before[plan.prompts].tolist(),
        )

    def _ids_in(self, number: int) -> list[str]:
        """The ids of the prompts of a shard's answers."""
        ids = self.prompts.take(self.plans[number].prompts)["id"].to_pylist()
        return [id for id in ids for _ in range(self.answers)]

    def _table(self, number: int, requests: Sequence[Request], answers: Sequence[Answer]) -> pa.Table:
        columns = {
            "id": self._ids_in(number),
            "answer": [row % self.answers for row in range(len(requests))],
            "opponent": [self.plans[number].version.t] * len(requests),
            "response": decode_answers(self.tokenizer, requests, answers, self.ends),
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
                version.path, self.job.model, self.ends.ids, self._engine_config, self.job.t, self.ends.strings
            )
            self._full_batch = self._engine.batch_size
            self._version = version
        return self._engine


@dataclass(frozen=True)
class ShardPlan:
    """What a shard holds: the answers of one version to these prompts."""

    version: ModelVersion
    prompts: Ints
    """Indices of the job's prompts."""


def plan_shards(ids: Iterable[str], job: GenerateJob) -> list[ShardPlan]:
    """Divide a job's prompts into shards.

    Where several versions answer, the seed and a prompt's id choose one of them, each with the same probability.
    """
    versions = job.answerers or (job.opponent,)
    purpose, count = f"opponents of iteration {job.t}", len(versions)
    choices = np.fromiter((seed_of(job.seed, purpose, id) % count if count > 1 else 0 for id in ids), np.int64)
    size = job.config.shard_size
    return [
        ShardPlan(version, prompts[start : start + size])
        for number, version in enumerate(versions)
        for prompts in [np.flatnonzero(choices == number)]
        for start in range(0, len(prompts), size)
    ]
