"""Prompts with the answers of people and models, read from the published files of a lineage.

There are two parts. Every version answers the held-out prompts when it is evaluated; the opponent of every iteration
answers the training prompts. Nothing here runs a model.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spin_core.data.files.digests import digests_of, rows_by_id
from spin_core.data.repetition import is_looping
from spin_core.data.sequences import token_ids_in
from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.lineage.lineage import Lineage
from spin_core.store import identity
from spin_core.store.tables import read_table

Part = Literal["held-out", "train"]

PROMPTS: dict[Part, str] = {"held-out": "held-out prompt", "train": "training prompt"}
"""The name of a part's prompts in messages."""

Sort = Literal["length", "margin", "random"]

_Ids = NDArray[np.int32]


class Turn(NamedTuple):
    """A turn of a prompt. Plain text has no role."""

    role: str
    content: str


@dataclass(frozen=True)
class Response:
    """The response of a person or a model."""

    name: str
    """`human`, `θ_2`, or `θ_1 in iteration 2` if another version than the iteration's own answered."""
    t: int | None
    """The iteration for a training prompt, the version for a held-out one; None for a person."""
    text: str
    tokens: int
    finish_reason: str
    marks: tuple[str, ...]
    """Faults and properties: `cut`, `empty`, `looping`, or `same` (the human response, token for token)."""
    margin: float | None = None
    """The reward margin in nats, without beta; None if it was not scored.

    By how much more than the opponent the player that was trained against this answer prefers the human response.
    """


@dataclass(frozen=True)
class Sample:
    """A prompt with all responses to it."""

    number: int
    """The number of the prompt, from 1."""
    id: str
    turns: tuple[Turn, ...]
    real: Response
    answers: tuple[Response, ...]

    def as_json(self) -> dict[str, Any]:
        """The sample as JSON values."""
        return asdict(self) | {"turns": [turn._asdict() for turn in self.turns]}


class Column(NamedTuple):
    """The responses in a file, as columns."""

    texts: list[str]
    ids: list[_Ids]
    finish_reasons: list[str]


@dataclass(frozen=True)
class Version:
    """The answers of one version or iteration."""

    t: int
    name: str
    answers: Column
    names: list[str]
    """The version that gave each answer."""
    margins: list[float | None]
    """The margin of each answer."""
    rows: list[list[int]]
    """The rows of each prompt's answers."""


@dataclass(frozen=True)
class Samples:
    """The samples of one part of a lineage, each built when it is asked for."""

    lineage: str
    part: Part
    ids: list[str]
    turns: list[tuple[Turn, ...]]
    real: Column
    versions: list[Version]

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, index: int) -> Sample:
        """The prompt at an index, from 0, with its responses."""
        answers = tuple(
            response(version.names[row], version.t, version.answers, row, self.real.ids[index], version.margins[row])
            for version, row in self._rows(index)
        )
        real = response("human", None, self.real, index)
        return Sample(index + 1, self.ids[index], self.turns[index], real, answers)

    def select(self, *, find: str = "", sort: Sort | None = None, limit: int | None = None) -> list[int]:
        """The indices of the prompts that match, in the order asked for.

        Args:
            find: A text that must occur in the prompt or in a response, in upper or lower case.
            sort: By longest answer, by lowest margin, or shuffled (the same way every time); None keeps the order.
            limit: At most this many indices.

        Raises:
            ConfigError: Nothing matches, or no answer has a margin to sort by.
        """
        indices = [index for index in range(len(self)) if self._holds(index, find.casefold())]
        if not indices:
            raise ConfigError(
                f"no {PROMPTS[self.part]} of lineage {self.lineage}, and no response to one, contains {find!r}: "
                "search for another text"
            )
        if sort == "random":
            indices.sort(key=lambda index: hashlib.sha256(f"{index}:{self.ids[index]}".encode()).digest())
        elif sort == "length":
            indices.sort(key=lambda index: -max((len(v.answers.ids[row]) for v, row in self._rows(index)), default=0))
        elif sort == "margin":
            if all(margin is None for version in self.versions for margin in version.margins):
                raise ConfigError(
                    f"no answer to a {PROMPTS[self.part]} has a margin yet, since no player was scored on it: "
                    "leave out --sort margin, or run one more iteration"
                )
            indices.sort(key=self._lowest)
        return indices[:limit]

    def _rows(self, index: int) -> Iterator[tuple[Version, int]]:
        return ((version, row) for version in self.versions for row in version.rows[index])

    def _lowest(self, index: int) -> float:
        margins = (version.margins[row] for version, row in self._rows(index))
        return min((margin for margin in margins if margin is not None), default=np.inf)

    def _holds(self, index: int, text: str) -> bool:
        answers = (version.answers.texts[row] for version, row in self._rows(index))
        turns = (turn.content for turn in self.turns[index])
        return not text or any(text in candidate.casefold() for candidate in (*turns, self.real.texts[index], *answers))


