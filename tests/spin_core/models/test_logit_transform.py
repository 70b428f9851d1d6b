"""What models do to the logits of their output layer, found by asking them."""

import logging

import pytest
import torch
from transformers import CohereConfig, Gemma2Config

from spin_core.data.sequences import Sequences
from spin_core.models import logit_transform, probe
from spin_core.models.logit_transform import LogitTransform, logit_transform_of
from spin_core.models.logps import ResponseLogps, sequence_logps
from spin_core.models.packing import padded_rows
from tests.support.models.logit_models import cohere, gemma2, gpt2, granite, llama

PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14, 15]]
RESPONSES = [[20, 21, 2], [22], [23, 24, 25, 26, 27, 2], []]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("make", "transform"),
    [
        (llama, LogitTransform()),
        (gpt2, LogitTransform()),
        (gemma2, LogitTransform(cap=1.5)),
        (cohere, LogitTransform(scale=0.3)),
        (granite, LogitTransform(scale=1 / 7)),
    ],
)
def test_a_transform_after_the_output_layer_is_detected(make, transform, dtype):
    assert logit_transform_of(make().to(dtype).eval()) == transform


def test_a_model_with_an_unknown_logit_transform_computes_all_logits_and_reports_it(monkeypatch, caplog):
    model = cohere().eval()
    want = sequence_logps(model, PROMPTS, RESPONSES, 1000)
    monkeypatch.setattr(logit_transform, "_SCALES", ())
    with caplog.at_level(logging.INFO, "spin_core"):
        logps = ResponseLogps(model)
    assert not logps.direct
    assert "CohereForCausalLM does more than project to its vocabulary: all its logits are computed" in caplog.text
    values = logps(padded_rows(Sequences.of(PROMPTS, RESPONSES), torch.arange(4).numpy()))
    torch.testing.assert_close(values, want, rtol=1e-5, atol=1e-5)
    assert probe.needs_all_logits(CohereConfig())
    monkeypatch.undo()
    assert not probe.needs_all_logits(CohereConfig())
    assert not probe.needs_all_logits(Gemma2Config())
