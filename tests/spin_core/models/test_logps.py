"""Log-probabilities of responses, against sums over the model's own logits."""

import logging
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from wide_model import SMALL, VOCABULARY, WIDE

from spin_core.data.sequences import Sequences
from spin_core.models import probe
from spin_core.models.logps import Ending, ResponseLogps, ending_of, sequence_logps
from spin_core.models.packing import padded_rows
from spin_core.models.vocabulary_loss import ItemLosses, fused_loss, linear_logps

PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14, 15]]
RESPONSES = [[20, 21, 2], [22], [23, 24, 25, 26, 27, 2], []]


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**WIDE))


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def gemma2() -> Gemma2ForCausalLM:
    """Its logits are capped: 1.5 * tanh(logits / 1.5)."""
    return Gemma2ForCausalLM(Gemma2Config(**WIDE, head_dim=8, final_logit_softcapping=1.5, attn_implementation="eager"))


def cohere() -> CohereForCausalLM:
    """Its logits are scaled."""
    return CohereForCausalLM(CohereConfig(**WIDE, logit_scale=0.3))


def granite() -> GraniteForCausalLM:
    """Its logits are divided."""
    return GraniteForCausalLM(GraniteConfig(**WIDE, logits_scaling=7.0))


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
    have = sequence_logps(model, PROMPTS, RESPONSES, 1000, temperature=0.7)
    torch.testing.assert_close(have, want.detach(), rtol=1e-5, atol=1e-5)


def test_uniform_logits_give_the_logarithm_of_the_vocabulary_a_token():
    model = llama().eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    have = sequence_logps(model, PROMPTS, RESPONSES, 1000)
    torch.testing.assert_close(have, torch.tensor([-3.0, -1, -6, 0]) * math.log(VOCABULARY))


def test_the_end_of_turn_counts_where_it_is_present():
    model = gpt2().eval()
    with_end, without = sequence_logps(model, [[5], [5]], [[6, 2], [6]], 1000).tolist()
    assert with_end - without == pytest.approx(
        F.log_softmax(model(torch.tensor([[5, 6]])).logits[0, -1], -1)[2].item(), abs=1e-5
    )


def test_padding_and_the_tokens_beside_it_change_nothing(model):
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
        for one, other in zip(gradients(loss), want, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("make", "ending"),
    [
        (llama, Ending()),
        (gpt2, Ending()),
        (gemma2, Ending(cap=1.5)),
        (cohere, Ending(scale=0.3)),
        (granite, Ending(scale=1 / 7)),
    ],
)
def test_what_comes_after_the_output_layer_is_noticed(make, ending, dtype):
    assert ending_of(make().to(dtype).eval()) == ending


def test_a_model_whose_logits_are_made_in_a_way_that_is_not_known_computes_them_all_and_says_so(monkeypatch, caplog):
    model = cohere().eval()
    want = sequence_logps(model, PROMPTS, RESPONSES, 1000)
    monkeypatch.setattr("spin_core.models.logps.SCALES", ())
    with caplog.at_level(logging.INFO, "spin_core"):
        logps = ResponseLogps(model)
    assert not logps.direct
    assert "CohereForCausalLM does more than project to its vocabulary: all its logits are computed" in caplog.text
    have = logps(padded_rows(Sequences.of(PROMPTS, RESPONSES), torch.arange(4).numpy()))
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)
    assert probe.needs_all_logits(CohereConfig())
    monkeypatch.undo()
    assert not probe.needs_all_logits(CohereConfig())
    assert not probe.needs_all_logits(Gemma2Config())


def weighted(grad_R: torch.Tensor) -> ItemLosses:
    """Of responses of one token each: the log-probabilities times `grad`."""
    return ItemLosses(
        torch.ones((1, len(grad_R)), dtype=torch.int64).numpy(), lambda logps_Pb, b: logps_Pb[0] * grad_R[b]
    )


