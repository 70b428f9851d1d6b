import math

import numpy as np
import pytest

from spin_core.texts import distinct, distinct_shares, length_classifier, ngrams, repeated_trigrams


def test_repeated_trigrams_by_hand():
    assert repeated_trigrams("a b c d") == 0
    assert repeated_trigrams("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_trigrams("a a a a a") == pytest.approx(2 / 3)
    assert repeated_trigrams("a b") == 0


def test_ngrams_by_hand():
    assert ngrams("a b  c", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("a", 2) == []


def test_distinct_by_hand():
    assert distinct(["a b c", "a b d"])[0] == pytest.approx(3 / 4)  # ab bc ab bd
    assert distinct(["a b", "a b", "a b"])[0] == pytest.approx(1 / 3)
    assert distinct(["a", ""]) == (0, 0)


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["a b c", "a b d", "", "x a b c a b"], ["a a a a"] * 3])
def test_distinct_shares_are_distinct_of_one_two_and_three_words(texts):
    assert distinct_shares(texts) == pytest.approx([distinct(texts, n)[0] for n in (1, 2, 3)])


def test_distinct_shares_know_phrases_too_many_to_number():
    texts = [" ".join(str(i * j % 101) for i in range(40)) for j in range(60)]
    assert distinct_shares(texts, 14) == pytest.approx([distinct(texts, n)[0] for n in range(1, 15)])


def test_the_error_of_distinct_is_the_jackknifes():
    texts = ["a b c", "a b d", "c d e f", "a b", "x"]
    left_out = [distinct(texts[:i] + texts[i + 1 :])[0] for i in range(len(texts))]
    mean = sum(left_out) / len(left_out)
    want = math.sqrt((len(texts) - 1) / len(texts) * sum((one - mean) ** 2 for one in left_out))
    assert distinct(texts)[1] == pytest.approx(want)
    assert want > 0


def test_length_alone_tells_the_sides_apart_where_it_does():
    assert length_classifier([10] * 20, [30] * 20).mean() == 1
    assert length_classifier([30] * 20, [10] * 20).mean() == 1


def test_equal_lengths_give_nothing_away():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, size=(2, 2000))
    assert length_classifier(*lengths).mean() == pytest.approx(0.5, abs=0.03)
    assert length_classifier([7] * 30, [7] * 30).mean() == 0.5


def test_the_classifier_is_judged_on_lengths_that_it_has_not_seen():
    # Pair i has its own lengths, real above generated within the pair but nowhere else: a memory of the training
    # folds would score 1.
    real, generated = [2 * i + 1 for i in range(100)], [2 * i for i in range(100)]
    assert length_classifier(real, generated).mean() == pytest.approx(0.5, abs=0.05)


def test_an_overlap_is_told_as_well_as_it_can_be():
    # Real is 1 to 3, generated 2 to 4, a third each: the best threshold gets two thirds right.
    assert length_classifier([1, 2, 3] * 60, [2, 3, 4] * 60).mean() == pytest.approx(2 / 3, abs=0.01)
