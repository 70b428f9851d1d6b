"""Packed rows against plain ones, in every family of models: the same log-probabilities, the same gradients."""

import numpy as np
import pytest
import torch

from spin_core.models.attention import PACKED
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import packed_rows, padded_rows
from tests.support.models.attention_families import (
    APART,
    FAMILIES,
    SEQUENCES,
    TOGETHER,
    model_of,
    values_and_gradients,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_padded_ones_with_and_without_shared_prompts(family):
    want = values_and_gradients(ResponseLogps(model_of(FAMILIES[family])), padded_rows(SEQUENCES, np.arange(6)))
    packed = ResponseLogps(model_of(FAMILIES[family]), pack=PACKED)
    assert packed.packed, "this family takes packed rows"
    for groups in (TOGETHER, APART):
        results = values_and_gradients(packed, packed_rows(SEQUENCES, np.arange(6), groups))
        for result, expected in zip(results, want, strict=True):
            torch.testing.assert_close(result, expected, rtol=2e-4, atol=2e-5)


def test_a_response_does_not_see_the_other_one():
    packed = ResponseLogps(model_of(FAMILIES["llama"]), pack=PACKED)
    rows = packed_rows(SEQUENCES, np.arange(6), TOGETHER)
    with torch.no_grad():
        before = packed(rows)
        rows.input_ids_NT[0, rows.input_ids_NT[0] >= 30] = 39  # all that was generated
        after = packed(rows)
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:5], after[3:5])


def test_recomputed_layers_see_the_same_rows():
    from spin_core.config.train import TrainConfig
    from spin_core.training.player import prepare

    results = []
    for recompute in (False, True):
        packed = ResponseLogps(model_of(FAMILIES["llama"]), pack=PACKED)
        prepare(packed.model, TrainConfig(gradient_checkpointing=recompute))
        results.append(values_and_gradients(packed, packed_rows(SEQUENCES, np.arange(6), TOGETHER)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
