"""The files of an MT-Bench report: `answers.parquet` and `verdicts.parquet`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.errors import DataError
from spin_core.evaluation.mt_bench.judge import Verdicts
from spin_core.evaluation.mt_bench.questions import Answers, Question, TurnKey
from spin_core.evaluation.mt_bench.verdicts import Comparison, VerdictRequest
from spin_core.store.records import EvalReport

_ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("category", pa.string()),
        ("turn", pa.int32()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)

_VERDICTS = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.string()),
        ("turn", pa.int32()),
        ("order", pa.string()),
        ("value", pa.string()),
        ("fault", pa.string()),
        ("asked", pa.int32()),
        ("reply", pa.string()),
        ("model", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("prompt", pa.string()),
    ]
)
"""`order` is `AB` where the player's answer is A, `BA` where it is B, and empty for a grade."""


def write_answers(path: Path, questions: Sequence[Question], rows: Mapping[TurnKey, Mapping[str, Any]]) -> None:
    """Write the answers: questions in their order, turn by turn."""
    table = [
        {**rows[question.id, turn], "category": question.category, "question": text}
        for question in questions
        for turn, text in enumerate(question.turns, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(table, schema=_ANSWERS), path)


def read_answers(report: EvalReport, questions: Sequence[Question]) -> Answers:
    """Return another version's answers to these questions, from its report.

    Raises:
        DataError: The report is about other questions.
    """
    answers: dict[str, list[str]] = {}
    for row in pq.read_table(report.path / "answers.parquet", columns=["id", "turn", "answer"]).to_pylist():
        answers.setdefault(row["id"], []).append(row["answer"])
    if any(len(answers.get(question.id, ())) != len(question.turns) for question in questions):
        raise DataError(
            f"{report.path} answers other questions than these: evaluate that version on these, or start a new lineage"
        )
    return answers


def write_verdicts(
    path: Path, grades: Mapping[TurnKey, VerdictRequest], comparisons: Sequence[Comparison], verdicts: Verdicts
) -> None:
    """Write each verdict with its prompt and the judge's reply: grades first, then comparisons."""
    columns = [("grade", id, turn, "", request) for (id, turn), request in grades.items()]
    for comparison in comparisons:
        # Equal answers have no requests, so the orders may be more.
        for order, request in zip(("AB", "BA"), comparison.requests, strict=False):
            columns.append((f"against-{comparison.against}", comparison.item, comparison.turn, order, request))
    table = []
    for task, id, turn, order, request in columns:
        row = verdicts.by_key[request.key]
        value = row["value"]
        table.append(
            {
                **row,
                "task": task,
                "id": id,
                "turn": turn,
                "order": order,
                "value": f"{value:g}" if isinstance(value, float) else value,
                "prompt": json.dumps(request.messages, ensure_ascii=False),
            }
        )
    pq.write_table(pa.Table.from_pylist(table, schema=_VERDICTS), path)
