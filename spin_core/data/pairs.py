"""D_t: the real and the generated response to each prompt, without those the player cannot learn from.

These are the steps of phase `pairs`. It writes this iteration's pairs in the order of the training prompts, then those
that are carried over from the previous iteration, in the same order. Both go through the same filters, and every pair
that is left out is counted under the first reason that applies.

Where a prompt has several answers, either each of them makes a pair, or one of those that the filters keep does and the
others are counted as spare. Where the job brings θ_0's answers, each pair has its prompt's in a column of its own.
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
from spin_core.data.repetition import is_looping
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
"""What to do if no pair is left, by the reason for which most pairs were dropped."""


def join_answers(prompts: pa.Table, batch: GenerationBatch) -> pa.Table:
    """Each prompt with each of its generated answers, as rows of `pairs.parquet`; a prompt's answers are consecutive.

    Where several prompts have the same id, the first of them gets the first answers to that id, and so on.

    Raises:
        DamagedArtifact: the answers are not to these prompts.
    """
    answers, row_of_answer = _answers_to(prompts, batch)
    matched = len(row_of_answer) - row_of_answer.count(None)
    if matched != len(row_of_answer) or matched != len(answers):
        raise DamagedArtifact(
            f"{batch.path} holds {len(answers)} answers, {matched} of them to the {len(prompts)} training prompts: "
            "remove it to generate again"
        )
    answers = answers.take(pa.array(row_of_answer, pa.int64()))
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


def initial_answers(prompts: pa.Table, initial: GenerationBatch, copies: int) -> pa.ChunkedArray:
    """θ_0's answers as token ids, `copies` to a prompt.

    Where θ_0 gave a prompt fewer answers, they are repeated in turn; where it gave none, the row is null.
    """
    answers, row_of_answer = _answers_to(prompts, initial)
    given = initial.answers
    rows = [row_of_answer[prompt * given + copy % given] for prompt in range(len(prompts)) for copy in range(copies)]
    return answers["response_ids"].take(pa.array(rows, pa.int64())).cast(INITIAL.type)


def nearest_length_first(pairs: pa.Table, answers: int) -> NDArray[np.int64]:
    """The order that puts, of each prompt's `answers` pairs, those first whose sides are nearest in tokens."""
    real, generated = (pc.list_value_length(pairs[name]).to_numpy() for name in ("real_ids", "generated_ids"))
    row = np.arange(len(pairs))
    order: NDArray[np.int64] = np.lexsort((row, np.abs(real - generated), row // answers))
    return order


def reasons_to_drop(pairs: pa.Table, config: PairsConfig, seen: set[bytes], answers: int) -> Iterator[str | None]:
    """For each pair the first reason to drop it, or None to keep it.

    Args:
        pairs: `answers` consecutive rows for each prompt.
        config: the rules. Where one pair of a prompt is enough, those after the first that is kept are spare.
        seen: digests of the pairs that came before. Those of pairs that are kept are added.
        answers: pairs of a prompt.
    """
    enough, kept = answers if config.answers == "all" else 1, 0
    texts = zip(pairs["real"].to_pylist(), pairs["generated"].to_pylist(), strict=True)
    token_ids = zip(*(token_ids_in(pairs[name]) for name in ("prompt_ids", "real_ids", "generated_ids")), strict=True)
    finishes = pairs["generated_finish"].to_pylist()
    has_initial = _has_initial_answer(pairs)
    rows = zip(texts, token_ids, finishes, has_initial, strict=True)
    for row, ((real, generated), (prompt_ids, real_ids, generated_ids), finish, is_answered) in enumerate(rows):
        if row % answers == 0:
            kept = 0
        if kept == enough:
            yield "spare"
        elif not is_answered:
            yield "no-initial"
        elif config.drop_empty and not (real.strip() and generated.strip()):
            yield "empty"
        elif config.drop_looping and is_looping(generated_ids.tolist()):
            yield "looping"
        elif config.drop_identical and np.array_equal(real_ids, generated_ids):
            yield "identical"
        elif config.drop_cut and finish == "length":
            yield "cut"
        else:
            parts = (prompt_ids, real_ids, generated_ids)
            digest = hashlib.sha256(b"|".join(part.tobytes() for part in parts)).digest()
            is_duplicate = config.drop_duplicates and digest in seen
            seen.add(digest)
            kept += not is_duplicate
            yield "duplicate" if is_duplicate else None


def _answers_to(prompts: pa.Table, batch: GenerationBatch) -> tuple[pa.Table, list[int | None]]:
    """A batch's answers, and for each prompt in turn the rows of its `batch.answers` answers; None for one it lacks.

    Answers are matched to prompts by id.
    """
    shards = sorted(batch.path.glob("shard-*.parquet"))
    answers = pa.concat_tables([pq.read_table(shard) for shard in shards]) if shards else prompts.slice(0, 0)
    rows_by_id: dict[str, deque[int]] = defaultdict(deque)
    for row, id in enumerate(answers["id"].to_pylist()):
        rows_by_id[id].append(row)
    ids = [id for id in prompts["id"].to_pylist() for _ in range(batch.answers)]
    return answers, [rows_by_id[id].popleft() if rows_by_id[id] else None for id in ids]


def _has_initial_answer(pairs: pa.Table) -> list[bool]:
    """Whether θ_0 answered each pair's prompt with at least one token. True where the job does not read its answers."""
    if INITIAL.name not in pairs.column_names:
        return [True] * len(pairs)
    return [bool(length) for length in pc.list_value_length(pairs[INITIAL.name]).to_pylist()]
