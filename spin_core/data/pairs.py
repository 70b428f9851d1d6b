"""D_t: the real and the generated response to each prompt, without those the player cannot learn from.

These are the steps of phase `pairs`. It writes this iteration's pairs in the order of the training prompts, then those
that are carried over from the previous iteration, in the same order. Both go through the same filters, and every pair
that is left out is counted under the first reason that applies.

Where a prompt has several answers, either each of them makes a pair, or one of those that the filters keep does and the
others are counted as spare. Where the job brings θ_0's answers, each pair has its prompt's in a column of its own.
Where prompts have tools, each pair has their schemas.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.config.data import PairsConfig
from spin_core.data.files.answer_files import RowReader, id_digests, shards_in
from spin_core.data.files.digests import DigestSet, digests_of, rows_by_id
from spin_core.data.files.example_files import SCHEMA as PROMPTS
from spin_core.data.files.example_files import TOOLS
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

FIXES = {
    "empty": "raise generate.temperature or train θ_0 longer, or set pairs.drop_empty to false",
    "looping": "raise generate.temperature, or set pairs.drop_looping to false",
    "identical": "raise generate.temperature: the opponent answers as the data do, and nothing is left to learn",
    "duplicate": "give more prompts, or set pairs.drop_duplicates to false",
    "cut": "raise generate.max_new_tokens, or set pairs.drop_cut to false",
    "no-initial": "θ_0 gave these prompts no answer: train it longer, or set train.loss to another than t-spin",
}
"""What to do if no pair is left, by the reason for which most pairs were dropped."""


def schema_of(prompts: Path, *, with_initial: bool) -> pa.Schema:
    """The columns of the pairs of a file of prompts; `with_initial` adds θ_0's answers."""
    schema = SCHEMA.append(TOOLS) if _has_tools(prompts) else SCHEMA
    return schema.append(INITIAL) if with_initial else schema


def _has_tools(prompts: Path) -> bool:
    return TOOLS.name in pq.read_schema(prompts).names


class AnsweredPrompts:
    """The training prompts with the answers of one generation, or of two, joined a part at a time."""

    def __init__(self, prompts: Path, batch: GenerationBatch, initial: GenerationBatch | None = None) -> None:
        """Match answers to prompts by id.

        Where several prompts have the same id, the first of them gets the first answers to that id, and so on.

        Args:
            prompts: the file of the training prompts.
            batch: the opponent's answers.
            initial: θ_0's answers, where the objective reads them.

        Raises:
            DamagedArtifact: the answers are not to these prompts.
        """
        self._prompts, self._batch = prompts, batch
        shards = shards_in(batch.path)
        self._answers = RowReader(shards, ["response", "response_ids", "finish_reason"])
        ids = id_digests([prompts])
        self._rows = rows_by_id(ids, id_digests(shards), batch.answers)
        matched = int((self._rows >= 0).sum())
        if matched != self._rows.size or matched != len(self._answers):
            raise DamagedArtifact(
                f"{batch.path} holds {len(self._answers)} answers, {matched} of them to the {len(ids)} training "
                "prompts: remove it to generate again"
            )
        self._initial, self._initial_rows = None, np.zeros((0, 0), np.int64)
        if initial is not None:
            shards = shards_in(initial.path)
            self._initial = RowReader(shards, ["response_ids"])
            rows = rows_by_id(ids, id_digests(shards), initial.answers)
            # Where θ_0 gave a prompt fewer answers, they are repeated in turn.
            self._initial_rows = rows[:, np.arange(batch.answers) % initial.answers]

    def parts(self) -> Iterator[pa.Table]:
        """Each prompt with each of its answers, as rows of `pairs.parquet`; a prompt's answers are consecutive."""
        done = 0
        columns = [*PROMPTS.names, *([TOOLS.name] if _has_tools(self._prompts) else [])]
        for prompts in RowReader([self._prompts], columns).tables():
            yield self._join(prompts, slice(done, done + len(prompts)))
            done += len(prompts)

    def _join(self, prompts: pa.Table, which: slice) -> pa.Table:
        """A part of the prompts with their answers."""
        batch, count = self._batch, len(prompts)
        answers = self._answers.take(self._rows[which].reshape(-1))
        prompts = prompts.take(pa.array(np.repeat(np.arange(count), batch.answers)))
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
        pairs = pa.table(columns).select(SCHEMA.names).cast(SCHEMA)
        if TOOLS.name in prompts.column_names:
            pairs = pairs.append_column(TOOLS, prompts[TOOLS.name])
        if self._initial is None:
            return pairs
        initial = self._initial.take(self._initial_rows[which].reshape(-1))
        return pairs.append_column(INITIAL, initial["response_ids"].cast(INITIAL.type))


