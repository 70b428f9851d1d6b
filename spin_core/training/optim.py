"""The optimizer: RMSProp (the paper's) or AdamW, over float32 master weights.

bfloat16 has 8 bits of precision: near 0.02 its numbers are 1.2e-4 apart, so a step of 5e-7 added to a bfloat16 weight
is rounded away, every time. Each bfloat16 weight therefore has a float32 master copy. Gradients are summed and steps
made in float32, and the model holds the rounded master, so it computes with exactly the weights that are published.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spin_core.config.train import TrainConfig
from spin_core.models.files import save_model
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import Rows
from spin_core.models.vocabulary_loss import ItemLosses

MAX_GROUP_NUMBERS = 2**28
"""How many numbers an optimizer on a GPU moves at once, which bounds its temporary copies to 1 GB each."""


class SingleDeviceStepper:
    """The `Stepper` of one device. Moves the weights that train; float32 weights are their own masters."""

    def __init__(self, logps: ResponseLogps, config: TrainConfig) -> None:
        self.network, model = logps, logps.model
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self.names = [name for name, _ in named]
        self.weights = [weight for _, weight in named]
        self.masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self.weights]
        self.copies = [(w, m) for w, m in zip(self.weights, self.masters, strict=True) if w is not m]
        for weight, master in self.copies:
            weight.register_post_accumulate_grad_hook(partial(_add_to_master, master))
        self.max_grad_norm = config.max_grad_norm
        logps.add_gradients_to(dict(zip(self.weights, self.masters, strict=True)))
        self.inner = make_optimizer(group_weights(self.masters), config)

    def logps(self, rows: Rows) -> Tensor:
        """See `Stepper.logps`."""
        logps_S: Tensor = self.network(rows)
        return logps_S

    def loss(self, rows: Rows, losses: ItemLosses) -> tuple[Tensor, Tensor]:
        """See `Stepper.loss`."""
        loss_and_logps: tuple[Tensor, Tensor] = self.network(rows, losses)
        return loss_and_logps

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002 (one device has nothing to wait for)
        """Add the loss's gradient to the masters' gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def discard_gradient(self) -> bool:
        """See `Stepper.discard_gradient`."""
        for weight in (*self.weights, *self.masters):
            weight.grad = None
        return True

    @torch.no_grad()
    def step(self, learning_rate: float) -> Tensor:
        """See `Stepper.step`."""
        grads = [master.grad for master in self.masters if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads, foreach=True)
        if self.max_grad_norm:
            torch._foreach_mul_(grads, (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in self.inner.param_groups:
            group["lr"] = learning_rate
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        if self.copies:
            weights, masters = zip(*self.copies, strict=True)
            torch._foreach_copy_(weights, masters)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """See `Stepper.tensors`."""
        tensors = {f"weight/{name}": master.detach() for name, master in zip(self.names, self.masters, strict=True)}
        for name, master in zip(self.names, self.masters, strict=True):
            tensors |= {f"{key}/{name}": value for key, value in self.inner.state.get(master, {}).items()}
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore masters and optimizer, and set the model's weights."""
        states: dict[str, dict[str, Tensor]] = {name: {} for name in self.names}
        for full, tensor in tensors.items():
            key, _, name = full.partition("/")
            if name in states:
                # A copy: a tensor in a mapped file may have an unaligned address, where arithmetic can round
                # differently.
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

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `from_pretrained` loads."""
        save_model(self.network.model, tokenizer, folder)


@torch.no_grad()
def _add_to_master(master: Tensor, weight: Tensor) -> None:
    """Add a weight's gradient to its master's at once and free it, so that memory never holds both for all weights."""
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad += weight.grad
    weight.grad = None


def group_weights(weights: Sequence[Tensor]) -> list[list[Tensor]]:
    """Divide the weights, in order, into groups of at most `MAX_GROUP_NUMBERS`; a larger weight has its own group."""
    groups: list[list[Tensor]] = []
    size = 0
    for weight in weights:
        if not groups or size + weight.numel() > MAX_GROUP_NUMBERS:
            groups.append([])
            size = 0
        groups[-1].append(weight)
        size += weight.numel()
    return groups


def make_optimizer(groups: Sequence[Sequence[Tensor]], config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer, which moves a group's weights together. The caller sets its rate before each step."""
    together = groups[0][0].is_cuda
    named = [{"params": list(group)} for group in groups]
    if config.optimizer == "rmsprop":
        return _DecayedRMSprop(named, config.weight_decay, together=together)
    return torch.optim.AdamW(named, lr=0.0, weight_decay=config.weight_decay, foreach=together)


class _DecayedRMSprop(torch.optim.RMSprop):
    """RMSProp with AdamW's decoupled weight decay: w <- (1 - rate * decay) w before each step."""

    def __init__(self, groups: list[dict[str, Any]], decay: float, *, together: bool) -> None:
        super().__init__(groups, lr=0.0, foreach=together)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Shrink the weights, then make RMSProp's step."""
        assert closure is None
        if self.decay:
            for group in self.param_groups:
                torch._foreach_mul_(group["params"], 1 - group["lr"] * self.decay)
        super().step()


def learning_rate_at(step: int, total: int, peak: float, config: TrainConfig) -> float:
    """The rate of step `step` (from 0) of `total`: it rises to `peak` in the warm-up, then falls towards zero.

    No step has rate zero, neither the first nor the last.
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
