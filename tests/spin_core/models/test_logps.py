"""Log-probabilities of responses, against sums over the model's own logits."""

import math

import pytest
import torch
from torch.nn import functional as F

from spin_core.data.sequences import Sequences
from spin_core.models.logps import ResponseLogps, sequence_logps, sequence_logps_at
from spin_core.models.packing import padded_rows
from spin_core.models.vocabulary_loss import ItemLosses
from tests.support.models.logit_models import cohere, gemma2, gpt2, granite, llama
from tests.support.models.tensor_sizes import LargestFloat32
from tests.support.models.wide_model import VOCABULARY

PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14, 15]]
RESPONSES = [[20, 21, 2], [22], [23, 24, 25, 26, 27, 2], []]


@pytest.fixture(params=[llama, gpt2, gemma2, cohere, granite])
def model(request):
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that probabilities are far from uniform
    return model


def naive(model, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """One sequence alone, token by token, from the model's own logits."""
    ids = torch.tensor([prompt + response])
    logps = F.log_softmax(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float() / temperature, -1)
    return sum((logps[len(prompt) + i - 1, token] for i, token in enumerate(response)), torch.zeros(()))


def test_values_are_the_sums_over_the_models_own_logits(model):
    want = torch.stack([naive(model, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(sequence_logps(model, PROMPTS, RESPONSES, 1000), want.detach(), rtol=1e-5, atol=1e-5)


def test_a_batch_equals_its_singles_however_it_is_cut(model):
    whole = sequence_logps(model, PROMPTS, RESPONSES, 1000)
    for budget in (1, 12):
        torch.testing.assert_close(sequence_logps(model, PROMPTS, RESPONSES, budget), whole, rtol=1e-5, atol=1e-5)


def test_a_temperature_divides_the_logits(model):
    want = torch.stack([naive(model, *pair, temperature=0.7) for pair in zip(PROMPTS, RESPONSES, strict=True)])
    logps = sequence_logps(model, PROMPTS, RESPONSES, 1000, temperature=0.7)
    torch.testing.assert_close(logps, want.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2, gemma2, cohere])
def test_several_temperatures_from_one_pass_are_those_of_a_pass_for_each(make):
    model = make().eval()
    logps_KS = sequence_logps_at(model, PROMPTS, RESPONSES, 12, (0.3, 0.7, 1.0))
    for temperature, logps_S in zip((0.3, 0.7, 1.0), logps_KS, strict=True):
        assert torch.equal(logps_S, sequence_logps(model, PROMPTS, RESPONSES, 12, temperature))
    want = torch.stack([naive(model, *pair, temperature=0.3) for pair in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(logps_KS[0], want.detach(), rtol=1e-5, atol=1e-5)


def test_uniform_logits_give_the_logarithm_of_the_vocabulary_a_token():
    model = llama().eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    logps = sequence_logps(model, PROMPTS, RESPONSES, 1000)
    torch.testing.assert_close(logps, torch.tensor([-3.0, -1, -6, 0]) * math.log(VOCABULARY))


def test_the_end_of_turn_counts_where_it_is_present():
    model = gpt2().eval()
    with_end, without = sequence_logps(model, [[5], [5]], [[6, 2], [6]], 1000).tolist()
    assert with_end - without == pytest.approx(
        F.log_softmax(model(torch.tensor([[5, 6]])).logits[0, -1], -1)[2].item(), abs=1e-5
    )


def test_padding_and_tokens_next_to_it_change_nothing(model):
    sequences = Sequences.of(PROMPTS, RESPONSES)
    rows = padded_rows(sequences, torch.arange(4).numpy())
    logps = ResponseLogps(model)
    want = logps(rows)
    inside = torch.arange(rows.input_ids_NT.shape[1]) < torch.from_numpy(sequences.lengths_S)[:, None]
    rows.input_ids_NT[~inside] = 33
    assert torch.equal(logps(rows), want)


def test_a_response_is_not_scored_by_the_tokens_after_it(model):
    alone, longer = sequence_logps(model, [[5, 6], [5, 6, 7]], [[7], [8, 9]], 1000)
    both = sequence_logps(model, [[5, 6]], [[7, 8, 9]], 1000)
    torch.testing.assert_close(alone + longer, both[0], rtol=1e-5, atol=1e-5)


def test_loss_and_gradient_equal_those_of_all_logits_at_once(model):
    """Of two items with two responses each; the loss joins an item's two, and bends."""
    weights_B = torch.tensor([1.0, -2.0])
    sequences = Sequences.of(PROMPTS, RESPONSES)
    rows = padded_rows(sequences, torch.arange(4).numpy())

    def losses(logps_Pb: torch.Tensor, items: slice) -> torch.Tensor:
        return weights_B[items] * F.softplus(logps_Pb[1] - 0.5 * logps_Pb[0])

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    each = torch.stack([naive(model, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)])
    want = gradients(losses(each.view(2, 2), slice(None)).sum())
    tokens_PB = (sequences.lengths_S - sequences.prompts_S).reshape(2, 2)
    for chunk_logits in (3 * VOCABULARY, 9 * VOCABULARY, 2**20, None):
        loss, logps = ResponseLogps(model, chunk_logits=chunk_logits)(rows, ItemLosses(tokens_PB, losses))
        torch.testing.assert_close(logps, each.detach(), rtol=1e-5, atol=1e-5)
        assert not logps.requires_grad
        for gradient, expected in zip(gradients(loss), want, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("make", [llama, gemma2, cohere])
def test_nor_does_it_for_logits_that_are_scaled_or_capped(make):
    model, long = make().eval(), [[20, 21, 22, 23, 24, 25] * 20] * 4
    sequences = Sequences.of(PROMPTS, long)
    rows, tokens_PB = padded_rows(sequences, torch.arange(4).numpy()), torch.full((2, 2), 120).numpy()
    with LargestFloat32(wide=VOCABULARY) as seen:
        logps = ResponseLogps(model, chunk_logits=60 * VOCABULARY)
        logps(rows, ItemLosses(tokens_PB, lambda logps_Pb, _: logps_Pb[0]))[0].backward()
    assert seen.elements == (30 if make is gemma2 else 60) * VOCABULARY, "not the 480 response tokens' logits"


def test_scoring_leaves_no_gradient_behind():
    assert not sequence_logps(llama().eval(), PROMPTS, RESPONSES, 1000).requires_grad
