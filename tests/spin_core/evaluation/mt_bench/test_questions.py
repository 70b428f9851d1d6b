"""MT-Bench's questions, from files in its own form."""

import json
from collections import Counter

import pytest

from spin_core.errors import DataError
from spin_core.evaluation.mt_bench.answers import TEMPERATURES
from spin_core.evaluation.mt_bench.questions import load_questions, quick_questions
from tests.support.helpers import data_folder


def test_the_real_questions_are_read():
    questions = load_questions(data_folder("mt_bench"))
    assert len(questions) == 80
    assert Counter(question.category for question in questions) == dict.fromkeys(TEMPERATURES, 10)
    with_references = [question.category for question in questions if question.references]
    assert Counter(with_references) == {"math": 10, "reasoning": 10, "coding": 10}
    few = quick_questions(questions, 0)
    assert Counter(question.category for question in few) == dict.fromkeys(TEMPERATURES, 3)
    assert [q.id for q in few] == [q.id for q in questions if q in few] != [q.id for q in quick_questions(questions, 1)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no questions"),
        ([{"question_id": 1, "category": "math", "turns": ["one"]}], "question 1 needs .* two turns"),
        ([{"question_id": 1, "turns": ["one", "two"]}], "question 1 needs"),
        ([{"question_id": 1, "category": "x", "turns": ["a", "b"]}] * 2, "two with one question_id"),
    ],
)
def test_invalid_questions_are_rejected(tmp_path, rows, message):
    (tmp_path / "question.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "reference_answer_gpt-4.jsonl").write_text("")
    with pytest.raises(DataError, match=message):
        load_questions(tmp_path)


def test_a_folder_without_questions_and_an_unreachable_hub_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"question.jsonl is not there: set evaluate.mt_bench.data"):
        load_questions(tmp_path)
    with pytest.raises(
        DataError, match=r"mt_bench_prompts is neither a file or folder here.*fix evaluate.mt_bench.data"
    ):
        load_questions(None)
