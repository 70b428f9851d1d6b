"""The optimizer: RMSProp (the paper's) or AdamW, over float32 master weights.

bfloat16 keeps 8 bits: near 0.02 its numbers lie 1.2e-4 apart, so a step of 5e-7 added to a bfloat16 weight is rounded
away, every time. Each bfloat16 weight therefore has a float32 master copy here. Gradients are summed and steps taken
in float32, and the model holds the rounded master. So the model computes with the very weights that are published.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spin_core.config import TrainConfig


class Optimizer:
    """Steps the trainable weights of a model. Float32 weights are their own masters."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self.names = [name for name, _ in named]
        self.weights = [weight for _, weight in named]
        self.masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self.weights]
        self.copies = [(w, m) for w, m in zip(self.weights, self.masters, strict=True) if w is not m]
        self.max_grad_norm, self.weight_decay = config.max_grad_norm, config.weight_decay
        self.inner: torch.optim.Optimizer
        if config.optimizer == "rmsprop":
            self.inner = torch.optim.RMSprop(self.masters, lr=0.0, foreach=True)
        else:
            self.inner = torch.optim.AdamW(self.masters, lr=0.0, weight_decay=0.0, foreach=True)

    @torch.no_grad()
    def gather(self) -> None:
        """Add what a backward pass left on the weights to the masters' gradients. Call it after each one."""
        for weight, master in self.copies:
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    @torch.no_grad()
    def clip(self) -> Tensor:
        """The gradient's norm, a scalar, before it is cut to `max_grad_norm`."""
        grads = [master.grad for master in self.masters if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads, foreach=True)
        if self.max_grad_norm:
            torch._foreach_mul_(grads, (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the weights and forget the gradient. The decay is decoupled: weights shrink by rate times decay."""
        if self.weight_decay:
            torch._foreach_mul_(self.masters, 1 - learning_rate * self.weight_decay)
        for group in self.inner.param_groups:
            group["lr"] = learning_rate
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        for weight, master in self.copies:
            weight.copy_(master)

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name: the masters, and the optimizer's state of each."""
        found = {f"weight/{name}": master.detach() for name, master in zip(self.names, self.masters, strict=True)}
        for name, master in zip(self.names, self.masters, strict=True):
            found |= {f"{key}/{name}": value for key, value in self.inner.state.get(master, {}).items()}
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, and the model's weights with it."""
        states: dict[str, dict[str, Tensor]] = {name: {} for name in self.names}
        for full, tensor in tensors.items():
            key, _, name = full.partition("/")
            if name in states:
                # A copy: a tensor read from a file may lie at an odd address, where arithmetic can round otherwise.
                states[name][key] = tensor.clone()
        for name, weight, master in zip(self.names, self.weights, self.masters, strict=True):
            master.copy_(states[name].pop("weight"))
            if weight is not master:
                weight.copy_(master)
            if states[name]:
                on_cpu = {"step"}  # where torch keeps its count of steps
                self.inner.state[master] = {
                    key: tensor if key in on_cpu else tensor.to(master.device) for key, tensor in states[name].items()
                }


def learning_rate(step: int, total: int, peak: float, config: TrainConfig) -> float:
    """The rate of step `step` (from 0) of `total`: it rises to `peak` over the warm-up, then falls towards zero.

    No step has rate zero: the first is already worth taking, and so is the last.
    """
    warm = int(config.warmup * total)
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    done = (step - warm) / (total - warm)
    if config.lr_schedule == "constant":
        return peak
    if config.lr_schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done)
