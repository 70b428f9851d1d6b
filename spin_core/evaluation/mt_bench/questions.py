"""MT-Bench's questions, from a folder in its own form or from the hub, and held-out prompts as further questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from spin_core.config.data import SourceConfig
from spin_core.data.seeds import seed_of
from spin_core.data.sources import read_file, read_rows
from spin_core.errors import DataError
from spin_core.store import identity
from spin_core.store.records import PromptSet

HUB = "HuggingFaceH4/mt_bench_prompts"
"""The hub's data set of the questions."""

WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose answers are judged with a reference answer next to them."""

HUMAN = "human"
"""The category of held-out prompts."""

TurnKey = tuple[str, int]
"""A question's id and the turn, 1 or 2."""

Answers = Mapping[str, Sequence[str]]
"""The answers to each turn, by question's id."""

_REFERENCES = "reference_answer_gpt-4.jsonl"

_QUICK_SIZE = 3
"""Questions of each category in the quick suite."""


class Question(NamedTuple):
    """A question of one or two turns."""

    id: str
    category: str
    """`human` for a held-out prompt, which has one turn."""
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    """A good answer to each turn; empty if there are none."""
    prompt_ids: tuple[int, ...] = ()
    """The tokens of a held-out prompt; empty for MT-Bench's questions."""

    @property
    def key(self) -> str:
        """Digest of everything in the question that its answers depend on."""
        return identity.digest_of([self.id, self.category, self.turns, self.prompt_ids])


def load_questions(folder: Path | None) -> list[Question]:
    """Return all questions, with references in the categories that use them.

    Args:
        folder: A folder with MT-Bench's own files. None reads the questions from the hub.

    Raises:
        DataError: A file is missing, or a question is not in MT-Bench's form.
    """
    if folder is None:
        path = Path(HUB)
        hub_rows, _ = read_rows(SourceConfig(path=HUB), "evaluate.mt_bench.data")
        rows = [{**row, "question_id": row.get("prompt_id"), "turns": row.get("prompt")} for row in hub_rows]
        references = {str(row["question_id"]): row.get("reference") for row in rows}
    else:
        path = folder / "question.jsonl"
        for required in (path, folder / _REFERENCES):
            if not required.is_file():
                raise DataError(
                    f"{required} is not there: set evaluate.mt_bench.data to a folder in MT-Bench's own form, or unset "
                    "it to fetch the questions from the hub"
                )
        rows = read_file(path)
        references = {str(row.get("question_id")): _reference_turns(row) for row in read_file(folder / _REFERENCES)}
    questions = [_parse_question(path, number, row, references) for number, row in enumerate(rows, start=1)]
    if len({question.id for question in questions}) < max(1, len(questions)):
        raise DataError(f"{path} has no questions, or two with one question_id: copy it again")
    return questions


def quick_questions(questions: Sequence[Question], seed: int) -> list[Question]:
    """Choose three questions of each category by seed, and return them in their order."""
    chosen: set[str] = set()
    for category in dict.fromkeys(question.category for question in questions):
        ids = [question.id for question in questions if question.category == category]
        chosen |= set(sorted(ids, key=lambda id: seed_of(seed, "mt-bench", id))[:_QUICK_SIZE])
    return [question for question in questions if question.id in chosen]


def held_out_questions(prompts: PromptSet, count: int, seed: int) -> tuple[list[Question], Answers]:
    """Choose `count` held-out prompts by seed, and return them with the human response to each."""
    rows = pq.read_table(prompts.path / "held_out.parquet").to_pylist()
    rows = sorted(rows, key=lambda row: seed_of(seed, "mt-bench", row["id"]))[:count]
    questions = [Question(row["id"], HUMAN, (row["prompt"],), prompt_ids=tuple(row["prompt_ids"])) for row in rows]
    return questions, {row["id"]: (row["response"],) for row in rows}


def _parse_question(path: Path, number: int, row: Mapping[str, Any], references: Mapping[str, Any]) -> Question:
    id, category, turns = (row.get(name) for name in ("question_id", "category", "turns"))
    if id is None or not isinstance(category, str) or turns is None or not _is_two_texts(turns):
        raise DataError(f"{path}, question {number} needs question_id, category and two turns of text: fix it")
    reference: Any = references.get(str(id)) if category in WITH_REFERENCE else None
    return Question(str(id), category, tuple(turns), tuple(reference) if _is_two_texts(reference) else ())


def _is_two_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _reference_turns(row: Mapping[str, Any]) -> Any:
    """Return the turns of an answer in MT-Bench's own form; None if the row has another form."""
    try:
        return row["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        return None