def nearest_length_first(pairs: pa.Table, answers: int) -> NDArray[np.int64]:
    """The order that puts, of each prompt's `answers` pairs, those first whose sides are nearest in tokens."""
    real, generated = (pc.list_value_length(pairs[name]).to_numpy() for name in ("real_ids", "generated_ids"))
    row = np.arange(len(pairs))
    order: NDArray[np.int64] = np.lexsort((row, np.abs(real - generated), row // answers))
    return order


def reasons_to_drop(pairs: pa.Table, config: PairsConfig, seen: DigestSet, answers: int) -> list[str | None]:
    """For each pair the first reason to drop it, or None to keep it.

    Args:
        pairs: `answers` consecutive rows for each prompt.
        config: the rules. Where one pair of a prompt is enough, those after the first that is kept are spare.
        seen: digests of the pairs that came before. Those of pairs that are kept are added.
        answers: pairs of a prompt.
    """
    enough, kept = answers if config.answers == "all" else 1, 0
    names = ("prompt_ids", "real_ids", "generated_ids")
    digests = digests_of(
        b"|".join(part.tobytes() for part in parts)
        for parts in zip(*(token_ids_in(pairs[name]) for name in names), strict=True)
    )
    was_seen = seen.contains(digests).tolist()
    rows = zip(
        _is_empty(pairs),
        token_ids_in(pairs["real_ids"]),
        token_ids_in(pairs["generated_ids"]),
        pairs["generated_finish"].to_pylist(),
        _has_initial_answer(pairs),
        digests.tolist(),
        strict=True,
    )
    reasons: list[str | None] = []
    seen_here: set[int] = set()
    for row, (is_empty, real_ids, generated_ids, finish, is_answered, digest) in enumerate(rows):
        if row % answers == 0:
            kept = 0
        reason = None
        if kept == enough:
            reason = "spare"
        elif not is_answered:
            reason = "no-initial"
        elif config.drop_empty and is_empty:
            reason = "empty"
        elif config.drop_looping and is_looping(generated_ids.tolist()):
            reason = "looping"
        elif config.drop_identical and np.array_equal(real_ids, generated_ids):
            reason = "identical"
        elif config.drop_cut and finish == "length":
            reason = "cut"
        elif config.drop_duplicates and (was_seen[row] or digest in seen_here):
            reason = "duplicate"
        else:
            seen_here.add(digest)
            kept += 1
        reasons.append(reason)
    seen.add(np.fromiter(seen_here, np.uint64, len(seen_here)))
    return reasons


def _is_empty(pairs: pa.Table) -> list[bool]:
    """Whether one of a pair's texts has nothing but white space."""
    texts = zip(pairs["real"].to_pylist(), pairs["generated"].to_pylist(), strict=True)
    return [not (real.strip() and generated.strip()) for real, generated in texts]


def _has_initial_answer(pairs: pa.Table) -> list[bool]:
    """Whether θ_0 answered each pair's prompt with at least one token. True where the job does not read its answers."""
    if INITIAL.name not in pairs.column_names:
        return [True] * len(pairs)
    return [bool(length) for length in pc.list_value_length(pairs[INITIAL.name]).to_pylist()]
