"""Packed rows on a GPU, by each kernel, against padded rows in float32: the same log-probabilities and gradients."""

import numpy as np
import pytest
import torch

from spin_core.models.attention import PACKED, VARLEN, choose_implementation
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import packed_rows, padded_rows
from tests.support.models.attention_families import APART, FAMILIES, SEQUENCES, TOGETHER, model_of, values_and_gradients

WIDER = {
    family: type(config)(**{**config.to_diff_dict(), "hidden_size": 64, "head_dim": 16})
    for family, config in FAMILIES.items()
    if family != "gpt2"
}
"""The same with heads as wide as the kernels for a GPU want them."""


def relative(result: torch.Tensor, want: torch.Tensor) -> float:
    """The difference's norm over that of what is wanted."""
    return float((result.float() - want.float()).norm() / want.float().norm().clamp(min=1e-12))


def logps_and_gradients(config, dtype: torch.dtype, kernel: str | None, groups: np.ndarray) -> list[torch.Tensor]:
    model = model_of(config).to("cuda", dtype)
    logps = ResponseLogps(model, pack=kernel)
    assert logps.packed is (kernel is not None), f"{config.model_type} takes packed rows by {kernel}"
    rows = packed_rows(SEQUENCES, np.arange(6), groups) if kernel else padded_rows(SEQUENCES, np.arange(6))
    return values_and_gradients(logps, rows.to("cuda"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [TOGETHER, APART], ids=["shared prompts", "prompts apart"])
def test_sdpa_in_float32(family, groups):
    want, result = (logps_and_gradients(FAMILIES[family], torch.float32, kernel, groups) for kernel in (None, PACKED))
    for tensor, other in zip(result, want, strict=True):
        torch.testing.assert_close(tensor, other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("family", WIDER)
@pytest.mark.parametrize("groups", [TOGETHER, APART], ids=["shared prompts", "prompts apart"])
def test_variable_length_in_bfloat16_is_as_near_to_float32_as_padded_rows_are(family, groups):
    exact = logps_and_gradients(WIDER[family], torch.float32, None, groups)
    padded, result = (logps_and_gradients(WIDER[family], torch.bfloat16, kernel, groups) for kernel in (None, VARLEN))
    for tensor, other, want in zip(result, padded, exact, strict=True):
        assert relative(tensor, want) < max(2 * relative(other, want), 0.03)


def test_auto_selects_variable_length_kernels_only_in_half_precision():
    assert choose_implementation("auto", model_of(FAMILIES["llama"]).to("cuda", torch.bfloat16)) == PACKED, "heads of 4"
    model = model_of(WIDER["llama"]).cuda()
    assert choose_implementation("auto", model) == PACKED
    assert choose_implementation("auto", model.bfloat16()) == VARLEN
    assert choose_implementation("sdpa", model) == PACKED