def response(
    name: str, t: int | None, column: Column, row: int, real: _Ids | None = None, margin: float | None = None
) -> Response:
    """One response of a column, with its marks."""
    text, ids, finish_reason = column.texts[row], column.ids[row], column.finish_reasons[row]
    conditions = {
        "cut": finish_reason == "length",
        "empty": not text.strip(),
        "looping": is_looping(ids.tolist()),
        "same": real is not None and np.array_equal(ids, real),
    }
    marks = tuple(mark for mark, holds in conditions.items() if holds)
    return Response(name, t, text, len(ids), finish_reason, marks, margin)


def read(lineage: Lineage, part: Part = "held-out", upto: int | None = None) -> Samples:
    """The published samples of one part.

    Args:
        lineage: The lineage to read.
        part: Held-out or training prompts.
        upto: The last version (of held-out prompts) or iteration (of training prompts); all if left out.

    Raises:
        ConfigError: Nothing is published, or `upto` does not exist.
        DamagedArtifact: What a finished iteration has answered is gone.
    """
    held_out = part == "held-out"
    folders = answered(lineage, part)
    if not folders and lineage.records():
        folder = (lineage.eval_folder(0) / "self-play") if held_out else (lineage.iteration(0) / "generations")
        raise DamagedArtifact(
            f"{folder} is gone, though iteration 0 is finished: restore it from a copy, or start the lineage's spin "
            "run again, which makes it again"
        )
    if not folders:
        raise ConfigError(
            f"no {PROMPTS[part]} of lineage {lineage.name} is answered yet: run it with spin run, or look at the "
            f"{'training prompts with --train' if held_out else 'held-out prompts with --held-out'}"
        )
    if upto is not None and not 0 <= upto < len(folders):
        raise ConfigError(
            f"lineage {lineage.name} has no {'version' if held_out else 'iteration'} {upto} with answers to "
            f"{PROMPTS[part]}s: choose from 0 to {len(folders) - 1}"
        )
    prompts = _prompts_of(lineage, part)
    real = column(prompts, "response", "response_ids")
    ids: list[str] = prompts["id"].to_pylist()
    versions = [
        (_held_out_version if held_out else _trained_version)(lineage, t, folder, ids, real)
        for t, folder in enumerate(folders[: None if upto is None else upto + 1])
    ]
    turns = [
        _turns_of(*row) for row in zip(prompts["prompt"].to_pylist(), prompts["messages"].to_pylist(), strict=True)
    ]
    return Samples(lineage.name, part, ids, turns, real, versions)


def answered(lineage: Lineage, part: Part) -> list[Path]:
    """The published folders with answers, from version or iteration 0 on."""
    folders: list[Path] = []
    while True:
        t = len(folders)
        folder = lineage.eval_folder(t) / "self-play" if part == "held-out" else lineage.iteration(t) / "generations"
        if not published(folder, "held_out.parquet" if part == "held-out" else "shard-00000.parquet"):
            return folders
        folders.append(folder)


def published(folder: Path, name: str) -> bool:
    """Whether a folder is published and contains a file of this name."""
    return (folder / identity.MANIFEST).exists() and (folder / name).exists()


def _prompts_of(lineage: Lineage, part: Part) -> pa.Table:
    """The prompts of a part, as they were tokenised."""
    folder = lineage.iteration(0) / "prompts"
    return read_table(folder / ("held_out.parquet" if part == "held-out" else "train.parquet"))


