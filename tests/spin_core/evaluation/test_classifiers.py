import numpy as np
import pytest

from spin_core.evaluation.classifiers import length_classifier_accuracy, text_classifier_accuracy, two_sample_p


def test_the_length_classifier_separates_sides_of_different_lengths():
    assert length_classifier_accuracy([10] * 20, [30] * 20).mean() == 1
    assert length_classifier_accuracy([30] * 20, [10] * 20).mean() == 1


def test_equal_lengths_give_nothing_away():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, size=(2, 2000))
    assert length_classifier_accuracy(*lengths).mean() == pytest.approx(0.5, abs=0.03)
    assert length_classifier_accuracy([7] * 30, [7] * 30).mean() == 0.5


def test_the_classifier_is_judged_on_lengths_that_it_has_not_seen():
    # Pair i has its own lengths, real above generated within the pair but nowhere else: a memory of the training
    # folds would score 1.
    real, generated = [2 * i + 1 for i in range(100)], [2 * i for i in range(100)]
    assert length_classifier_accuracy(real, generated).mean() == pytest.approx(0.5, abs=0.05)


def test_overlapping_lengths_are_classified_as_well_as_possible():
    # Real is 1 to 3, generated 2 to 4, a third each: the best threshold gets two thirds right.
    assert length_classifier_accuracy([1, 2, 3] * 60, [2, 3, 4] * 60).mean() == pytest.approx(2 / 3, abs=0.01)


WORDS = [f"w{i}" for i in range(50)]


def sentences(rng, count=200, words=WORDS, weights=None):
    return [" ".join(rng.choice(words, 12, p=weights)) for _ in range(count)]


def test_the_text_classifier_separates_sides_with_different_words():
    rng = np.random.default_rng(0)
    common = np.linspace(2, 0, 50)
    accuracy = text_classifier_accuracy(sentences(rng), sentences(rng, weights=common / common.sum()))
    assert np.nanmean(accuracy) > 0.7
    assert two_sample_p(accuracy) < 1e-6
    stops = [f"{text}." for text in sentences(rng)]  # a full stop too many
    assert two_sample_p(text_classifier_accuracy(sentences(rng), stops)) < 1e-3


def test_the_text_classifier_does_not_separate_texts_of_one_kind():
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    accuracies = [text_classifier_accuracy(sentences(rng, 60), sentences(rng, 60)) for rng in rngs]
    chances = [two_sample_p(accuracy) for accuracy in accuracies]
    # The mean of 40 times 60 texts, whose standard error is .01.
    assert np.nanmean(accuracies) == pytest.approx(0.5, abs=0.03)
    # By chance a p-value is below .05 in at most one of twenty cases: 2 of these, and 6 with a probability of .01.
    assert sum(chance < 0.05 for chance in chances) < 6


def test_the_text_classifier_separates_texts_that_differ_in_word_order():
    rng = np.random.default_rng(1)
    real = sentences(rng)
    assert np.nanmean(text_classifier_accuracy(real, [" ".join(sorted(text.split())) for text in real])) > 0.85


def test_equal_texts_are_half_right():
    texts = sentences(np.random.default_rng(2), 30)
    assert text_classifier_accuracy(texts, texts)[1::2].tolist() == [0.5] * 15
    assert two_sample_p(text_classifier_accuracy(texts, texts)) == 1


def test_the_text_classifier_is_judged_on_texts_that_it_has_not_seen():
    # Each text is a different word, which a classifier could only memorise.
    numbers = np.random.default_rng(3).permutation(10**6)[:400]
    real, generated = ([f"{n:06d}" for n in part] for part in (numbers[:200], numbers[200:]))
    accuracy = text_classifier_accuracy(real, generated)
    assert np.nanmean(accuracy) == pytest.approx(0.5, abs=0.1)
    assert np.isnan(accuracy).tolist() == [True, False] * 100


def test_the_text_classifier_needs_enough_texts_and_samples_from_too_many():
    assert np.isnan(text_classifier_accuracy(["a"], ["b"])).all()
    assert text_classifier_accuracy([], []).shape == (0,)
    texts = sentences(np.random.default_rng(4), 12)
    accuracy = text_classifier_accuracy(texts, texts[::-1], most=10)
    assert np.isnan(accuracy).tolist() == [True, False] * 5 + [True] * 2
    assert text_classifier_accuracy(["", ""], ["", ""])[1] == 0.5


def test_the_chance_of_a_two_sample_test_is_the_sign_tests():
    assert two_sample_p(np.array([1, 1, 1, 0.5, np.nan])) == pytest.approx(1 / 8)
    assert two_sample_p(np.array([1, 0, 0.5])) == pytest.approx(3 / 4)
    assert two_sample_p(np.array([0.5, np.nan])) == 1
