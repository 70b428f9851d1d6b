"""Prompts with what people and models answered, read from what a lineage has published.

There are two parts. Held-out prompts are answered by every version when it is evaluated; training prompts by the
opponent of every iteration. Nothing here runs a model.
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

from spin_core.data.answer_statistics import answer_rows
from spin_core.data.repetition import is_looping
from spin_core.data.sequences import token_ids_in
from spin_core.errors import ConfigError
from spin_core.lineage.lineage import Lineage
from spin_core.store import identity
from spin_core.store.tables import read_table

Part = Literal["held-out", "train"]

PROMPTS: dict[Part, str] = {"held-out": "held-out prompt", "train": "training prompt"}
"""What a part's prompts are called."""

Sort = Literal["length", "margin", "random"]

Ids = NDArray[np.int32]


class Turn(NamedTuple):
    """A turn of a prompt. Bare text has no role."""

    role: str
    content: str


@dataclass(frozen=True)
class Response:
    """What a person or a model answered."""

    name: str
    """`human`, `θ_2`, or `θ_1 in iteration 2` where another version answered than the iteration's own."""
    t: int | None
    """The iteration, of a training prompt; the version, of a held-out one; None for a person."""
    text: str
    tokens: int
    finish_reason: str
    marks: tuple[str, ...]
    """What is to be known of it: `cut`, `empty`, `looping`, or `same` as the human response, token for token."""
    margin: float | None = None
    """How much more the player that was trained against this answer prefers the human response to it than the
    opponent did: log-probability ratios in nats, without beta. None where nobody has scored it."""


@dataclass(frozen=True)
class Sample:
    """A prompt and all responses to it."""

    number: int
    """Its place among the prompts, from 1."""
    id: str
    turns: tuple[Turn, ...]
    real: Response
    answers: tuple[Response, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"turns": [turn._asdict() for turn in self.turns]}


class Column(NamedTuple):
    """The responses in a file."""

    texts: list[str]
    ids: list[Ids]
    finish_reasons: list[str]


@dataclass(frozen=True)
class Version:
    """The answers of one version or iteration."""

    t: int
    name: str
    said: Column
    names: list[str]
    """Who gave each row of `said`."""
    margins: list[float | None]
    """One for each row of `said`."""
    rows: list[list[int]]
    """Where in `said` each prompt's answers are."""


@dataclass(frozen=True)
class Samples:
    """The samples of one part of a lineage, each made when it is asked for."""

    lineage: str
    part: Part
    ids: list[str]
    turns: list[tuple[Turn, ...]]
    real: Column
    versions: list[Version]

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, place: int) -> Sample:
        """The prompt at a place, from 0, with its responses."""
        answers = tuple(
            response(version.names[row], version.t, version.said, row, self.real.ids[place], version.margins[row])
            for version, row in self._rows(place)
        )
        real = response("human", None, self.real, place)
        return Sample(place + 1, self.ids[place], self.turns[place], real, answers)

    def select(self, *, find: str = "", sort: Sort | None = None, limit: int | None = None) -> list[int]:
        """The places of the prompts in which, or in whose responses, a text occurs, upper or lower case.

        They come in the prompts' order, by longest answer, by lowest margin, or shuffled, the same way every time.
        `ConfigError` where there is nothing to show, or nothing to sort by.
        """
        places = [place for place in range(len(self)) if self._holds(place, find.casefold())]
        if not places:
            raise ConfigError(
                f"no {PROMPTS[self.part]} of lineage {self.lineage}, nor a response to one, holds {find!r}"
            )
        if sort == "random":
            places.sort(key=lambda place: hashlib.sha256(f"{place}:{self.ids[place]}".encode()).digest())
        elif sort == "length":
            places.sort(key=lambda place: -max((len(v.said.ids[row]) for v, row in self._rows(place)), default=0))
        elif sort == "margin":
            if all(margin is None for version in self.versions for margin in version.margins):
                raise ConfigError(
                    f"no answer to a {PROMPTS[self.part]} has a margin yet, since no player was scored on it: "
                    "leave out --sort margin, or play one more iteration"
                )
            places.sort(key=self._lowest)
        return places[:limit]

    def _rows(self, place: int) -> Iterator[tuple[Version, int]]:
        return ((version, row) for version in self.versions for row in version.rows[place])

    def _lowest(self, place: int) -> float:
        found = (version.margins[row] for version, row in self._rows(place))
        return min((margin for margin in found if margin is not None), default=np.inf)

    def _holds(self, place: int, text: str) -> bool:
        said = (version.said.texts[row] for version, row in self._rows(place))
        asked = (turn.content for turn in self.turns[place])
        return not text or any(text in one.casefold() for one in (*asked, self.real.texts[place], *said))


def response(
    name: str, t: int | None, said: Column, row: int, real: Ids | None = None, margin: float | None = None
) -> Response:
    """A row of a column, marked."""
    text, ids, finish_reason = said.texts[row], said.ids[row], said.finish_reasons[row]
    known = {
        "cut": finish_reason == "length",
        "empty": not text.strip(),
        "looping": is_looping(ids.tolist()),
        "same": real is not None and np.array_equal(ids, real),
    }
    marks = tuple(mark for mark, there in known.items() if there)
    return Response(name, t, text, len(ids), finish_reason, marks, margin)


