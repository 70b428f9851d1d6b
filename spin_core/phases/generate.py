"""Phase `generate`: the opponent answers the training prompts: `python -m spin_core.phases.generate JOB`."""

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spin_core.config.generate import devices_of_engine
from spin_core.data.answer_statistics import answer_statistics
from spin_core.data.files.answer_files import RowReader
from spin_core.data.sequences import token_counts
from spin_core.inference.shards import shard_name, work_folder
from spin_core.inference.tally import merge_timings
from spin_core.inference.worker import GenerationWorker
from spin_core.inference.workers import helpers
from spin_core.preflight import fit
from spin_core.runtime import devices
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.runtime.ranks import Ranks
from spin_core.store.jobs import GenerateJob
from spin_core.store.records import GenerationBatch

log = logging.getLogger("spin_core")


def run(job: GenerateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer every training prompt with the configured number of workers; shards in `scratch` are kept."""
    folder = work_folder(job)
    folder.mkdir(exist_ok=True)
    with helpers(job, folder, _environments_of_helpers(job)) as stop_helpers, _batch_size(job, scratch) as batch_size:
        idle = not job.config.speed.workers
        worker = GenerationWorker(job, scratch, progress, batch_size=batch_size, idle=idle, on_stop=stop_helpers)
        worker.tally.update()
        while worker.shards.missing():
            worker.run()
            worker.tally.update()  # removes damaged shards, which are missing then
    numbers = range(worker.shards.count)
    timings = merge_timings(folder, [shard_name(number) for number in numbers], scratch / "log" / "timing.jsonl")
    shutil.rmtree(folder, ignore_errors=True)
    halved_batches = [timing["batch_size"] for timing in timings if timing.get("halved")]
    return {
        "t": job.t,
        "opponent": job.opponent.digest,
        "smallest_batch": min(halved_batches, default=None),
        **_count_answers([worker.shards.path(number) for number in numbers], job),
    }


@contextlib.contextmanager
def _batch_size(job: GenerateJob, scratch: Path) -> Iterator[int | None]:
    """How many prompts at a time fit this machine, while an attempt at them runs; None where no engine is told."""
    if job.config.engine == "vllm" or not job.config.speed.workers:
        yield None
        return
    limit = fit.open_generation_limit(job, scratch)
    with limit.attempt(Ranks()):
        yield limit.size


def _environments_of_helpers(job: GenerateJob) -> Sequence[Mapping[str, str]]:
    """Divide this machine's devices among the workers: this process takes its share, the others' are returned."""
    workers = job.config.speed.workers
    if workers <= 1:
        return []
    count = torch.cuda.device_count() if job.model.device != "cpu" else 0
    each = devices_of_engine(job.config.engine, job.config.vllm)
    own, *others = devices.environments(workers, count, each)
    os.environ |= own
    torch.set_num_threads(int(own.get("OMP_NUM_THREADS", torch.get_num_threads())))
    return others


def _count_answers(shards: Sequence[Path], job: GenerateJob) -> dict[str, Any]:
    """The record's fields about the answers: tokens, finish reasons and statistics over all shards."""
    columns = ["id", "response", "response_ids", "finish_reason"]
    prompts = RowReader([job.prompts.path / "train.parquet"], columns)
    both_sides = answer_statistics(prompts.tables(), RowReader(shards, columns).tables(), len(prompts))
    opponents, tokens = Counter[int](), 0
    for table in RowReader(shards, ["opponent", "response_ids"]).tables():
        opponents.update(table["opponent"].to_pylist())
        tokens += int(token_counts(table["response_ids"]).sum())
    answers, finish_reasons = both_sides.generated.responses, both_sides.generated.finish_reasons
    if answers and finish_reasons.get("length") == answers:
        log.warning(
            "none of the %d answers ended by itself: check that the model was trained to end its answers with the stop "
            "token, or raise generate.max_new_tokens",
            answers,
        )
    return {
        "opponents": {str(t): count for t, count in sorted(opponents.items())},
        "rows": answers,
        "answers": job.config.answers,
        "shards": len(shards),
        "tokens": tokens,
        "finish_reasons": finish_reasons,
        "statistics": both_sides,
    }


if __name__ == "__main__":
    main(GenerateJob, GenerationBatch, run)
