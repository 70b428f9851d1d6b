"""What generated answers look like next to the human responses: lengths, ends, repetition, diversity.

Counted once, by the phase that generates, from the files that it publishes.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from spin_core.data.files.digests import Digests, digests_of, rows_by_id
from spin_core.data.repetition import distinct_shares, is_looping
from spin_core.data.sequences import Ints, token_counts, token_ids_in
from spin_core.store.records import AnswerStatistics, ResponseStatistics

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

HISTOGRAM_BINS = 24

MOST_PROMPTS = 10_000
"""Of more prompts than this, distinct-n counts the responses to about so many, the same ones on both sides."""


def answer_statistics(prompts: Iterable[pa.Table], answers: Iterable[pa.Table], rows: int) -> AnswerStatistics:
    """Statistics of both sides of a batch, from tables that follow one another.

    Args:
        prompts: have the human responses, in the columns `id`, `response`, `response_ids` and `finish_reason`.
        answers: have the generated responses, in the same columns. The ids tell which prompt an answer is to, and
            answers to an id that several prompts have are dealt out to them in order.
        rows: the number of prompts.
    """
    every = -(-max(rows, 1) // MOST_PROMPTS)
    human, generated = _Side(prompts, every), _Side(answers, every)
    longest = max((int(side.tokens.max()) for side in (human, generated) if len(side.tokens)), default=0)
    # Both sides share their bins, so that their histograms can be compared.
    bin_tokens = longest // HISTOGRAM_BINS + 1
    rows_NK = rows_by_id(human.ids, generated.ids, len(generated.ids) // max(rows, 1))
    # A prompt without an answer takes the last one here, which does not count.
    is_same_NK = generated.responses[rows_NK] == human.responses[:, None] if len(generated.ids) else rows_NK >= 0
    return AnswerStatistics(
        bin_tokens=bin_tokens,
        real=human.statistics(bin_tokens),
        generated=generated.statistics(bin_tokens),
        same_as_real=int((is_same_NK & (rows_NK >= 0)).sum()),
    )


class _Side:
    """What is counted of one side's responses. Of each, numbers and digests stay in memory."""

    def __init__(self, tables: Iterable[pa.Table], every: int) -> None:
        """Count the responses in some tables; keep the texts of one prompt in `every`, chosen by its id."""
        self.finish_reasons: Counter[str] = Counter()
        self.empty = self.looping = 0
        self.texts: list[str] = []
        tokens, ids, responses = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for table in tables:
            texts = table["response"].to_pylist()
            ids.append(digests_of(id.encode() for id in table["id"].to_pylist()))
            responses.append(digests_of(part.tobytes() for part in token_ids_in(table["response_ids"])))
            tokens.append(token_counts(table["response_ids"]))
            self.finish_reasons.update(table["finish_reason"].to_pylist())
            self.empty += sum(not text.strip() for text in texts)
            self.looping += sum(is_looping(part.tolist()) for part in token_ids_in(table["response_ids"]))
            self.texts += [texts[row] for row in np.flatnonzero(ids[-1] % np.uint64(every) == 0)]
        self.tokens: Ints = np.concatenate(tokens)
        self.ids: Digests = np.concatenate(ids)
        self.responses: Digests = np.concatenate(responses)

    def statistics(self, bin_tokens: int) -> ResponseStatistics:
        """The counts, with a histogram of lengths in bins of so many tokens."""
        tokens = self.tokens
        quantiles = np.quantile(tokens, _QUANTILES, method="nearest") if len(tokens) else ()
        return ResponseStatistics(
            responses=len(tokens),
            mean_tokens=float(tokens.mean()) if len(tokens) else 0.0,
            quantiles=tuple(int(value) for value in quantiles),
            histogram=tuple(np.bincount(tokens // bin_tokens, minlength=HISTOGRAM_BINS).tolist()),
            finish_reasons=dict(sorted(self.finish_reasons.items())),
            empty=self.empty,
            looping=self.looping,
            repeated=len(tokens) - len(np.unique(self.responses)),
            distinct=distinct_shares(self.texts),
        )
