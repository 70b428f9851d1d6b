"""Phase `generate`: the opponent answers the training prompts: `python -m spin_core.phases.generate JOB`."""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from spin_core.data.answer_statistics import answer_statistics
from spin_core.inference.shards import shard_name, work_folder
from spin_core.inference.tally import merge_timings
from spin_core.inference.worker import SCHEMA, Generation
from spin_core.inference.workers import helpers
from spin_core.runtime import devices as runtime_devices
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import GenerateJob
from spin_core.store.records import GenerationBatch

log = logging.getLogger("spin_core")


def run(job: GenerateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer every training prompt that no shard in `scratch` answers yet, with as many workers as are asked for."""
    speed = job.config.speed
    folder = work_folder(job)
    folder.mkdir(exist_ok=True)
    devices = torch.cuda.device_count() if job.model.device != "cpu" else 0
    each = job.config.vllm.speed.tensor_parallel if job.config.engine == "vllm" else 1
    environments = runtime_devices.environments(speed.workers, devices, each)
    if speed.workers > 1:
        ours, *theirs = environments
        os.environ |= ours
        torch.set_num_threads(int(ours.get("OMP_NUM_THREADS", torch.get_num_threads())))
    else:
        theirs = []
    with helpers(job, folder, theirs) as stop:
        generation = Generation(job, scratch, progress, idle=not speed.workers, on_stop=stop)
        generation.tally.look()
        while generation.shards.missing():
            generation.work()
            generation.tally.look()  # a damaged shard is missing again
    names = [shard_name(number) for number in range(generation.shards.count)]
    notes = merge_timings(folder, names, scratch / "log" / "timing.jsonl")
    shutil.rmtree(folder, ignore_errors=True)
    paths = [generation.shards.path(number) for number in range(generation.shards.count)]
    halved = [note["batch_size"] for note in notes if note.get("halved")]
    known = {"t": job.t, "opponent": job.opponent.digest, "smallest_batch": min(halved, default=None)}
    return {**known, **count(paths, job)}


def count(shards: Sequence[Path], job: GenerateJob) -> dict[str, Any]:
    """Answers, tokens, finish reasons and statistics over all shards."""
    columns = ["id", "response", "response_ids", "finish_reason"]
    answers = pa.concat_tables([pq.read_table(path) for path in shards]) if shards else SCHEMA.empty_table()
    found = answer_statistics(pq.read_table(job.prompts.path / "train.parquet", columns=columns), answers)
    reasons = found.generated.finish_reasons
    if len(answers) and reasons.get("length") == len(answers):
        log.warning(
            "none of the %d answers ended by itself: see that the model was trained to end its answers with the stop "
            "token, or raise generate.max_new_tokens",
            len(answers),
        )
    return {
        "opponents": {str(t): n for t, n in sorted(Counter(answers["opponent"].to_pylist()).items())},
        "rows": len(answers),
        "answers": job.config.answers,
        "shards": len(shards),
        "tokens": pc.sum(pc.list_value_length(answers["response_ids"])).as_py() or 0,
        "finish_reasons": reasons,
        "statistics": found,
    }


if __name__ == "__main__":
    main(GenerateJob, GenerationBatch, run)
