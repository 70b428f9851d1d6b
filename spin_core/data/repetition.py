"""Repetition in texts: looping answers, repeated trigrams, distinct n-grams."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = npt.NDArray[np.float64]

PHRASE = 8
"""Tokens in a phrase, for `repeated_share`."""

LOOPING_SHARE = 0.5
"""A response loops if more than this share of its phrases occurred in it before."""

LOOPING_PHRASES = 24
"""Responses with fewer phrases than this are too short to tell."""


def slices(column: pa.ChunkedArray) -> Iterator[NDArray[np.int32]]:
    """The token ids of each row, as views of the column."""
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        for begin, end in pairwise(offsets):
            yield values[begin:end]


def is_looping(ids: Sequence[int]) -> bool:
    """Whether a response repeats itself over and over."""
    return len(ids) - PHRASE + 1 >= LOOPING_PHRASES and repeated_share(ids) > LOOPING_SHARE


def repeated_share(ids: Sequence[int], phrase: int = PHRASE) -> float:
    """The share of a response's phrases of so many tokens that occurred in it before, from 0 to 1.

    This is seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319), with n = 8 instead of 4: on a character vocabulary,
    phrases of four tokens repeat in any long honest text. Text that goes round and round nears 1.
    """
    phrases = list(zip(*(ids[start:] for start in range(phrase)), strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def repeated_trigrams(text: str) -> float:
    """The part of the text's word trigrams that it has said before; 0 for fewer than three words."""
    grams = ngrams(text, 3)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[str], n: int = 2) -> Floats:
    """distinct-n, laid on the texts: values, (texts,), whose mean is the ratio of different word n-grams to all.

    The ratio is of all texts together (Li et al. 2016), and falls as texts are added, so compare equal numbers of them.
    A text's value is the ratio and what the text does to it: how much lower the ratio is without it than without the
    mean text, times the other texts. So the standard error of the mean is the jackknife's, and the difference of two
    sets of answers to the same prompts has a paired one. The ratio itself is not to be taken of texts drawn with
    replacement: a text that is drawn twice says nothing new, so that such ratios lie far too low.

    NaN for all where no text has an n-gram.
    """
    counts = [Counter(ngrams(text, n)) for text in texts]
    corpus: Counter[tuple[str, ...]] = Counter()
    for mine in counts:
        corpus.update(mine)
    total = corpus.total()
    if not total:
        return np.full(len(texts), np.nan)
    without = []
    for mine in counts:
        alone = sum(1 for gram, count in mine.items() if corpus[gram] == count)
        rest = total - mine.total()
        without.append((len(corpus) - alone) / rest if rest else 0.0)
    left_out = np.array(without)
    return np.asarray(len(corpus) / total + (len(texts) - 1) * (left_out.mean() - left_out))


def distinct_shares(texts: Sequence[str], most: int = 3) -> tuple[float, ...]:
    """distinct-1 … distinct-`most` without errors, for many texts; 0 where no text has an n-gram."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pa.array(texts, pa.string())))
    flat = words.flatten().dictionary_encode()
    vocabulary = len(flat.dictionary)
    word_N = flat.indices.to_numpy().astype(np.int64)
    # A text without words is split into one that is empty.
    some = word_N != flat.dictionary.index("").as_py()
    word_N = word_N[some]
    # No text has the number -1, so that no n-gram runs over the end.
    text_N = np.append(pc.list_parent_indices(words).to_numpy()[some], [-1] * most)
    start_N, gram_N, shares = np.arange(len(word_N)), word_N, []
    bound = vocabulary
    for n in range(1, most + 1):
        if n > 1:
            # An n-gram is the one before, by its number, and a further word of the same text.
            whole = text_N[start_N] == text_N[start_N + n - 1]
            start_N, gram_N = start_N[whole], gram_N[whole]
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
