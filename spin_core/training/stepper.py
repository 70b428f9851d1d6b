"""The interface between the training loop and what moves the weights.

Two classes implement it: `SingleDeviceStepper` (optim.py), an optimizer on one device, and `Zero` (zero.py), DeepSpeed
on many ranks. It is a protocol, so neither inherits from it and mypy checks that both have its methods.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spin_core.models.packing import Rows
from spin_core.models.vocabulary_loss import ItemLosses


class Stepper(Protocol):
    """A model with its optimizer.

    All ranks make each call together. The state that it saves and loads has the names of the model's parameters, whole
    and in float32. So it depends neither on the number of ranks nor on how they divide memory, and a training may go on
    with another number of ranks.
    """

    def logps(self, rows: Rows) -> Tensor:
        """The log-probability of each response in the rows, (S,) float32, without gradient."""

    def loss(self, rows: Rows, losses: ItemLosses) -> tuple[Tensor, Tensor]:
        """The sum of the items' losses, a differentiable scalar, and the log-probabilities they are made of, (S,)."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient; those of all calls and ranks are summed. `last` marks the batch's last call."""

    def discard_gradient(self) -> bool:
        """Drop what a batch's gradient has so far, so that the batch can begin again. False if that is not possible."""

    def step(self, learning_rate: float) -> Tensor:
        """Clip the gradient, move the weights and clear the gradient.

        Returns the gradient's norm before clipping, a scalar. If it is not finite, the weights must not be used or
        saved.
        """

    def tensors(self) -> dict[str, Tensor]:
        """This rank's share of the state, on any device. All ranks' shares together are the whole, each part once.

        Keys are `weight/<parameter>` (float32 masters) and `<state>/<parameter>` (the optimizer's, by torch's names).
        """

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the whole state, saved by any number of ranks."""

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `from_pretrained` loads. Rank 0 writes."""
