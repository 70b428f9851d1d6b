"""Classifiers that tell human from generated texts, by length and by content, and the test on their accuracy.

B  pairs of a human and a generated text
S  the two sides of a pair: real, generated
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def length_classifier_accuracy(real: npt.ArrayLike, generated: npt.ArrayLike, folds: int = 5) -> Floats:
    """Return how well length alone tells real from generated: the accuracy on each pair's sides, (B,), 0, .5 or 1.

    The classifier is a threshold on the length, and whether longer means real; it takes those that are best on the
    other folds. Both sides of a pair are in one fold. A mean of .5 means that length gives nothing away.

    Args:
        real: The lengths of the human responses, (B,).
        generated: The lengths of the player's responses, (B,).
        folds: The number of folds of the cross-validation.
    """
    lengths_BS = np.array([real, generated], dtype=np.float64).T
    fold_B = np.arange(len(lengths_BS)) % folds
    right_B = np.zeros(len(lengths_BS))
    for fold in range(folds):
        threshold, longer_is_real = _best_threshold(lengths_BS[fold_B != fold])
        is_called_real_BS = (lengths_BS[fold_B == fold] > threshold) == longer_is_real
        right_B[fold_B == fold] = (is_called_real_BS == np.array([True, False])).mean(axis=1)
    return right_B


def _best_threshold(lengths_BS: Floats) -> tuple[float, bool]:
    """Return the threshold that separates (real, generated) best, and whether the longer texts are real."""
    values = np.unique(lengths_BS)
    real, generated = (np.sort(side) for side in lengths_BS.T)
    # How many more real than generated texts are longer than each value.
    lead = np.searchsorted(generated, values, side="right") - np.searchsorted(real, values, side="right")
    if not len(values):
        return 0.0, True
    best = int(np.abs(lead).argmax())
    return float(values[best]), bool(lead[best] >= 0)


def text_classifier_accuracy(real: Sequence[str], generated: Sequence[str], most: int = 1000) -> Floats:
    """Return how well the text tells real from generated: the accuracy on each pair's sides, (B,), 0, .5 or 1.

    A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545): logistic regression on the counts of
    n-grams of words and of characters, scaled to length 1, so that a text's own length counts for little. It is trained
    on every other pair and tested on the rest. With cross-validation instead, the folds would depend on each other, and
    a p-value would be too small. A mean of .5 means that it finds no difference.

    Args:
        real: The human responses.
        generated: The player's responses to the same prompts.
        most: Use only this many pairs, the first ones.

    Returns:
        NaN for the pairs that it is trained on, for those beyond `most`, and for all if there are fewer than two.
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
        # With marks at both ends, n-grams show how a text begins and ends: one that was cut ends anywhere.
        marked = [f"\x02{text}\x03" for text in texts]
        return scipy.sparse.hstack([words.transform(texts), characters.transform(marked)], format="csr")

    sides = [features(real[:pairs]), features(generated[:pairs])]
    train, test = slice(0, pairs, 2), slice(1, pairs, 2)
    model = LogisticRegression(C=100.0, max_iter=1000)
    train_features = scipy.sparse.vstack([side[train] for side in sides])
    is_real_S = np.array([True, False])
    model.fit(train_features, np.repeat(is_real_S, train_features.shape[0] // 2))
    decision_BS = np.array([model.decision_function(side[test]) for side in sides]).T
    # A text exactly on the boundary is half right.
    is_real_BS = (np.sign(decision_BS) + 1) / 2
    right_B[test] = np.where(is_real_S, is_real_BS, 1 - is_real_BS).mean(axis=1)
    return right_B


def two_sample_p(right_B: Floats) -> float:
    """Return the p-value: the probability of at least this accuracy if real and generated texts are of one kind.

    If the two sides could as well be exchanged, a pair is as likely to be all right as all wrong, whatever the
    classifier: a sign test.

    Args:
        right_B: The accuracy on each pair's sides, 0, .5 or 1. Pairs with .5 or NaN do not count.
    """
    import scipy.stats

    wins, losses = int((right_B == 1).sum()), int((right_B == 0).sum())
    return float(scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0
