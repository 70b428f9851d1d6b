"""The optimizer and its learning rates."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spin_core.config.train import TrainConfig
from spin_core.training.optim import MAX_GROUP_NUMBERS, SingleDeviceStepper, group_weights, learning_rate_at

PAPER = 5e-7
"""The paper's peak learning rate."""


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 4, bias=False).to(dtype)


def step(model: nn.Module, optimizer: SingleDeviceStepper, rate: float, grad: torch.Tensor) -> float:
    optimizer.backward((model.weight * grad.to(model.weight.dtype)).sum(), last=True)
    return optimizer.step(rate).item()


def single(model: nn.Module, config: TrainConfig) -> SingleDeviceStepper:
    """The optimizer of a model of one layer."""
    return SingleDeviceStepper(SimpleNamespace(model=model, add_gradients_to=lambda _masters: None), config)


def test_rmsprop_by_hand():
    model, grad = layer(), torch.linspace(-1, 1, 32).view(4, 8)
    before = model.weight.detach().clone()
    optimizer = single(model, TrainConfig(max_grad_norm=0))
    step(model, optimizer, 0.01, grad)
    once = before - 0.01 * grad / ((0.01 * grad**2).sqrt() + 1e-8)
    torch.testing.assert_close(model.weight.detach(), once)
    step(model, optimizer, 0.02, grad)
    square = 0.99 * 0.01 * grad**2 + 0.01 * grad**2
    torch.testing.assert_close(model.weight.detach(), once - 0.02 * grad / (square.sqrt() + 1e-8))


def test_the_first_adamw_step_moves_every_weight_by_the_learning_rate():
    model, grad = layer(), torch.linspace(-1, 1, 32).view(4, 8)
    before = model.weight.detach().clone()
    step(model, single(model, TrainConfig(optimizer="adamw")), 0.01, grad)
    torch.testing.assert_close(model.weight.detach(), before - 0.01 * grad.sign())


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_weight_decay_is_decoupled_from_the_gradient(name):
    model = layer()
    before = model.weight.detach().clone()
    step(model, single(model, TrainConfig(optimizer=name, weight_decay=0.5)), 0.1, torch.zeros(4, 8))
    torch.testing.assert_close(model.weight.detach(), before * 0.95)


def test_the_gradient_is_clipped_and_its_own_norm_is_returned():
    model, cut = layer(), layer()
    optimizer = single(model, TrainConfig(max_grad_norm=1.0))
    assert step(model, optimizer, 0.01, torch.ones(4, 8)) == pytest.approx(32**0.5)
    step(cut, single(cut, TrainConfig(max_grad_norm=0)), 0.01, torch.full((4, 8), 32**-0.5))
    torch.testing.assert_close(model.weight, cut.weight)
    assert step(model, optimizer, 0.01, torch.full((4, 8), 0.01)) == pytest.approx(0.01 * 32**0.5)
    (square,) = (state["square_avg"] for state in optimizer.inner.state.values())
    torch.testing.assert_close(square, torch.full((4, 8), 0.99 * 0.01 / 32 + 0.01 * 0.01**2))


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_the_papers_learning_rate_moves_bfloat16_weights(name):
    model, plain = layer(torch.bfloat16), layer(torch.bfloat16)
    with torch.no_grad():
        for module in (model, plain):
            module.weight.copy_(torch.linspace(0.01, 0.03, 32).view(4, 8))  # as large as a language model's weights are
    before = model.weight.detach().clone()
    optimizer = single(model, TrainConfig(optimizer=name))
    bare = (torch.optim.RMSprop if name == "rmsprop" else torch.optim.AdamW)(plain.parameters(), lr=PAPER)
    for _ in range(300):
        step(model, optimizer, PAPER, torch.ones(4, 8))
        plain.weight.grad = torch.ones(4, 8).bfloat16()
        bare.step()
    assert torch.equal(plain.weight, before)  # every one of the steps was rounded away
    moved = before.float() - optimizer.masters[0]
    assert ((moved > 300 * PAPER * 0.99) & (moved < 500 * PAPER)).all()  # RMSProp's first steps are larger
    assert torch.equal(model.weight, optimizer.masters[0].bfloat16())
    assert (model.weight < before).all()


