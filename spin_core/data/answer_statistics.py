"""What generated answers look like next to the human responses: lengths, ends, repetition, diversity.

Counted once, by the phase that generates, from the files that it publishes.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from spin_core.data.repetition import distinct_shares, is_looping
from spin_core.data.sequences import token_counts, token_ids_in
from spin_core.store.records import AnswerStatistics, ResponseStatistics

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

HISTOGRAM_BINS = 24


def answer_statistics(prompts: pa.Table, answers: pa.Table) -> AnswerStatistics:
    """Statistics of both sides of a batch.

    Args:
        prompts: has the human responses, in the columns `id`, `response`, `response_ids` and `finish_reason`.
        answers: has the generated responses, in the same columns. The ids tell which prompt an answer is to.
    """
    counts = (token_counts(side["response_ids"]) for side in (prompts, answers))
    longest = max((int(tokens.max()) for tokens in counts if len(tokens)), default=0)
    # Both sides share their bins, so that their histograms can be compared.
    bin_tokens = longest // HISTOGRAM_BINS + 1
    human, generated = _comparable_ids(prompts), _comparable_ids(answers)
    rows = answer_rows(prompts["id"].to_pylist(), answers["id"].to_pylist())
    return AnswerStatistics(
        bin_tokens=bin_tokens,
        real=_side_statistics(prompts, bin_tokens),
        generated=_side_statistics(answers, bin_tokens),
        same_as_real=sum(
            generated[row] == human[prompt] for prompt, prompt_rows in enumerate(rows) for row in prompt_rows
        ),
    )


def answer_rows(prompt_ids: Sequence[str], answer_ids: Sequence[str]) -> list[list[int]]:
    """For each prompt the rows of its answers, matched by id.

    An id that several prompts have, because people gave it several responses, has its answers dealt out in order, the
    same number to each prompt.
    """
    prompts_by_id: defaultdict[str, list[int]] = defaultdict(list)
    for prompt, id in enumerate(prompt_ids):
        prompts_by_id[id].append(prompt)
    answers_by_id: defaultdict[str, list[int]] = defaultdict(list)
    for row, id in enumerate(answer_ids):
        answers_by_id[id].append(row)
    rows: list[list[int]] = [[] for _ in prompt_ids]
    for id, same_id in prompts_by_id.items():
        each = len(answers_by_id[id]) // len(same_id)
        for number, prompt in enumerate(same_id):
            rows[prompt] = answers_by_id[id][number * each : (number + 1) * each]
    return rows


def _side_statistics(responses: pa.Table, bin_tokens: int) -> ResponseStatistics:
    """Statistics of one side's responses."""
    texts: list[str] = responses["response"].to_pylist()
    tokens = token_counts(responses["response_ids"])
    quantiles = np.quantile(tokens, _QUANTILES, method="nearest") if len(tokens) else ()
    return ResponseStatistics(
        responses=len(texts),
        mean_tokens=float(tokens.mean()) if len(tokens) else 0.0,
        quantiles=tuple(int(value) for value in quantiles),
        histogram=tuple(np.bincount(tokens // bin_tokens, minlength=HISTOGRAM_BINS).tolist()),
        finish_reasons=dict(sorted(Counter(responses["finish_reason"].to_pylist()).items())),
        empty=sum(not text.strip() for text in texts),
        looping=sum(is_looping(ids.tolist()) for ids in token_ids_in(responses["response_ids"])),
        repeated=len(texts) - len(set(_comparable_ids(responses))),
        distinct=distinct_shares(texts),
    )


def _comparable_ids(responses: pa.Table) -> list[bytes]:
    """Each response's token ids as bytes, which can be compared and hashed."""
    return [ids.tobytes() for ids in token_ids_in(responses["response_ids"])]
