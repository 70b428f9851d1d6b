"""Phase `pairs`: D_t, the real and the generated response to each prompt, less what the player cannot learn from.

Writes `pairs.parquet`: this iteration's pairs in the order of the training prompts, then those that are carried over
from the previous iteration, in the same order. Both go through the same hygiene, and every pair that is left out is
counted under the first reason that applies. Where a prompt has several answers, each makes a pair, or one of those
that hygiene keeps does and the rest are counted as spare. Where the job brings θ_0's answers, each pair has its
prompt's in a column of its own.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.config.data import PairsConfig
from spin_core.data.looping import is_looping
from spin_core.data.sequences import token_ids_in
from spin_core.errors import DamagedArtifact
from spin_core.store.records import GenerationBatch

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

CURES = {
    "empty": "raise generate.temperature or train θ_0 longer, or set pairs.drop_empty to false",
    "looping": "raise generate.temperature, or set pairs.drop_looping to false",
    "identical": "raise generate.temperature: the opponent answers as the data do, and nothing is left to learn",
    "duplicate": "give more prompts, or set pairs.drop_duplicates to false",
    "cut": "raise generate.max_new_tokens, or set pairs.drop_cut to false",
    "no-initial": "θ_0 gave these prompts no answer: train it longer, or set train.loss to another than t-spin",
}
"""What to do when a reason has left no pair."""


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
    token_ids = zip(*(token_ids_in(pairs[name]) for name in ("prompt_ids", "real_ids", "generated_ids")), strict=True)
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
