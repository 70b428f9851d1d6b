"""Phase `generate`: the opponent answers the training prompts, y' ~ p_θt(.|x), a shard at a time.

Writes `shard-00000.parquet`, …: id, answer (its number among those to this prompt), opponent (the version t that gave
it), response (text), response_ids, finish_reason. One version fills a shard, and within what a version answers the
prompts are in order. A shard is there whole or not at all, any number of workers may make them (`shards.py`), and a
prompt's random numbers come from its own id: neither workers nor shards nor batches nor a restart change what is said.
"""

import functools
import gc
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerBase

from spin_core import launch, store
from spin_core.batches import read_token_ids
from spin_core.chat import decode_responses
from spin_core.engine import Answer, Engine, Request, make_engine
from spin_core.errors import ModelError
from spin_core.hygiene import statistics
from spin_core.jobs import GenerateJob
from spin_core.models import load_tokenizer
from spin_core.phase import Progress, main
from spin_core.records import GenerationBatch, ModelVersion, PromptSet
from spin_core.shards import Claim, Shards, helpers, shard_name, work, work_folder
from spin_core.tally import Tally, merge_timings

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


def run(job: GenerateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer every training prompt that no shard in `scratch` answers yet, with as many workers as are asked for."""
    speed = job.config.speed
    folder = work_folder(job)
    folder.mkdir(exist_ok=True)
    devices = torch.cuda.device_count() if job.model.device != "cpu" else 0
    each = job.config.vllm.speed.tensor_parallel if job.config.engine == "vllm" else 1
    environments = launch.environments(speed.workers, devices, each)
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
        store.write_json(self.shards.folder / f"{timing['shard']}.json", {**timing, **speed, "worker": worker})
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


def stop_ids(prompts: PromptSet, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return prompts.stop_ids or (tokenizer.eos_token_id,)


def requests_for(
    ids: Sequence[str], prompt_ids: Sequence[Sequence[int]], seed: int, purpose: str, answers: int = 1
) -> list[Request]:
    """So many requests a prompt, side by side.

    A request's seed is a digest of the seed, the purpose, the prompt's id, how often that came before, and for the
    second answer and later ones its number: to ask for more answers leaves the first ones as they were.
    """
    seen: defaultdict[str, Iterator[int]] = defaultdict(lambda: iter(range(len(ids))))
    return [
        Request(prompt, seed_of(seed, purpose, id, before, *([number] if number else [])))
        for id, prompt in zip(ids, prompt_ids, strict=True)
        for before in (next(seen[id]),)
        for number in range(answers)
    ]


def seed_of(*parts: str | int) -> int:
    """64 bits of a digest, the same on every machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


def answers(
    engine: Engine,
    requests: Sequence[Request],
    note: Callable[[int, int], None] = lambda _rows, _tokens: None,
    keep: Callable[[int, Answer], None] = lambda _place, _answer: None,
) -> list[Answer]:
    """The answers in the requests' order. `note` is told answers and tokens so far, `keep` gets each as it comes.

    Where memory runs out, what is left is asked again with half the batch, and so are all later requests.
    """
    found: dict[int, Answer] = {}
    tokens = 0
    while len(found) < len(requests):
        left = [i for i in range(len(requests)) if i not in found]
        try:
            for i, answer in engine.answer([requests[i] for i in left]):
                found[left[i]] = answer
                keep(left[i], answer)
                tokens += len(answer.response_ids)
                note(len(found), tokens)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if engine.batch_size == 1:
                raise ModelError(
                    "there is not enough memory to answer one prompt at a time: lower prompts.max_prompt_tokens or "
                    "generate.max_new_tokens, set model.dtype to bfloat16, or take a larger device"
                ) from error
            engine.batch_size //= 2
            log.warning("out of memory: going on with %d prompts at a time", engine.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [found[i] for i in range(len(requests))]


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: on a GPU torch has an error for that, on a CPU only words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def texts(tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], found: Sequence[Answer]) -> list[str]:
    """Answers as people read them, without special tokens."""
    return decode_responses(
        tokenizer, [request.prompt_ids for request in requests], [answer.response_ids for answer in found]
    )


def count(shards: Sequence[Path], job: GenerateJob) -> dict[str, Any]:
    """Answers, tokens, finish reasons and statistics over all shards."""
    columns = ["id", "response", "response_ids", "finish_reason"]
    answers = pa.concat_tables([pq.read_table(path) for path in shards]) if shards else SCHEMA.empty_table()
    found = statistics(pq.read_table(job.prompts.path / "train.parquet", columns=columns), answers)
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
