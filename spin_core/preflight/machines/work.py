"""How long a GPU takes, from its vendor's peaks: the equations of docs/method.md#the-cost-of-a-machine.

    a pass   = max(products / (PRODUCTS · peak) + traffic / (BANDWIDTH · bandwidth), kernels · START)
    a step   = passes + sums of gradients and optimizer (traffic) + communication / (LINKS · link)

The four shares are the same for every GPU and every way of working. They were chosen once, in view of the figures that
docs/benchmarks.md compares them with.
"""

from dataclasses import dataclass

from spin_core.preflight.sizes import FLOAT32, Shape

PRODUCTS = 0.55
"""Speed of a network's matrix products divided by the vendor's peak."""

BANDWIDTH = 0.8
"""Speed of operations that only move numbers, divided by the vendor's bandwidth."""

LINKS = 0.7
"""Speed of communication between GPUs divided by the vendor's. None of it is hidden behind computing."""

START = 7e-6
"""Seconds in which a program starts one kernel."""

KERNELS = 120
"""Kernels of a layer's forward pass in transformers."""

ENGINE_STEP = 3e-3
"""Seconds of a step of vLLM besides the network: it schedules, samples and replays a graph instead of kernels."""


@dataclass(frozen=True)
class Work:
    """What is computed: the network, where, and how."""

    shape: Shape
    flops: float
    """The vendor's peak in the weights' precision."""
    bandwidth: float
    compiled: bool = False

    def forward(self, tokens: float, outputs: float, length: float) -> float:
        """Seconds of a forward pass.

        Args:
            tokens: Tokens of all rows, padding included.
            outputs: Tokens whose logits are computed.
            length: The mean length of a sequence, which attention depends on.
        """
        seconds = self._products(tokens, outputs, length) + self._traffic(tokens, outputs)
        return max(seconds, self.starting)

    def backward(self, tokens: float, outputs: float, length: float, *, frozen: bool = False) -> float:
        """Seconds of a backward pass: twice a forward one, or once if the weights are `frozen` and have no gradient."""
        products = (1 if frozen else 2) * self._products(tokens, outputs, length)
        return max(products + 2 * self._traffic(tokens, outputs), 2 * self.starting)

    @property
    def starting(self) -> float:
        """Seconds in which the kernels of a forward pass are started."""
        return self.shape.layers * KERNELS * START

    def _products(self, tokens: float, outputs: float, length: float) -> float:
        """Matrix products: two operations for each weight and token, and causal attention."""
        attention = 2 * self.shape.layers * self.shape.query_width * length
        vocabulary = 2 * self.shape.hidden * self.shape.vocabulary
        operations = tokens * (2 * weights_of_layers(self.shape) + attention) + outputs * vocabulary
        return operations / (PRODUCTS * self.flops)

    def _traffic(self, tokens: float, outputs: float) -> float:
        """What layers and logits read and write outside of the products, counted kernel by kernel.

        In transformers a norm casts, squares, averages, scales, casts back and multiplies: 36 bytes a number in half
        precision; a residual sum has 6, a rotation 20, the gate of the feed-forward layer 10, and attention reads and
        writes 4. Compiled layers do each in one kernel: 4, 6, 4, 6, and 4.
        """
        shape = self.shape
        norms, rotation, gate, logits = (20, 4, 6, 12) if self.compiled else (84, 20, 10, 30)
        heads = shape.query_width + shape.key_width
        each = norms * shape.hidden + (rotation + 4) * heads + gate * shape.intermediate
        scale = shape.itemsize / 2  # nearly all of these numbers have the weights' precision
        numbers = tokens * shape.layers * each + outputs * shape.vocabulary * logits
        return scale * numbers / (BANDWIDTH * self.bandwidth)

    def sum_gradients(self) -> float:
        """Seconds in which one pass's gradients are added to their float32 sums."""
        moved = 2 * self.shape.itemsize + 2 * FLOAT32
        return self.shape.trained * moved / (BANDWIDTH * self.bandwidth)

    def optimizer(self, states: int, ranks: int) -> float:
        """Seconds of the optimizer's step on its share: norm, clipping, states, masters, and the weights' copy."""
        moved = FLOAT32 * (1 + 2 + 1 + 2 * states + 2) + self.shape.itemsize
        return self.shape.trained * moved / ranks / (BANDWIDTH * self.bandwidth)

    def decode(self, rows: float, length: float, *, graphs: bool) -> float:
        """Seconds in which each of `rows` answers gets one more token.

        The weights are read once, and each row's keys and values.

        Args:
            rows: Answers in progress on this GPU.
            length: Mean length of a prompt with the part of its answer that exists.
            graphs: vLLM replays CUDA graphs; transformers starts each kernel.
        """
        shape = self.shape
        weights = shape.itemsize * (weights_of_layers(shape) + shape.hidden * shape.vocabulary)
        read = weights + rows * length * cached_bytes(shape)
        moving, computing = read / (BANDWIDTH * self.bandwidth), self._products(rows, rows, length)
        return max(moving, computing) + ENGINE_STEP if graphs else max(moving, computing, self.starting)


def weights_of_layers(shape: Shape) -> int:
    """Weights in the products of all layers: attention's four and the feed-forward layer's three."""
    attention = 2 * shape.hidden * (shape.query_width + shape.key_width)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def adapter_weights(shape: Shape, rank: int) -> int:
    """Weights of an adapter on every product of all layers."""
    attention = 4 * shape.hidden + 2 * shape.query_width + 2 * shape.key_width
    return shape.layers * rank * (attention + 3 * (shape.hidden + shape.intermediate))


def cached_bytes(shape: Shape) -> int:
    """Bytes of the keys and values of one token."""
    return 2 * shape.layers * shape.key_width * shape.itemsize


def communication(shape: Shape, *, ranks: int, stage: int, passes: int, link: float) -> float:
    """Seconds in which ranks exchange gradients and weights during a step.

    Stages 0 and 1 sum gradients once a step, 2 and 3 after each pass, each rank its own share. Stages 1 and 2 hand out
    the new weights; stage 3 collects all weights before each forward and each backward pass.
    """
    if ranks == 1:
        return 0.0
    gradients, weights = (shape.itemsize * count * (ranks - 1) / ranks for count in (shape.trained, shape.parameters))
    if stage == 3:
        moved = passes * (gradients + 2 * weights)
    elif stage == 2:
        moved = passes * gradients + shape.itemsize * shape.trained * (ranks - 1) / ranks
    else:
        moved = 2 * gradients
    return moved / (LINKS * link)
