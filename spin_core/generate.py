"""Phase `generate`: the opponent answers the training prompts, y' ~ p_θt(.|x), a shard at a time.

Writes `shard-00000.parquet`, …: id, response (text), response_ids, finish_reason, in the order of the prompts. A
shard is there whole or not at all, so a run that was killed goes on with the first one that is missing, and a
prompt's random numbers come from its own id, so neither shards nor batches nor a restart change what is said.
"""

import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerBase

from spin_core import store
from spin_core.batches import read_token_ids
from spin_core.chat import decode_responses
from spin_core.engine import Answer, Engine, Request, make_engine
from spin_core.errors import ModelError
from spin_core.hygiene import statistics
from spin_core.jobs import GenerateJob
from spin_core.models import load_tokenizer
from spin_core.phase import Progress, main
from spin_core.records import GenerationBatch, PromptSet

log = logging.getLogger("spin_core")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)


def run(job: GenerateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer every training prompt that no shard in `scratch` answers yet."""
    path = job.prompts.path / "train.parquet"
    ids: list[str] = pq.read_table(path, columns=["id"])["id"].to_pylist()
    (prompt_ids,) = read_token_ids(path, "prompt_ids")
    requests = requests_for(ids, [prompt.tolist() for prompt in prompt_ids], job.seed, f"iteration {job.t}")
    tokenizer = load_tokenizer(job.opponent.path, job.model)
    progress.start(len(ids), "prompt")
    engine: Engine | None = None
    watch: Stopwatch | None = None
    shards: list[Path] = []
    for start in range(0, len(ids), job.config.shard_size):
        rows = slice(start, min(start + job.config.shard_size, len(ids)))
        shards.append(scratch / f"shard-{len(shards):05d}.parquet")
        if not shards[-1].exists():
            if engine is None:
                stops = stop_ids(job.prompts, tokenizer)
                engine = make_engine(job.opponent.path, job.model, stops, job.config, job.t)
            watch = Stopwatch(start, progress)
            found = answers(engine, requests[rows], watch.note)
            write_shard(shards[-1], ids[rows], texts(tokenizer, requests[rows], found), found)
            watch.record(scratch / "log" / "timing.jsonl", shards[-1].stem, len(found))
        progress.tell(rows.stop, **({"tokens/s": watch.speed()} if watch else {}))
    return {"t": job.t, "opponent": job.opponent.digest, "rows": len(ids), "shards": len(shards), **count(shards, path)}


def stop_ids(prompts: PromptSet, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return prompts.stop_ids or (tokenizer.eos_token_id,)


def requests_for(ids: Sequence[str], prompt_ids: Sequence[Sequence[int]], seed: int, purpose: str) -> list[Request]:
    """One request a prompt. Its seed is a digest of the seed, the purpose, its id, and how often that came before."""
    seen: defaultdict[str, Iterator[int]] = defaultdict(lambda: iter(range(len(ids))))
    return [
        Request(prompt, seed_of(seed, purpose, id, next(seen[id]))) for id, prompt in zip(ids, prompt_ids, strict=True)
    ]


def seed_of(*parts: str | int) -> int:
    """64 bits of a digest, the same on every machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


def answers(
    engine: Engine, requests: Sequence[Request], note: Callable[[int, int], None] = lambda _rows, _tokens: None
) -> list[Answer]:
    """The answers in the requests' order. `note` is told answers and tokens so far.

    Where memory runs out, what is left is asked again with half the batch, and so are all later requests.
    """
    found: dict[int, Answer] = {}
    tokens = 0
    while len(found) < len(requests):
        left = [i for i in range(len(requests)) if i not in found]
        try:
            for i, answer in engine.answer([requests[i] for i in left]):
                found[left[i]] = answer
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


def write_shard(path: Path, ids: Sequence[str], responses: Sequence[str], found: Sequence[Answer]) -> None:
    """Write a shard so that it is on disk whole, or not there."""
    columns = [
        pa.array(ids),
        pa.array(responses),
        pa.array([answer.response_ids for answer in found], type=pa.list_(pa.int32())),
        pa.array([answer.finish_reason for answer in found]),
    ]
    partial = path.with_name(f".{path.name}")
    pq.write_table(pa.table(columns, schema=SCHEMA), partial)
    store.sync(partial)
    partial.replace(path)
    store.sync(path.parent)


def count(shards: Sequence[Path], prompts: Path) -> dict[str, Any]:
    """Tokens, finish reasons and statistics over all shards."""
    columns = ["id", "response", "response_ids", "finish_reason"]
    answers = pa.concat_tables([pq.read_table(path, columns=columns) for path in shards])
    found = statistics(pq.read_table(prompts, columns=columns), answers)
    tokens: int = pc.sum(pc.list_value_length(answers["response_ids"])).as_py() or 0
    return {"tokens": tokens, "finish_reasons": found.generated.finish_reasons, "statistics": found}


class Stopwatch:
    """Tokens a second in one shard, for those who watch and for `log/timing.jsonl`."""

    def __init__(self, before: int, progress: Progress) -> None:
        self.before, self.progress, self.started, self.tokens = before, progress, time.monotonic(), 0

    def note(self, rows: int, tokens: int) -> None:
        """Tell the progress within the shard, unless asked to stop: the shard is finished first."""
        self.tokens = tokens
        if not self.progress.stopping:
            self.progress.tell(self.before + rows, **{"tokens/s": self.speed()})

    def seconds(self) -> float:
        """Time since the shard began."""
        return time.monotonic() - self.started

    def speed(self) -> float:
        """Tokens a second since the shard began."""
        return round(self.tokens / max(1e-9, self.seconds()), 1)

    def record(self, path: Path, shard: str, rows: int) -> None:
        """Add the finished shard's line."""
        line = {"shard": shard, "rows": rows, "tokens": self.tokens, "seconds": round(self.seconds(), 3)}
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            print(json.dumps({**line, "tokens/s": self.speed()}), file=file)


if __name__ == "__main__":
    main(GenerateJob, GenerationBatch, run)