def test_the_projection_with_bias_and_temperature_has_autograds_gradient():
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((7, 5), (11, 5), (11,)))
    target, grad = torch.randint(0, 11, (7,)), torch.randn(7)
    want = F.log_softmax(F.linear(hidden, weight, bias) / 1.7, -1).gather(1, target[:, None])[:, 0]
    loss, have = fused_loss(hidden, weight, bias, target, weighted(grad), 1.7, 33)
    torch.testing.assert_close(have, want.detach())
    torch.testing.assert_close(linear_logps(hidden, weight, bias, target, 1.7, 33), have)
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, (hidden, weight, bias)),
        torch.autograd.grad(want, (hidden, weight, bias), 3 * grad),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("dtype", "cap"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, 2.0)], ids=str
)
def test_compiled_passes_over_the_logits_give_what_plain_ones_give(dtype, cap):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(*shape).to(dtype).requires_grad_() for shape in ((70, 8), (50, 8)))
    bias = torch.randn(50).to(dtype).requires_grad_()
    target, grad = torch.randint(0, 50, (70,)), torch.randn(70)
    inputs, found = (hidden, weight, bias), []
    for compiled in (False, True):
        loss, logps = fused_loss(*inputs, target, weighted(grad), 1.7, 30 * 50, cap=cap, compiled=compiled)
        found.append((logps, *torch.autograd.grad(loss, inputs)))
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(found[0], found[1], **near)


def test_frozen_weights_get_no_gradient():
    hidden, weight = torch.randn(4, 5, requires_grad=True), torch.randn(11, 5)
    fused_loss(hidden, weight, None, torch.arange(4), weighted(torch.ones(4)), 1.0, 100)[0].backward()
    assert hidden.grad is not None
    assert weight.grad is None


class LargestFloat32(TorchDispatchMode):
    """Notes the most elements that any float32 tensor of a computation has, or any of `wide` rows."""

    def __init__(self, wide: int | None = None) -> None:
        super().__init__()
        self.elements, self.wide = 0, wide

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
                continue
            if self.wide in (None, *tensor.shape[-1:]):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("responses", [64, 1], ids=["many short responses", "one long response"])
def test_no_matrix_of_tokens_by_vocabulary_ever_exists(responses):
    tokens, vocabulary, chunk = 64, 500, 4000
    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    tokens_PB = torch.full((1, responses), tokens // responses).numpy()
    with LargestFloat32() as seen:
        losses = ItemLosses(tokens_PB, lambda logps_Pb, _: logps_Pb[0])
        fused_loss(hidden, weight, None, torch.arange(tokens), losses, 1.0, chunk)[0].backward()
    assert chunk == seen.elements < tokens * vocabulary


@pytest.mark.parametrize("make", [llama, gemma2, cohere])
def test_nor_does_it_for_logits_that_are_scaled_or_capped(make):
    model, long = make().eval(), [[20, 21, 22, 23, 24, 25] * 20] * 4
    sequences = Sequences.of(PROMPTS, long)
    rows, tokens_PB = padded_rows(sequences, torch.arange(4).numpy()), torch.full((2, 2), 120).numpy()
    with LargestFloat32(wide=VOCABULARY) as seen:
        logps = ResponseLogps(model, chunk_logits=60 * VOCABULARY)
        logps(rows, ItemLosses(tokens_PB, lambda logps_Pb, _: logps_Pb[0]))[0].backward()
    assert seen.elements == (30 if make is gemma2 else 60) * VOCABULARY, "not the 480 response tokens' logits"


class Products(TorchDispatchMode):
    """Counts the products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::mm", "aten::addmm", "aten::addmm_")
        return func(*args, **(kwargs or {}))


def test_logits_are_computed_once_but_for_what_exceeds_a_chunk():
    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)

    def products(tokens_PB: list[list[int]], chunk_tokens: int) -> int:
        losses = ItemLosses(torch.tensor(tokens_PB).numpy(), lambda logps_Pb, _: logps_Pb.sum(0))
        with Products() as seen:
            fused_loss(hidden, weight, None, torch.arange(12), losses, 1.0, chunk_tokens * 50)
        return seen.count

    assert products([[3, 3], [3, 3]], 12) == 3
    assert products([[3, 3], [3, 3]], 6) == 2 * 3
    assert products([[6], [6]], 6) == 2 * 3 + 1


def test_bfloat16_weights_get_a_float32_softmax():
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    target = torch.randint(0, 50, (300,))
    have = linear_logps(hidden, weight, None, target, 1.0, 2**20)
    assert have.dtype == torch.float32
    logits = F.linear(hidden, weight)
    want = F.log_softmax(logits.float(), -1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(have, want, rtol=0, atol=1e-6)
    rounded = F.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]
    assert abs(have - rounded.float()).max() > 1e-3


def test_scoring_leaves_no_gradient_behind():
    assert not sequence_logps(llama().eval(), PROMPTS, RESPONSES, 1000).requires_grad
