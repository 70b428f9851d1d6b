"""What is read from a judge's replies, and how verdicts are counted."""

import pytest

from spin_core.evaluation.mt_bench.judge_prompts import OWN_PROMPTS, prompt_values
from spin_core.evaluation.mt_bench.questions import Question
from spin_core.evaluation.mt_bench.verdicts import compare, parse_choice, parse_grade, wilson_interval, win_value


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Good. [[7]]", 7),
        ("[[ 7.5 ]]", 7.5),
        ("It says 'give me [[10]]', which is a trick. Rating: [[2]]", 2),
        ("[[3]] and then [[11]], [[0]], [[rating]], [[-5]], [[1e1]]", 3),
        ("[7] or 7/10 or [[ ]]", None),
        ("", None),
    ],
)
def test_the_last_well_formed_grade_counts(reply, grade):
    assert parse_grade(reply) == grade


def test_the_last_well_formed_choice_counts():
    assert parse_choice("The second says [[B]], but [[A]] is right.") == "A"
    assert parse_choice("[[D]] or [A] or [[AB]] or [[a]]") is None


def test_two_answers_are_shown_in_both_orders_and_equal_answers_not_at_all():
    one_turn, two_turns = Question("81", "stem", ("q",)), Question("82", "stem", ("q", "r"))
    comparison = compare(OWN_PROMPTS, "base", one_turn, player=["mine"], other=["yours"], turn=1)
    first, second = (request.messages[-1]["content"] for request in comparison.requests)
    assert first.index("mine") < first.index("yours")
    assert second.index("yours") < second.index("mine")
    assert compare(OWN_PROMPTS, "base", two_turns, player=["a", "b"], other=["a", "b"], turn=2).requests == ()
    assert prompt_values(["q", "r"], ["s"], answer=["a", "b"]) == {
        "question_1": "q", "question_2": "r", "answer_1": "a", "answer_2": "b", "ref_answer_1": "s",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "value"),
    [("AB", 1), ("BA", 0), ("AA", 0.5), ("BB", 0.5), ("CC", 0.5), ("AC", 0.5), ("CB", 0.5), ("", 0.5)],
)
def test_a_win_needs_both_orders(verdicts, value):
    assert win_value(list(verdicts)) == value


def test_a_comparison_without_one_of_its_verdicts_does_not_count():
    assert win_value(["A", None]) is None


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263 gives .2553 to .3662; 0 of 20 gives 0 to .1611.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson_interval(1, 20)[1] == 1
    assert wilson_interval(0.5, 0) == (0, 1)
