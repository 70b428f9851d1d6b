"""What the training loop asks of whatever moves the weights: one device's optimizer, or DeepSpeed over many ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spin_core.models.packing import Rows
from spin_core.models.vocabulary_loss import ItemLosses


class Stepper(Protocol):
    """A model in training.

    In every call, all ranks take part. Its state is told by the parameters' names, whole and in float32, so that it
    depends neither on how many ranks there are nor on how their memory is shared out.
    """

    def logps(self, rows: Rows) -> Tensor:
        """The log-probability of each response in the rows, (S,) float32, without gradient."""

    def loss(self, rows: Rows, losses: ItemLosses) -> tuple[Tensor, Tensor]:
        """The sum of the items' losses, a differentiable scalar, and the log-probabilities that they read, (S,)."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a part of the loss. Parts add up over calls and over ranks; `last` ends the batch."""

    def step(self, learning_rate: float) -> Tensor:
        """Clip, move the weights, forget the gradient. Returns the gradient's norm before clipping, a scalar.

        A norm that is not finite means that the weights are not to be used any more, nor saved.
        """

    def tensors(self) -> dict[str, Tensor]:
        """This rank's share of the state, wherever it lies; the shares of all ranks are disjoint and make up the whole.

        Keys are `weight/<parameter>` (float32 masters) and `<state>/<parameter>` (the optimizer's, by torch's names).
        """

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back the whole state, however many ranks told it."""

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `from_pretrained` loads. Rank 0 writes."""
