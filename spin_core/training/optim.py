"""The optimizer: RMSProp (the paper's) or AdamW, over float32 master weights.

bfloat16 keeps 8 bits: near 0.02 its numbers lie 1.2e-4 apart, so a step of 5e-7 added to a bfloat16 weight is rounded
away, every time. Each bfloat16 weight therefore has a float32 master copy here. Gradients are summed and steps taken
in float32, and the model holds the rounded master. So the model computes with the very weights that are published.
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

BUCKET = 2**28
"""Weights that an optimizer on a GPU moves together: its temporary copies are of so many, 1 GB, and no more."""


class SingleDevice:
    """The `Stepper` of one device. Steps the trainable weights; float32 weights are their own masters."""

    def __init__(self, logps: ResponseLogps, config: TrainConfig) -> None:
        self.network, model = logps, logps.model
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self.names = [name for name, _ in named]
        self.weights = [weight for _, weight in named]
        self.masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self.weights]
        self.copies = [(w, m) for w, m in zip(self.weights, self.masters, strict=True) if w is not m]
        for weight, master in self.copies:
            weight.register_post_accumulate_grad_hook(partial(hand_on, master))
        self.max_grad_norm = config.max_grad_norm
        logps.add_gradients_to(dict(zip(self.weights, self.masters, strict=True)))
        self.inner = optimizer_of(buckets(self.masters), config)

    def logps(self, rows: Rows) -> Tensor:
        """Of each response, (S,)."""
        found: Tensor = self.network(rows)
        return found

    def loss(self, rows: Rows, losses: ItemLosses) -> tuple[Tensor, Tensor]:
        """Their sum, and what they read."""
        found: tuple[Tensor, Tensor] = self.network(rows, losses)
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002 (one device has nothing to wait for)
        """Add the loss's gradient to that of the masters."""
        loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def step(self, learning_rate: float) -> Tensor:
        """Clip, move the weights, forget the gradient; the norm before clipping."""
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

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `from_pretrained` loads."""
        save_model(self.network.model, tokenizer, folder)


@torch.no_grad()
def hand_on(master: Tensor, weight: Tensor) -> None:
    """Add a weight's gradient to its master's as soon as it is there, so that no two gradients of all weights are."""
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad += weight.grad
    weight.grad = None


def buckets(weights: Sequence[Tensor]) -> list[list[Tensor]]:
    """The weights in their order, in groups of at most `BUCKET` numbers, or of one weight that has more."""
    found: list[list[Tensor]] = []
    load = 0
    for weight in weights:
        if not found or load + weight.numel() > BUCKET:
            found.append([])
            load = 0
        found[-1].append(weight)
        load += weight.numel()
    return found


def optimizer_of(groups: Sequence[Sequence[Tensor]], config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer, which moves each group's weights together. Its rate is set before each step."""
    together = groups[0][0].is_cuda
    named = [{"params": list(group)} for group in groups]
    if config.optimizer == "rmsprop":
        return DecayedRMSprop(named, config.weight_decay, together=together)
    return torch.optim.AdamW(named, lr=0.0, weight_decay=config.weight_decay, foreach=together)


class DecayedRMSprop(torch.optim.RMSprop):
    """RMSProp with decoupled weight decay, as AdamW has it: weights shrink by rate times decay before the step."""

    def __init__(self, groups: list[dict[str, Any]], decay: float, *, together: bool) -> None:
        super().__init__(groups, lr=0.0, foreach=together)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        assert closure is None
        if self.decay:
            for group in self.param_groups:
                torch._foreach_mul_(group["params"], 1 - group["lr"] * self.decay)
        super().step()


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
