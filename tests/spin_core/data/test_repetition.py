"""Loops, repeated trigrams and distinct n-grams: by hand, against their definitions, and on human texts."""

import json
import math

import numpy as np
import pytest

from spin_core.data.repetition import distinct, distinct_shares, is_looping, ngrams, repeated_share, repeated_trigrams
from spin_core.evaluation.statistics import paired
from tests.support.helpers import data_folder


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


def test_repeated_trigrams_by_hand():
    assert repeated_trigrams("a b c d") == 0
    assert repeated_trigrams("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_trigrams("a a a a a") == pytest.approx(2 / 3)
    assert repeated_trigrams("a b") == 0


def test_ngrams_by_hand():
    assert ngrams("a b  c", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("a", 2) == []


def test_distinct_by_hand():
    assert distinct(["a b c", "a b d"]).mean() == pytest.approx(3 / 4)  # ab bc ab bd
    assert distinct(["a b", "a b", "a b"]).mean() == pytest.approx(1 / 3)
    assert np.isnan(distinct(["a", ""])).tolist() == [True, True]
    # Without the first text 2 of 3 words differ, without the second 2 of 3, without the third 1 of 2, of 2 of 4.
    assert distinct(["a", "a", "a b"], 1) - 1 / 2 == pytest.approx([-1 / 9, -1 / 9, 2 / 9])


def share(texts, n) -> float:
    value_N = distinct(texts, n)
    return 0.0 if np.isnan(value_N).all() else value_N.mean()


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["a b c", "a b d", "", "x a b c a b"], ["a a a a"] * 3])
def test_distinct_shares_are_distinct_of_one_two_and_three_words(texts):
    assert distinct_shares(texts) == pytest.approx([share(texts, n) for n in (1, 2, 3)])


def test_distinct_shares_know_phrases_too_many_to_number():
    texts = [" ".join(str(i * j % 101) for i in range(40)) for j in range(60)]
    assert distinct_shares(texts, 14) == pytest.approx([share(texts, n) for n in range(1, 15)])


def test_the_error_of_distinct_is_the_jackknifes():
    texts = ["a b c", "a b d", "c d e f", "a b", "x"]
    left_out = [share(texts[:i] + texts[i + 1 :], 2) for i in range(len(texts))]
    mean = sum(left_out) / len(left_out)
    want = math.sqrt((len(texts) - 1) / len(texts) * sum((value - mean) ** 2 for value in left_out))
    assert distinct(texts).std(ddof=1) / math.sqrt(len(texts)) == pytest.approx(want)
    assert want > 0


def test_answers_that_two_players_share_cancel_in_the_error_of_their_difference():
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.zipf(1.5, 12) % 500)) for _ in range(80)]
    again = [text if place % 8 else "a b a b a b a b a b a b" for place, text in enumerate(texts)]
    value_N, other_N = distinct(texts), distinct(again)
    apart = math.hypot(*(side_N.std(ddof=1) / math.sqrt(80) for side_N in (value_N, other_N)))
    difference = paired(dict(enumerate(value_N)), dict(enumerate(other_N)))
    assert difference.mean == pytest.approx(distinct_shares(texts)[1] - distinct_shares(again)[1])
    assert difference.stderr < 0.8 * apart


def test_intervals_of_differences_in_distinct_hold_the_truth_as_often_as_they_say():
    # Two players answer the same prompts: a prompt is a topic with words of its own, and one of them says "the" often.
    def answers(rng):
        topics = rng.zipf(1.5, 100) % 1000
        words = topics[:, None] * 31 % 997 + rng.zipf(1.8, (100, 16)) % 1000
        dull = np.where(rng.random(words.shape) < 0.2, -1, words + rng.integers(0, 2, words.shape))
        return [[" ".join(map(str, row)) for row in side.tolist()] for side in (words, dull)]

    differences = []
    for seed in range(150):
        items = [dict(enumerate(distinct(side))) for side in answers(np.random.default_rng(seed))]
        differences.append(paired(*items, f"{seed}"))
    truth = np.mean([difference.mean for difference in differences])
    spread = np.std([difference.mean for difference in differences])
    # The jackknife's error is a little too large rather than too small (Efron & Stein 1981).
    assert 0.95 < np.mean([difference.stderr for difference in differences]) / spread < 1.35
    held = np.mean([low <= truth <= high for low, high in (difference.interval() for difference in differences)])
    # 150 draws of probability .95 have a standard deviation of .018.
    assert held > 0.9
