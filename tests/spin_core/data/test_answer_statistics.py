"""What is counted of generated answers, by hand."""

import pyarrow as pa
import pytest

from spin_core.data.answer_statistics import HISTOGRAM_BINS, answer_statistics
from spin_core.store.records import AnswerStatistics

LOOP = [7] * 40


def responses(*rows: tuple[str, str, list[int], str]) -> pa.Table:
    """A table of (id, text, token ids, finish reason)."""
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    types = [pa.string(), pa.string(), pa.list_(pa.int32()), pa.string()]
    names = ["id", "response", "response_ids", "finish_reason"]
    return pa.table([pa.array(c, type=t) for c, t in zip(columns, types, strict=True)], names=names)


@pytest.fixture
def statistics() -> AnswerStatistics:
    human = responses(
        ("a", "one two three", [1, 2, 3], "stop"),
        ("a", "four", [4], "stop"),
        ("b", "one two three", [1, 2, 3], "stop"),
        ("c", "five", list(range(48)), "length"),
    )
    answers = responses(
        ("a", "", [0], "stop"),
        ("a", "four", [4], "stop"),
        ("b", "four", [4], "stop"),
        ("c", "so so so", LOOP, "length"),
    )
    return answer_statistics([human.slice(0, 3), human.slice(3)], [answers.slice(0, 1), answers.slice(1)], rows=4)


def test_faults_are_counted(statistics):
    generated = statistics.generated
    assert (generated.responses, generated.empty, generated.looping) == (4, 1, 1)
    assert generated.finish_reasons == {"length": 1, "stop": 3}
    assert (statistics.real.empty, statistics.real.looping) == (0, 0)


def test_an_answer_is_compared_with_the_human_response_that_it_is_paired_with(statistics):
    assert statistics.same_as_real == 1, "the second answer to a, not the one to b"


def test_an_answer_counts_as_repeated_for_any_prompt(statistics):
    assert (statistics.generated.repeated, statistics.real.repeated) == (1, 1)


def test_lengths_of_both_sides_share_their_bins(statistics):
    assert statistics.bin_tokens == 3, f"48 tokens in {HISTOGRAM_BINS} bins"
    assert statistics.real.histogram == (1, 2, *(0,) * 14, 1, *(0,) * 7)
    assert statistics.generated.histogram == (3, *(0,) * 12, 1, *(0,) * 10)
    assert len(statistics.real.histogram) == len(statistics.generated.histogram) == HISTOGRAM_BINS
    assert statistics.real.quantiles == (1, 1, 3, 3, 3, 48, 48)
    assert statistics.generated.mean_tokens == 43 / 4


def test_diversity_is_that_of_all_responses_of_a_side_together(statistics):
    assert statistics.real.distinct == (5 / 8, 2 / 4, 1 / 2)
    assert statistics.generated.distinct == (2 / 5, 1 / 2, 1.0)


def test_of_many_prompts_the_diversity_of_some_is_counted_the_same_on_both_sides(monkeypatch):
    monkeypatch.setattr("spin_core.data.answer_statistics.MOST_PROMPTS", 50)
    rows = responses(*((f"id-{n}", f"word-{n} again", [n], "stop") for n in range(200)))
    counted = answer_statistics([rows], [rows.take(list(range(199, -1, -1)))], rows=200)
    assert counted.real == counted.generated
    assert counted.real.responses == 200
    # Among n texts of one word of their own and one that all have, distinct-1 is (n + 1) / 2n.
    texts = 1 / (2 * counted.real.distinct[0] - 1)
    assert 20 < texts < 90


def test_without_a_response_there_is_nothing_to_count():
    nothing = answer_statistics([responses()], [responses()], rows=0)
    assert nothing.generated.quantiles == ()
    assert (nothing.bin_tokens, nothing.real.histogram, nothing.same_as_real) == (1, (0,) * HISTOGRAM_BINS, 0)


def test_statistics_survive_json(statistics):
    assert AnswerStatistics.model_validate_json(statistics.model_dump_json()) == statistics
