"""The cost model: equations by hand, and predictions next to what was measured."""

import dataclasses

import pytest

from spin_core.preflight.machines import work
from spin_core.preflight.machines.work import Work, communication
from spin_core.preflight.sizes import Shape
from tests.support.predictions import comparisons

SHAPE = Shape(
    parameters=10_000_000, layers=2, hidden=100, intermediate=300, query_width=100, key_width=50, vocabulary=1000,
    itemsize=2,
)  # fmt: skip
WEIGHTS = 2 * (2 * 100 * 150 + 3 * 100 * 300)
PEAK, BANDWIDTH = 1e12, 1e30


def working(bandwidth: float = BANDWIDTH) -> Work:
    return Work(SHAPE, PEAK, bandwidth)


@pytest.mark.parametrize("comparison", comparisons(), ids=lambda comparison: comparison.what)
def test_predictions_are_within_a_quarter_of_what_was_measured(comparison):
    assert comparison.ratio == pytest.approx(1, abs=0.25)


def test_products_by_hand():
    tokens, outputs, length = 1_000_000, 400_000, 50
    operations = tokens * (2 * WEIGHTS + 2 * 2 * 100 * length) + outputs * 2 * 100 * 1000
    forward = working().forward(tokens, outputs, length)
    assert forward == pytest.approx(operations / (work.PRODUCTS * PEAK))
    assert working().backward(tokens, outputs, length) == pytest.approx(2 * forward)
    assert working().backward(tokens, outputs, length, frozen=True) == pytest.approx(forward), "only for activations"


def test_few_tokens_wait_for_their_kernels():
    starting = 2 * work.KERNELS * work.START
    assert working().forward(1, 1, 1) == starting
    assert working().decode(1, 1, graphs=False) == starting
    assert working().decode(1, 1, graphs=True) == pytest.approx(work.ENGINE_STEP, rel=1e-3)


def test_a_token_of_each_answer_reads_the_weights_once_and_all_keys_and_values():
    bandwidth = 1e6
    read = 2 * (WEIGHTS + 100 * 1000) + 8 * 30 * (2 * 2 * 50 * 2)
    assert working(bandwidth).decode(8, 30, graphs=False) == pytest.approx(read / (work.BANDWIDTH * bandwidth))


def test_compiled_layers_move_less():
    eager = Work(SHAPE, 1e30, 1e9)
    compiled = dataclasses.replace(eager, compiled=True)
    assert compiled.forward(10**6, 10**5, 10) < 0.5 * eager.forward(10**6, 10**5, 10)


def test_communication_by_hand():
    def seconds(stage: int, passes: int = 3, ranks: int = 4) -> float:
        return communication(SHAPE, ranks=ranks, stage=stage, passes=passes, link=1 / work.LINKS)

    whole = 2 * 10_000_000 * 3 / 4
    assert [seconds(stage) for stage in range(4)] == pytest.approx([2 * whole, 2 * whole, 4 * whole, 9 * whole])
    assert seconds(3, ranks=1) == 0


def test_an_adapter_has_two_factors_for_each_product():
    pairs = [(100, 100), (100, 50), (100, 50), (100, 100), (100, 300), (100, 300), (300, 100)]
    assert work.adapter_weights(SHAPE, 4) == 2 * 4 * sum(one + other for one, other in pairs)
