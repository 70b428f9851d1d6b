"""Digests stand for rows: they find repeats, and match answers to prompts, as the rows themselves would."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spin_core.data.files.digests import DigestSet, digests_of, long_digests_of, number_by_appearance, rows_by_id

FEW_TEXTS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"", b"aa"]), max_size=40)


@given(FEW_TEXTS)
def test_numbers_follow_the_first_appearance(rows):
    seen: dict[bytes, int] = {}
    expected = [seen.setdefault(row, len(seen)) for row in rows]
    numbers, first = number_by_appearance(long_digests_of(rows))
    assert numbers.tolist() == expected
    assert first.tolist() == [rows.index(row) for row in seen]


@given(st.lists(FEW_TEXTS, max_size=12))
def test_a_set_of_digests_knows_what_was_added(parts):
    known, digests = set(), DigestSet()
    for rows in parts:
        assert digests.contains(digests_of(rows)).tolist() == [row in known for row in rows]
        known.update(rows)
        digests.add(digests_of(rows))


@given(FEW_TEXTS, FEW_TEXTS, st.integers(1, 3))
def test_answers_are_matched_by_id_in_their_order(prompts, answers, each):
    rows = defaultdict(list)
    for row, id in enumerate(answers):
        rows[id].append(row)
    expected = [[rows[id].pop(0) if rows[id] else -1 for _ in range(each)] for id in prompts]
    assert rows_by_id(digests_of(prompts), digests_of(answers), each).tolist() == expected


def test_no_rows_have_no_matches():
    nothing = digests_of([])
    assert rows_by_id(nothing, nothing, 2).shape == (0, 2)
    assert number_by_appearance(long_digests_of([]))[0].tolist() == []
    assert np.array_equal(DigestSet().contains(digests_of([b"a"])), [False])