def read(lineage: Lineage, part: Part = "held-out", upto: int | None = None) -> Samples:
    """What is published of one part, up to a version (of held-out prompts) or an iteration (of training prompts).

    `ConfigError` where that is nothing.
    """
    held_out = part == "held-out"
    folders = answered(lineage, part)
    if not folders:
        raise ConfigError(
            f"no {PROMPTS[part]} of lineage {lineage.name} is answered yet: play it with spin run, or look at the "
            f"{'training prompts with --train' if held_out else 'held-out prompts with --held-out'}"
        )
    if upto is not None and not 0 <= upto < len(folders):
        raise ConfigError(
            f"lineage {lineage.name} has no {'version' if held_out else 'iteration'} {upto} with answers to "
            f"{PROMPTS[part]}s (there: 0 to {len(folders) - 1})"
        )
    prompts = prompts_of(lineage, part)
    real = column(prompts, "response", "response_ids")
    ids: list[str] = prompts["id"].to_pylist()
    versions = [
        (held_out_version if held_out else trained_version)(lineage, t, folder, ids, real)
        for t, folder in enumerate(folders[: None if upto is None else upto + 1])
    ]
    turns = [turns_of(*row) for row in zip(prompts["prompt"].to_pylist(), prompts["messages"].to_pylist(), strict=True)]
    return Samples(lineage.name, part, ids, turns, real, versions)


def answered(lineage: Lineage, part: Part) -> list[Path]:
    """The published folders with answers, from version or iteration 0 on."""
    found: list[Path] = []
    while True:
        t = len(found)
        folder = lineage.eval_folder(t) / "self-play" if part == "held-out" else lineage.iteration(t) / "generations"
        if not published(folder, "held_out.parquet" if part == "held-out" else "shard-00000.parquet"):
            return found
        found.append(folder)


def published(folder: Path, name: str) -> bool:
    """Whether a folder is published, with such a file in it."""
    return (folder / identity.MANIFEST).exists() and (folder / name).exists()


def prompts_of(lineage: Lineage, part: Part) -> pa.Table:
    """The prompts of a part, as they were tokenised."""
    folder = lineage.iteration(0) / "prompts"
    return read_table(folder / ("held_out.parquet" if part == "held-out" else "train.parquet"))


def held_out_version(lineage: Lineage, t: int, folder: Path, ids: list[str], _real: Column) -> Version:
    """θ_t's answers to the held-out prompts, with the margins of the player that was trained against it last."""
    table = read_table(folder / "held_out.parquet", columns=["id", "generated", "generated_ids", "finish_reason"])
    margins: dict[str, float] = {}
    for record in lineage.records():
        items = lineage.eval_folder(record.t + 1) / "self-play" / "items.parquet"
        if record.opponent.t == t and items.exists():
            scored = read_table(items)
            rows = zip(*(scored[name].to_pylist() for name in ("task", "item", "value")), strict=True)
            margins = {item: value for task, item, value in rows if task == "reward_margin"}
    given = table["id"].to_pylist()
    return Version(
        t,
        f"θ_{t}",
        column(table, "generated", "generated_ids"),
        [f"θ_{t}"] * len(given),
        [margins.get(id) for id in given],
        answer_rows(ids, given),
    )


def trained_version(lineage: Lineage, t: int, folder: Path, ids: list[str], real: Column) -> Version:
    """The answers that iteration t trains on, with margins where the next iteration has scored the same pairs."""
    table = pa.concat_tables([read_table(path) for path in sorted(folder.glob("shard-*.parquet"))])
    said = column(table, "response", "response_ids")
    rows = answer_rows(ids, table["id"].to_pylist())
    record = lineage.record(t)
    known = carried_margins(lineage, t) if record is not None and record.gate.next_opponent == t + 1 else {}
    margins: list[float | None] = [None] * len(table)
    for place, found in enumerate(rows if known else []):
        for row in found:
            margins[row] = known.get((ids[place], real.ids[place].tobytes(), said.ids[row].tobytes()))
    if "opponent" in table.column_names:
        by = table["opponent"].to_pylist()
    else:
        by = [t if record is None else record.opponent.t] * len(table)
    names = [f"θ_{t}" if version == t else f"θ_{version} in iteration {t}" for version in by]
    name = names[0] if len(set(names)) == 1 else f"iteration {t}"
    return Version(t, name, said, names, margins, rows)


def carried_margins(lineage: Lineage, t: int) -> dict[tuple[str, bytes, bytes], float]:
    """Margins of iteration t's pairs that iteration t + 1 carried over and scored under its own opponent, θ_{t+1}."""
    before, after = scored_pairs(lineage, t, t), scored_pairs(lineage, t + 1, t)
    return {pair: after[pair] - gap for pair, gap in before.items() if pair in after}


def scored_pairs(lineage: Lineage, at: int, of: int) -> dict[tuple[str, bytes, bytes], float]:
    """By how much iteration `at`'s opponent finds the human response likelier, for the pairs of iteration `of`.

    A pair is its prompt's id and the token ids of both sides.
    """
    pairs, scores = lineage.iteration(at) / "pairs", lineage.iteration(at) / "scores"
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
    return {(id, real.tobytes(), generated.tobytes()): gap for id, t, real, generated, gap in rows if t == of}


def column(table: pa.Table, text: str, ids: str) -> Column:
    """The responses in a table."""
    return Column(table[text].to_pylist(), list(token_ids_in(table[ids])), table["finish_reason"].to_pylist())


def turns_of(prompt: str, messages: str) -> tuple[Turn, ...]:
    """A prompt's turns. A single question, or bare text, is one turn without a role."""
    turns = json.loads(messages)
    if len(turns) < 2:
        return (Turn("", prompt),)
    return tuple(Turn(turn["role"], turn["content"]) for turn in turns)
