"""Responses that go round in circles, and human texts that do not."""

import json

import pytest
from helpers import data_folder

from spin_core.data.looping import is_looping, repeated_share


def test_repeated_share_by_hand():
    assert repeated_share([1, 2, 3, 1, 2, 3], phrase=3) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repeated_share([7] * 10, phrase=1) == pytest.approx(9 / 10)
    assert repeated_share([1, 2], phrase=3) == 0


@pytest.mark.parametrize("period", [1, 2, 5, 10, 30])
def test_four_rounds_of_a_phrase_are_a_loop(period):
    rounds = max(4, 40 // period)
    assert is_looping(list(range(period)) * rounds)


def test_a_loop_after_an_honest_beginning_is_a_loop():
    assert is_looping([*range(100), *([200, 201, 202, 203] * 40)])


def test_short_and_varied_responses_are_no_loops():
    assert not is_looping([5] * 20)
    assert not is_looping(list(range(500)))


@pytest.mark.parametrize(
    ("file", "column"),
    [("gsm8k/test.jsonl", "answer"), ("tinystories/val.jsonl", "text"), ("gsm8k/train.jsonl", "answer")],
)
def test_no_human_text_is_taken_for_a_loop(file, column):
    texts = [json.loads(line)[column] for line in data_folder(file).read_text("utf-8").splitlines()][:2000]
    # By characters, where phrases repeat most, and by words.
    assert not [text for text in texts if is_looping([ord(letter) for letter in text])]
    assert not [text for text in texts if is_looping([hash(word) for word in text.split()])]