def test_gradients_of_bfloat16_weights_are_summed_in_float32():
    model = layer(torch.bfloat16)
    optimizer = single(model, TrainConfig(max_grad_norm=0))
    for value in (1.0, 2**-10, 2**-10):  # bfloat16 would lose the small ones next to the large one
        optimizer.backward(model.weight.sum() * value, last=False)
    assert torch.equal(optimizer.masters[0].grad, torch.full((4, 8), 1 + 2**-9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_a_restored_optimizer_takes_the_same_steps_to_the_bit(name, dtype):
    config, grads = TrainConfig(optimizer=name), [torch.randn(4, 8) for _ in range(6)]
    model, other = layer(dtype), nn.Linear(8, 4, bias=False).to(dtype)
    optimizer = single(model, config)
    for grad in grads[:3]:
        step(model, optimizer, 0.01, grad)
    restored = single(other, config)
    restored.load({name: tensor.clone() for name, tensor in optimizer.tensors().items()})
    assert torch.equal(model.weight, other.weight)
    for grad in grads[3:]:
        step(model, optimizer, 0.01, grad)
        step(other, restored, 0.01, grad)
    assert torch.equal(optimizer.masters[0], restored.masters[0])
    assert torch.equal(model.weight, other.weight)


def rates(schedule: str, warmup: float = 0.2) -> list[float]:
    config = TrainConfig(lr_schedule=schedule, warmup=warmup)
    return [learning_rate_at(step, 10, 3.0, config) for step in range(10)]


def test_learning_rates_by_hand():
    assert rates("linear") == pytest.approx([1, 2, 3, 2.625, 2.25, 1.875, 1.5, 1.125, 0.75, 0.375])
    assert rates("constant") == pytest.approx([1, 2] + [3] * 8)
    assert rates("cosine")[2::4] == pytest.approx([3, 1.5])
    assert rates("linear", warmup=0)[0] == 3
    assert rates("constant", warmup=1)[-1] == pytest.approx(3 * 10 / 11)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_no_step_has_rate_zero_and_none_is_above_the_peak(schedule):
    assert all(0 < rate <= 3 for warmup in (0, 0.1, 0.5, 1) for rate in rates(schedule, warmup))


def test_weights_move_in_groups_whose_temporary_copies_are_bounded(monkeypatch):
    sizes = (MAX_GROUP_NUMBERS // 2, MAX_GROUP_NUMBERS // 2, MAX_GROUP_NUMBERS + 1, 5, 6)
    groups = group_weights([torch.empty(size, device="meta") for size in sizes])
    assert [[tensor.numel() for tensor in group] for group in groups] == [list(sizes[:2]), [sizes[2]], list(sizes[3:])]

    model, other, grad = layer(), layer(), torch.linspace(-1, 1, 32).view(4, 8)
    step(model, single(model, TrainConfig()), 0.01, grad)
    monkeypatch.setattr("spin_core.training.optim.MAX_GROUP_NUMBERS", 1)
    step(other, single(other, TrainConfig()), 0.01, grad)
    assert torch.equal(model.weight, other.weight)


def test_gradients_of_half_precision_weights_are_not_kept_next_to_their_masters():
    model = layer(torch.bfloat16)
    optimizer = single(model, TrainConfig())
    for times in (1, 2):
        optimizer.backward((model.weight * torch.full((4, 8), 0.25).bfloat16()).sum(), last=True)
        assert model.weight.grad is None
        torch.testing.assert_close(optimizer.masters[0].grad, torch.full((4, 8), 0.25 * times))
