"""Self-BLEU (arXiv 1802.01886): how much each text looks like the others of its set. Lower is more diverse."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spin_core.data.repetition import ngrams

Floats = npt.NDArray[np.float64]

_LONGEST = 4
"""BLEU-4."""


def self_bleu(texts: Sequence[str]) -> Floats:
    """Return the BLEU of each text with all the others as references, (texts,); 0 for a text without words.

    BLEU-4 of words, with Lin and Och's smoothing: one is added to the counts of pairs, triples and quadruples, so that
    a short text is not 0 because it lacks one. With many references the penalty for brevity is rarely below 1.
    """
    if len(texts) < 2:
        return np.zeros(len(texts))
    log_precision = np.zeros(len(texts))
    for n in range(1, _LONGEST + 1):
        log_precision += np.log(np.maximum(_precisions(texts, n), 1e-300)) / _LONGEST
    words = np.array([len(text.split()) for text in texts])
    return np.where(words > 0, np.exp(log_precision) * _brevity(words), 0.0)


def _precisions(texts: Sequence[str], n: int) -> Floats:
    """The share of each text's n-grams that another text has, each counted at most as often as in that text."""
    counts = [Counter(ngrams(text, n)) for text in texts]
    # The most that any text has of an n-gram, and the most that any other text has: enough to leave one text out.
    most: dict[tuple[str, ...], tuple[int, int]] = {}
    for text_counts in counts:
        for gram, count in text_counts.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (max(first, count), max(min(first, count), second))
    added = int(n > 1)
    precisions = np.zeros(len(texts))
    for index, text_counts in enumerate(counts):
        # The maximum is a text's own where it has as many; then the others have at most the second largest.
        matches = sum(
            min(count, most[gram][1] if count == most[gram][0] else most[gram][0])
            for gram, count in text_counts.items()
        )
        total = text_counts.total() + added
        precisions[index] = (matches + added) / total if total else 0.0
    return precisions


def _brevity(words: npt.NDArray[np.int64]) -> Floats:
    """BLEU's penalty for a text that is shorter than the reference whose length is nearest to it."""
    in_order = np.sort(words)
    penalties = np.ones(len(words))
    for index, own in enumerate(words):
        if own:
            place = int(np.searchsorted(in_order, own))
            # Without the text itself, which is at this place or equal to what is.
            others = np.concatenate([in_order[max(0, place - 1) : place], in_order[place + 1 : place + 2]])
            nearest = others[np.abs(others - own).argmin()]
            penalties[index] = np.exp(min(0.0, 1 - nearest / own))
    return penalties
