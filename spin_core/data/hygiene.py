"""What generated answers look like beside the human responses: lengths, ends, repetition, diversity.

Counted once, by the phase that generated, from the files that it publishes.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spin_core.data.repetition import distinct_shares, is_looping, slices
from spin_core.store.records import AnswerStatistics, ResponseStatistics

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

BINS = 24


def statistics(prompts: pa.Table, answers: pa.Table) -> AnswerStatistics:
    """Both sides of a batch. `prompts` has the human responses, `answers` the generated ones; their ids pair them."""
    counted = (lengths(side["response_ids"]) for side in (prompts, answers))
    longest = max((int(tokens.max()) for tokens in counted if len(tokens)), default=0)
    width = longest // BINS + 1
    human, said = contents(prompts), contents(answers)
    rows = rows_of(prompts["id"].to_pylist(), answers["id"].to_pylist())
    return AnswerStatistics(
        bin_tokens=width,
        real=side(prompts, width),
        generated=side(answers, width),
        same_as_real=sum(said[row] == human[place] for place, found in enumerate(rows) for row in found),
    )


def rows_of(prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
    """The rows with the answers to each prompt, by the ids of both.

    An id that several prompts have, because people gave it several responses, has its answers dealt out in order,
    equally many to each.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, id in enumerate(prompts):
        places[id].append(place)
    found: defaultdict[str, list[int]] = defaultdict(list)
    for row, id in enumerate(answers):
        found[id].append(row)
    rows: list[list[int]] = [[] for _ in prompts]
    for id, mine in places.items():
        each = len(found[id]) // len(mine)
        for number, place in enumerate(mine):
            rows[place] = found[id][number * each : (number + 1) * each]
    return rows


def side(responses: pa.Table, width: int) -> ResponseStatistics:
    """One side's responses: their columns `response`, `response_ids` and `finish_reason`."""
    texts: list[str] = responses["response"].to_pylist()
    tokens = lengths(responses["response_ids"])
    some = len(tokens) > 0
    return ResponseStatistics(
        responses=len(texts),
        mean_tokens=float(tokens.mean()) if some else 0.0,
        quantiles=tuple(int(value) for value in np.quantile(tokens, QUANTILES, method="nearest")) if some else (),
        histogram=tuple(np.bincount(tokens // width, minlength=BINS).tolist()),
        finish_reasons=dict(sorted(Counter(responses["finish_reason"].to_pylist()).items())),
        empty=sum(not text.strip() for text in texts),
        looping=sum(is_looping(ids.tolist()) for ids in slices(responses["response_ids"])),
        repeated=len(texts) - len(set(contents(responses))),
        distinct=distinct_shares(texts),
    )


def lengths(rows: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Tokens of each row, (rows,)."""
    counts: Sequence[int] = pc.list_value_length(rows).to_numpy()
    return np.asarray(counts, dtype=np.int64)


def contents(responses: pa.Table) -> list[bytes]:
    """Each response's token ids, as something that can be compared and counted."""
    return [ids.tobytes() for ids in slices(responses["response_ids"])]
