"""Self-BLEU, worked out by hand."""

import math

import numpy as np
import pytest

from spin_core.evaluation.frontier.self_bleu import self_bleu


def test_equal_texts_look_entirely_alike():
    assert self_bleu(["one two three four five"] * 3) == pytest.approx([1, 1, 1])


def test_texts_without_a_common_word_do_not():
    assert self_bleu(["a b c d", "e f g h"]) == pytest.approx([0, 0], abs=1e-9)


def test_values_by_hand():
    # "a b c d" against "a b c e": 3 of 4 words; with one added, 2+1 of 3+1 pairs, 1+1 of 2+1 triples, 0+1 of 1+1.
    want = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu(["a b c d", "a b c e"]) == pytest.approx([want, want])


def test_a_word_counts_as_often_as_one_other_text_has_it():
    # "a a a" has three times "a"; the others have it twice and once, so two of the three count, and one of two pairs.
    first, *_ = self_bleu(["a a a", "a a x", "a y z"])
    assert first == pytest.approx((2 / 3 * (1 + 1) / (2 + 1) * (0 + 1) / (1 + 1) * 1 / 1) ** (1 / 4))


def test_a_text_shorter_than_all_others_is_penalised():
    short, _, _ = self_bleu(["a b", "a b c d", "a b c d e"])
    assert short == pytest.approx(math.exp(1 - 4 / 2))


def test_a_text_without_words_and_a_text_alone_are_0():
    assert self_bleu(["", "a b", "a b"])[0] == 0
    assert np.array_equal(self_bleu(["a b"]), [0.0])
