"""Classifiers that tell human from generated texts, by length and by content."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def length_classifier(real: npt.ArrayLike, generated: npt.ArrayLike, folds: int = 5) -> Floats:
    """How well length alone tells real from generated: the accuracy on each pair's two sides, (pairs,), 0, .5 or 1.

    The classifier is a threshold on the length and a side, those that are best on the other folds; a pair's two sides
    are in one fold. A mean of .5 says that length gives nothing away.
    """
    lengths_BS = np.array([real, generated], dtype=np.float64).T
    fold_B = np.arange(len(lengths_BS)) % folds
    right_B = np.zeros(len(lengths_BS))
    for fold in range(folds):
        threshold, longer_is_real = best_threshold(lengths_BS[fold_B != fold])
        says_real_BS = (lengths_BS[fold_B == fold] > threshold) == longer_is_real
        right_B[fold_B == fold] = (says_real_BS == np.array([True, False])).mean(axis=1)
    return right_B


def best_threshold(lengths_BS: Floats) -> tuple[float, bool]:
    """The threshold that parts (real, generated) best, and whether the longer ones are real."""
    values = np.unique(lengths_BS)
    real, generated = (np.sort(side) for side in lengths_BS.T)
    # How many more of the real than of the generated lie above each value.
    lead = np.searchsorted(generated, values, side="right") - np.searchsorted(real, values, side="right")
    if not len(values):
        return 0.0, True
    best = int(np.abs(lead).argmax())
    return float(values[best]), bool(lead[best] >= 0)


def text_classifier(real: Sequence[str], generated: Sequence[str], most: int = 1000) -> Floats:
    """How well their text tells real from generated: the accuracy on each pair's two sides, (pairs,), 0, .5 or 1.

    A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545): logistic regression on how often texts have
    n-grams of words and of characters, scaled to length 1, so that a text's own length counts for little. It is trained
    on every other pair and judged on the rest, rather than by cross-validation, whose folds hang together, so that a
    p-value would come out too small. A mean of .5 says that it finds no difference.

    NaN for the pairs that it is trained on, for those beyond the first `most`, and for all where they are fewer than
    two.
    """
    import scipy.sparse
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    right_B = np.full(len(real), np.nan)
    pairs = min(len(real), most)
    if pairs < 2:
        return right_B
    words = HashingVectorizer(token_pattern=r"\S+", lowercase=False, ngram_range=(1, 2), n_features=2**14)
    characters = HashingVectorizer(analyzer="char", lowercase=False, ngram_range=(1, 3), n_features=2**14)

    def features(texts: Sequence[str]) -> Any:
        # How a text begins and ends is a difference too: one that was cut ends anywhere.
        framed = [f"\x02{text}\x03" for text in texts]
        return scipy.sparse.hstack([words.transform(texts), characters.transform(framed)], format="csr")

    sides = [features(real[:pairs]), features(generated[:pairs])]
    trained, judged = slice(0, pairs, 2), slice(1, pairs, 2)
    model = LogisticRegression(C=100.0, max_iter=1000)
    shown = scipy.sparse.vstack([side[trained] for side in sides])
    is_real_S = np.array([True, False])
    model.fit(shown, np.repeat(is_real_S, shown.shape[0] // 2))
    lean_BS = np.array([model.decision_function(side[judged]) for side in sides]).T
    # A text that leans to neither side is half right.
    says_BS = (np.sign(lean_BS) + 1) / 2
    right_B[judged] = np.where(is_real_S, says_BS, 1 - says_BS).mean(axis=1)
    return right_B


def two_sample_p(right_B: Floats) -> float:
    """How likely pairs are told apart at least so well if real and generated texts are of one kind.

    `right_B` is the accuracy on each pair's sides. If the sides could as well be exchanged, a pair is as likely to be
    all right as all wrong, whatever the classifier: a sign test. NaN pairs do not count.
    """
    import scipy.stats

    wins, losses = int((right_B == 1).sum()), int((right_B == 0).sum())
    return float(scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0