def _held_out_version(lineage: Lineage, t: int, folder: Path, ids: list[str], _real: Column) -> Version:
    """θ_t's answers to the held-out prompts, with the margins of the player that was trained against it last."""
    table = read_table(folder / "held_out.parquet", columns=["id", "generated", "generated_ids", "finish_reason"])
    margins: dict[str, float] = {}
    for record in lineage.records():
        items = lineage.eval_folder(record.t + 1) / "self-play" / "items.parquet"
        if record.opponent.t == t and items.exists():
            scored = read_table(items)
            rows = zip(*(scored[name].to_pylist() for name in ("task", "item", "value")), strict=True)
            margins = {item: value for task, item, value in rows if task == "reward_margin"}
    answer_ids = table["id"].to_pylist()
    return Version(
        t,
        f"θ_{t}",
        column(table, "generated", "generated_ids"),
        [f"θ_{t}"] * len(answer_ids),
        [margins.get(id) for id in answer_ids],
        _answer_rows(ids, answer_ids),
    )


def _answer_rows(ids: list[str], answer_ids: list[str]) -> list[list[int]]:
    """For each prompt the rows of its answers."""
    prompts_N, answers_M = (digests_of(id.encode() for id in some) for some in (ids, answer_ids))
    rows_NK = rows_by_id(prompts_N, answers_M, each=max(1, len(answer_ids) // max(1, len(ids))))
    return [[row for row in rows if row >= 0] for rows in rows_NK.tolist()]


def _trained_version(lineage: Lineage, t: int, folder: Path, ids: list[str], real: Column) -> Version:
    """The answers that iteration t trains on, with margins where the next iteration has scored the same pairs."""
    table = pa.concat_tables([read_table(path) for path in sorted(folder.glob("shard-*.parquet"))])
    answers = column(table, "response", "response_ids")
    rows = _answer_rows(ids, table["id"].to_pylist())
    record = lineage.record(t)
    carried = _carried_margins(lineage, t) if record is not None and record.gate.next_opponent == t + 1 else {}
    margins: list[float | None] = [None] * len(table)
    for index, prompt_rows in enumerate(rows if carried else []):
        for row in prompt_rows:
            margins[row] = carried.get((ids[index], real.ids[index].tobytes(), answers.ids[row].tobytes()))
    if "opponent" in table.column_names:
        opponents = table["opponent"].to_pylist()
    else:
        opponents = [t if record is None else record.opponent.t] * len(table)
    names = [f"θ_{t}" if version == t else f"θ_{version} in iteration {t}" for version in opponents]
    name = names[0] if len(set(names)) == 1 else f"iteration {t}"
    return Version(t, name, answers, names, margins, rows)


def _carried_margins(lineage: Lineage, t: int) -> dict[tuple[str, bytes, bytes], float]:
    """Margins of iteration t's pairs that iteration t + 1 carried over and scored under its own opponent, θ_{t+1}."""
    before, after = _log_ratios(lineage, t, t), _log_ratios(lineage, t + 1, t)
    return {pair: after[pair] - gap for pair, gap in before.items() if pair in after}


def _log_ratios(lineage: Lineage, scored_in: int, answered_in: int) -> dict[tuple[str, bytes, bytes], float]:
    """log p(real) − log p(generated) in nats under the opponent of iteration `scored_in`.

    Only pairs that were generated in iteration `answered_in`. The key of a pair is its prompt's id and the token ids of
    both sides.
    """
    pairs, scores = lineage.iteration(scored_in) / "pairs", lineage.iteration(scored_in) / "scores"
    if not (published(pairs, "pairs.parquet") and published(scores, "logps.parquet")):
        return {}
    logps = read_table(scores / "logps.parquet", columns=["real_logps", "generated_logps"])
    table = read_table(pairs / "pairs.parquet", columns=["id", "t", "real_ids", "generated_ids"])
    real_logps, generated_logps = (
        np.asarray(logps[name].to_pylist(), np.float64) for name in ("real_logps", "generated_logps")
    )
    gaps = real_logps - generated_logps
    rows = zip(
        *(table[name].to_pylist() for name in ("id", "t")),
        *(token_ids_in(table[name]) for name in ("real_ids", "generated_ids")),
        gaps.tolist(),
        strict=True,
    )
    return {(id, real.tobytes(), generated.tobytes()): gap for id, t, real, generated, gap in rows if t == answered_in}


def column(table: pa.Table, text: str, ids: str) -> Column:
    """The responses in a table."""
    return Column(table[text].to_pylist(), list(token_ids_in(table[ids])), table["finish_reason"].to_pylist())


def _turns_of(prompt: str, messages: str) -> tuple[Turn, ...]:
    """The turns of a prompt. A single question, or plain text, is one turn without a role."""
    turns = json.loads(messages)
    if len(turns) < 2:
        return (Turn("", prompt),)
    return tuple(Turn(turn["role"], turn["content"]) for turn in turns)
