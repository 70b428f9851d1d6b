"""The loss and its gradient, computed while logits are in memory: against autograd over all logits at once."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spin_core.models.vocabulary_loss import ItemLosses, fused_loss
from spin_core.models.vocabulary_projection import linear_logps
from tests.support.models.tensor_sizes import LargestFloat32


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
    loss, logps = fused_loss(hidden, weight, bias, target, weighted(grad), 1.7, 33)
    torch.testing.assert_close(logps, want.detach())
    torch.testing.assert_close(linear_logps(hidden, weight, bias, target, 1.7, 33), logps)
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
    inputs, results = (hidden, weight, bias), []
    for compiled in (False, True):
        loss, logps = fused_loss(*inputs, target, weighted(grad), 1.7, 30 * 50, cap=cap, compiled=compiled)
        results.append((logps, *torch.autograd.grad(loss, inputs)))
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(results[0], results[1], **near)


def test_frozen_weights_get_no_gradient():
    hidden, weight = torch.randn(4, 5, requires_grad=True), torch.randn(11, 5)
    fused_loss(hidden, weight, None, torch.arange(4), weighted(torch.ones(4)), 1.0, 100)[0].backward()
    assert hidden.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("responses", [64, 1], ids=["many short responses", "one long response"])
def test_no_matrix_of_tokens_by_vocabulary_ever_exists(responses):
    tokens, vocabulary, chunk = 64, 500, 4000
    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    tokens_PB = torch.full((1, responses), tokens // responses).numpy()
    with LargestFloat32() as seen:
        losses = ItemLosses(tokens_PB, lambda logps_Pb, _: logps_Pb[0])
        fused_loss(hidden, weight, None, torch.arange(tokens), losses, 1.0, chunk)[0].backward()
    assert chunk == seen.elements < tokens * vocabulary


class Products(TorchDispatchMode):
    """Counts the products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::mm", "aten::addmm", "aten::addmm_")
        return func(*args, **(kwargs or {}))


def test_logits_are_computed_once_within_a_chunk():
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
    logps = linear_logps(hidden, weight, None, target, 1.0, 2**20)
    assert logps.dtype == torch.float32
    logits = F.linear(hidden, weight)
    want = F.log_softmax(logits.float(), -1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logps, want, rtol=0, atol=1e-6)
    rounded = F.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]
    assert abs(logps - rounded.float()).max() > 1e-3
