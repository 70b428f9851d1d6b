"""Phase `pairs`: D_t, the real and the generated response to each prompt, less what the player cannot learn from.

Writes `pairs.parquet`: this iteration's pairs in the order of the training prompts, then those that are carried over
from the previous iteration, in the same order. Both go through the same hygiene, and every pair that is left out is
counted under the first reason that applies. Where a prompt has several answers, each makes a pair, or one of those
that hygiene keeps does and the rest are counted as spare. Where the job brings θ_0's answers, each pair has its
prompt's in a column of its own.
"""

import hashlib
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.config import PairsConfig
from spin_core.errors import DamagedArtifact, DataError
from spin_core.jobs import PairsJob
from spin_core.phase import Progress, main
from spin_core.records import GenerationBatch, PairDataset

log = logging.getLogger("spin_core")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("t", pa.int32()),
        ("prompt", pa.string()),
        ("messages", pa.string()),
        ("real", pa.string()),
        ("generated", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("real_ids", pa.list_(pa.int32())),
        ("generated_ids", pa.list_(pa.int32())),
        ("real_finish", pa.string()),
        ("generated_finish", pa.string()),
    ]
)

INITIAL = pa.field("initial_ids", pa.list_(pa.int32()))
"""θ_0's answer to the same prompt, where the objective reads it."""

PHRASE = 8
"""Tokens in a phrase, for `repeated_share`."""

LOOPING_SHARE = 0.5
"""A response loops if more than this share of its phrases occurred in it before."""

LOOPING_PHRASES = 24
"""Responses with fewer phrases than this are too short to tell."""

CURES = {
    "empty": "raise generate.temperature or train θ_0 longer, or set pairs.drop_empty to false",
    "looping": "raise generate.temperature, or set pairs.drop_looping to false",
    "identical": "raise generate.temperature: the opponent answers as the data do, and nothing is left to learn",
    "duplicate": "give more prompts, or set pairs.drop_duplicates to false",
    "cut": "raise generate.max_new_tokens, or set pairs.drop_cut to false",
    "no-initial": "θ_0 gave these prompts no answer: train it longer, or set train.loss to another than t-spin",
}
"""What to do when a reason has left no pair."""


