"""Repetition: responses that go round in circles, trigrams that a text repeats, n-grams that many texts share.

Loops are judged by token ids, since not every data set has words; the rest is judged by words.

Shapes: N words (or n-grams) of all texts, end to end.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]

_PHRASE_TOKENS = 8
"""Tokens in a phrase."""

_LOOPING_SHARE = 0.5
"""A response loops if more than this share of its phrases occurred in it before."""

_MIN_PHRASES = 24
"""Responses with fewer phrases than this are too short to judge."""


def is_looping(ids: Sequence[int]) -> bool:
    """Whether a response repeats itself over and over."""
    return len(ids) - _PHRASE_TOKENS + 1 >= _MIN_PHRASES and repeated_share(ids) > _LOOPING_SHARE


def repeated_share(ids: Sequence[int], phrase: int = _PHRASE_TOKENS) -> float:
    """The share of a response's phrases of `phrase` tokens that occurred in it before, from 0 to 1.

    This is seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319), with n = 8 instead of 4: on a character vocabulary,
    phrases of four tokens repeat in any long honest text. Text that goes round and round is near 1.
    """
    phrases = list(zip(*(ids[start:] for start in range(phrase)), strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def repeated_trigrams(text: str) -> float:
    """The share of the text's word trigrams that occurred in it before; 0 for fewer than three words."""
    grams = ngrams(text, 3)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[str], n: int = 2) -> Floats:
    """distinct-n attributed to the texts: values, (texts,), whose mean is the ratio of different word n-grams to all.

    The ratio is of all texts together (Li et al. 2016). It falls as texts are added, so compare equal numbers of texts.

    A text's value is the ratio plus the text's influence on it: how much lower the ratio is without this text than
    without the mean text, times the number of other texts. So the standard error of the mean is the jackknife's, and
    the difference of two sets of answers to the same prompts has a paired standard error. A bootstrap of the ratio
    would be wrong: a text that is drawn twice adds no new n-gram, so such ratios are far too low.

    Returns NaN for all texts where none has an n-gram.
    """
    counts = [Counter(ngrams(text, n)) for text in texts]
    corpus: Counter[tuple[str, ...]] = Counter()
    for text_counts in counts:
        corpus.update(text_counts)
    total = corpus.total()
    if not total:
        return np.full(len(texts), np.nan)
    ratios_without = []
    for text_counts in counts:
        only_here = sum(1 for gram, count in text_counts.items() if corpus[gram] == count)
        rest = total - text_counts.total()
        ratios_without.append((len(corpus) - only_here) / rest if rest else 0.0)
    left_out = np.array(ratios_without)
    return np.asarray(len(corpus) / total + (len(texts) - 1) * (left_out.mean() - left_out))


def distinct_shares(texts: Sequence[str], most: int = 3) -> tuple[float, ...]:
    """distinct-1 … distinct-`most` without errors, fast enough for many texts; 0 where no text has an n-gram.

    Words and n-grams are numbers here. An n-gram's number is made from the number of the (n-1)-gram that it extends
    and the number of its last word, as digits of a positional system with the vocabulary's size as base. Before such
    a number could exceed 64 bits, the (n-1)-grams are numbered afresh from 0.
    """
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pa.array(texts, pa.large_string())))
    flat = words.flatten().dictionary_encode()
    vocabulary = len(flat.dictionary)
    word_N = flat.indices.to_numpy().astype(np.int64)
    # Splitting a text without words gives one empty word.
    is_word_N = word_N != flat.dictionary.index("").as_py()
    word_N = word_N[is_word_N]
    # The text of each word, with -1 after the last one: no text has that number, so no n-gram runs over the end.
    text_N = np.append(pc.list_parent_indices(words).to_numpy()[is_word_N], [-1] * most)
    start_N, gram_N, shares = np.arange(len(word_N)), word_N, []
    bound = vocabulary
    for n in range(1, most + 1):
        if n > 1:
            # Keep the (n-1)-grams that another word of the same text follows.
            is_whole_N = text_N[start_N] == text_N[start_N + n - 1]
            start_N, gram_N = start_N[is_whole_N], gram_N[is_whole_N]
            if bound * vocabulary >= 2**63:
                different, gram_N = np.unique(gram_N, return_inverse=True)
                bound = len(different)
            gram_N = gram_N * vocabulary + word_N[start_N + n - 1]
            bound *= vocabulary
        in_order = np.sort(gram_N)
        shares.append(float((in_order[1:] != in_order[:-1]).sum() + 1) / len(gram_N) if len(gram_N) else 0.0)
    return tuple(shares)


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The text's word n-grams, in order."""
    words = text.split()
    return list(zip(*(words[start:] for start in range(n)), strict=False))
