"""The order of the data, micro-batches, and how a batch is dealt out to ranks."""

import numpy as np
import pytest

from spin_core.data import batches
from spin_core.data.batches import DataOrder, assign_ranks, deal, deal_padded, micro_batches

LENGTHS = np.random.default_rng(0).integers(1, 300, 200)


def test_an_epoch_holds_each_item_once_and_epochs_differ():
    order = DataOrder(items=10, batch_size=4, seed=1)
    epochs = [np.concatenate([order.batch(3 * epoch + i) for i in range(3)]).tolist() for epoch in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert len(order.batch(2)) == 2


def test_a_batch_depends_on_its_step_alone():
    order, same = DataOrder(10, 4, seed=1), DataOrder(10, 4, seed=1)
    assert order.batch(7).tolist() == [same.batch(step) for step in (0, 4, 7)][-1].tolist()
    assert order.batch(7).tolist() != DataOrder(10, 4, seed=2).batch(7).tolist()


@pytest.mark.parametrize("max_tokens", [1, 300, 1000, 10**6])
@pytest.mark.parametrize("rows_each", [1, 2])
def test_micro_batches_hold_each_item_once_within_the_budget(max_tokens, rows_each):
    parts = list(micro_batches(LENGTHS, rows_each, max_tokens))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LENGTHS)))
    assert all(LENGTHS[part].max() * rows_each * len(part) <= max_tokens or len(part) == 1 for part in parts)


def test_micro_batches_hold_little_padding():
    parts = list(micro_batches(LENGTHS, 2, 16384))
    padded = sum(LENGTHS[part].max() * len(part) for part in parts)
    assert LENGTHS.sum() / padded > 0.85
    assert LENGTHS.sum() / (LENGTHS.max() * len(LENGTHS)) < 0.55  # what one padded batch would hold


def test_equal_lengths_share_passes_as_large_as_the_budget():
    assert [len(part) for part in micro_batches(np.full(10, 7), 1, 28)] == [4, 4, 2]


def test_no_items_make_no_micro_batches():
    assert list(micro_batches(np.zeros(0, np.int64), 2, 100)) == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_item_is_assigned_once_no_micro_batch_is_too_large_and_loads_are_similar(ranks):
    tokens = np.random.default_rng(1).integers(20, 400, 96)
    shares = deal(tokens, ranks, 2048)
    assert sorted(np.concatenate([part for share in shares for part in share])) == list(range(96))
    loads = [[int(tokens[part].sum()) for part in share] for share in shares]
    assert len({len(share) for share in shares}) == 1, "all ranks take equally many turns"
    assert max(map(max, loads)) <= 2048
    assert max(map(sum, loads)) <= 1.02 * min(map(sum, loads))
    assert [[part.tolist() for part in share] for share in deal(tokens, ranks, 2048)] == [
        [part.tolist() for part in share] for share in shares
    ]


@pytest.mark.parametrize(("shortest", "longest", "expected"), [(501, 1000, 4000), (334, 500, 2000), (251, 333, 1334)])
def test_items_of_a_large_share_of_the_budget_take_few_fillings(shortest, longest, expected, monkeypatch):
    """More than half of it: one in a micro-batch; more than a third: two. Trying each number would be quadratic."""
    fillings = []
    fill = batches._fill_evenly
    monkeypatch.setattr(batches, "_fill_evenly", lambda *arguments: fillings.append(arguments) or fill(*arguments))
    tokens_B = np.random.default_rng(0).integers(shortest, longest, 4000, endpoint=True)
    (parts,) = deal(tokens_B, 1, 1000)
    assert expected <= len(parts) <= 1.01 * expected
    assert all(len(part) == 1 or tokens_B[part].sum() <= 1000 for part in parts)
    assert len(fillings) < 20


def test_an_item_that_is_too_long_gets_its_own_batch():
    assert [part.tolist() for part in deal(np.array([10, 5000, 10]), 1, 100)[0]] == [[1], [0, 2]]


@pytest.mark.parametrize("share_out", [lambda n: deal(n, 4, 100), lambda n: deal_padded(n, 2, 4, 100)])
def test_with_fewer_items_than_ranks_some_have_nothing_to_do(share_out):
    shares = share_out(np.array([10, 20]))
    assert sorted(len(part) for share in shares for part in share) == [0, 0, 1, 1]
    assert len({len(share) for share in shares}) == 1


def test_ranks_get_loads_as_equal_as_prompts_allow_and_always_the_same():
    tokens_G = np.random.default_rng(0).integers(1, 100, 500)
    rank_G = assign_ranks(tokens_G, 8)
    loads = np.bincount(rank_G, weights=tokens_G)
    assert loads.max() - loads.min() <= 2
    np.testing.assert_array_equal(assign_ranks(tokens_G, 8), rank_G)
    assert assign_ranks(np.array([5, 1, 9, 1]), 2).tolist() == [1, 1, 0, 1]
    assert assign_ranks(tokens_G, 1).max() == 0
    assert assign_ranks(np.array([3]), 4).tolist() == [0]