def run(job: PairsJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Join, filter, write."""
    prompts = pq.read_table(job.prompts.path / "train.parquet")
    batches = [job.generations, *([job.previous] if job.previous is not None else [])]
    rows_in = len(prompts) * sum(batch.answers for batch in batches)
    progress.start(rows_in, "pair")
    kept: list[pa.Table] = []
    drops: Counter[str] = Counter()
    seen: set[bytes] = set()
    for number, batch in enumerate(batches, start=1):
        pairs = joined(prompts, batch)
        if job.initial is not None:
            pairs = pairs.append_column(INITIAL, initial_ids(prompts, job.initial, batch.answers))
        if job.config.answers == "nearest-length":
            pairs = pairs.take(pa.array(nearest_first(pairs, batch.answers)))
        faults = list(faults_of(pairs, job.config, seen, batch.answers))
        drops.update(fault for fault in faults if fault is not None)
        kept.append(pairs.filter(pa.array([fault is None for fault in faults])))
        progress.tell(rows_in * number // len(batches))
    table = pa.concat_tables(kept)
    if not len(table):
        reason, count = drops.most_common(1)[0]
        raise DataError(f"no pair is left ({count} of {rows_in} dropped as {reason}): {CURES[reason]}")
    pq.write_table(table, scratch / "pairs.parquet")
    dropped = "".join(f"; {count:,} {reason}" for reason, count in sorted(drops.items()))
    log.info("kept %d of %d pairs%s", len(table), rows_in, dropped)
    return {
        "t": job.t,
        "rows_in": rows_in,
        "rows": len(table),
        "drops": dict(sorted(drops.items())),
        "mix": {str(batch.t): len(part) for batch, part in reversed([*zip(batches, kept, strict=True)]) if len(part)},
    }


def joined(prompts: pa.Table, batch: GenerationBatch) -> pa.Table:
    """Each prompt with each of its generations, side by side.

    The first row of an id gets the first generations of that id, and so on. Raises `DamagedArtifact` if the
    generations are not for these prompts.
    """
    answers, places = answers_in(prompts, batch)
    found = len(places) - places.count(None)
    if found != len(places) or found != len(answers):
        raise DamagedArtifact(
            f"{batch.path} holds {len(answers)} answers, {found} of them to the {len(prompts)} training prompts: "
            "remove it to generate again"
        )
    answers = answers.take(pa.array(places, pa.int64()))
    prompts = prompts.take(pa.array(np.repeat(np.arange(len(prompts)), batch.answers)))
    columns = {
        "id": prompts["id"],
        "t": pa.repeat(pa.scalar(batch.t, pa.int32()), len(prompts)),
        "prompt": prompts["prompt"],
        "messages": prompts["messages"],
        "real": prompts["response"],
        "generated": answers["response"],
        "prompt_ids": prompts["prompt_ids"],
        "real_ids": prompts["response_ids"],
        "generated_ids": answers["response_ids"],
        "real_finish": prompts["finish_reason"],
        "generated_finish": answers["finish_reason"],
    }
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA)


def answers_in(prompts: pa.Table, batch: GenerationBatch) -> tuple[pa.Table, list[int | None]]:
    """A batch's answers, and which of them each prompt gets: `batch.answers` places a prompt, side by side."""
    shards = sorted(batch.path.glob("shard-*.parquet"))
    answers = pa.concat_tables([pq.read_table(shard) for shard in shards]) if shards else prompts.slice(0, 0)
    places: dict[str, deque[int]] = defaultdict(deque)
    for place, id in enumerate(answers["id"].to_pylist()):
        places[id].append(place)
    wanted = [id for id in prompts["id"].to_pylist() for _ in range(batch.answers)]
    return answers, [places[id].popleft() if places[id] else None for id in wanted]


def initial_ids(prompts: pa.Table, initial: GenerationBatch, copies: int) -> pa.ChunkedArray:
    """θ_0's answers as token ids, `copies` a prompt, in turn where it gave fewer; null where it gave none."""
    answers, found = answers_in(prompts, initial)
    given = initial.answers
    places = [found[row * given + copy % given] for row in range(len(prompts)) for copy in range(copies)]
    return answers["response_ids"].take(pa.array(places, pa.int64())).cast(INITIAL.type)


def nearest_first(pairs: pa.Table, answers: int) -> NDArray[np.int64]:
    """The order that puts those of a prompt's `answers` pairs first whose two sides are nearest in tokens."""
    real, generated = (pc.list_value_length(pairs[name]).to_numpy() for name in ("real_ids", "generated_ids"))
    row = np.arange(len(pairs))
    order: NDArray[np.int64] = np.lexsort((row, np.abs(real - generated), row // answers))
    return order


def faults_of(pairs: pa.Table, config: PairsConfig, seen: set[bytes], answers: int) -> Iterator[str | None]:
    """For each pair the first reason to drop it, or None, `answers` pairs a prompt.

    Digests of pairs that are kept are added to `seen`. Where one pair of a prompt is enough, those after it are spare.
    """
    enough, kept = answers if config.answers == "all" else 1, 0
    texts = zip(pairs["real"].to_pylist(), pairs["generated"].to_pylist(), strict=True)
    token_ids = zip(*(slices(pairs[name]) for name in ("prompt_ids", "real_ids", "generated_ids")), strict=True)
    finishes = pairs["generated_finish"].to_pylist()
    lengths = pc.list_value_length(pairs[INITIAL.name]).to_pylist() if INITIAL.name in pairs.column_names else finishes
    rows = zip(texts, token_ids, finishes, lengths, strict=True)
    for row, ((real, generated), (prompt, ours, theirs), finish, initial) in enumerate(rows):
        if row % answers == 0:
            kept = 0
        if kept == enough:
            yield "spare"
        elif not initial:
            yield "no-initial"
        elif config.drop_empty and not (real.strip() and generated.strip()):
            yield "empty"
        elif config.drop_looping and is_looping(theirs.tolist()):
            yield "looping"
        elif config.drop_identical and np.array_equal(ours, theirs):
            yield "identical"
        elif config.drop_cut and finish == "length":
            yield "cut"
        else:
            digest = hashlib.sha256(b"|".join(part.tobytes() for part in (prompt, ours, theirs))).digest()
            again = config.drop_duplicates and digest in seen
            seen.add(digest)
            kept += not again
            yield "duplicate" if again else None


def slices(column: pa.ChunkedArray) -> Iterator[NDArray[np.int32]]:
    """The token ids of each row, as views of the column."""
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        for begin, end in pairwise(offsets):
            yield values[begin:end]


def is_looping(ids: Sequence[int]) -> bool:
    """Whether a response repeats itself over and over."""
    return len(ids) - PHRASE + 1 >= LOOPING_PHRASES and repeated_share(ids) > LOOPING_SHARE


def repeated_share(ids: Sequence[int], phrase: int = PHRASE) -> float:
    """The share of a response's phrases of so many tokens that occurred in it before, from 0 to 1.

    This is seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319), with n = 8 instead of 4: on a character vocabulary,
    phrases of four tokens repeat in any long honest text. Text that goes round and round nears 1.
    """
    phrases = list(zip(*(ids[start:] for start in range(phrase)), strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


if __name__ == "__main__":
    main(PairsJob, PairDataset, run)
