"""Keys and values of a batch whose rows come and go, in one buffer that is not rebuilt for every token.

Shapes: R rows of the buffer, C columns of the buffer, H heads, D head size.

All rows end in the same column, so each begins where its length says, and what stands before a row's first column is
masked. transformers' own `DynamicCache` copies every key and value at every token, and again when a row leaves.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from spin_core.errors import ModelError

SPARE = 32
"""Columns to grow by. Attention reads a dense buffer faster than a window into a wide one, so it is kept small."""


@dataclass(slots=True)
class Window:
    """The part of the buffer that the next forward pass sees, and where it writes."""

    rows: int
    """R."""
    columns: int = 0
    """C."""
    top: int = 0
    """First row."""
    bottom: int = 0
    """Past the last row."""
    left: int = 0
    """First column that is read."""
    end: int = 0
    """First column that is written."""


class WindowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (R, H, C, D) each, seen through a window that all layers share."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.keys: Any = None
        self.values: Any = None
        self.is_initialized: bool = False

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns; return all that the window holds, as views."""
        at, after = self.window, self.window.end + key_states.shape[2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            # Zeros, not empty: what is masked is still multiplied by 0, and 0 times NaN is NaN.
            self.keys, self.values = (
                new.new_zeros(at.rows, new.shape[1], at.columns, new.shape[3]) for new in (key_states, value_states)
            )
            self.is_initialized = True
        self.keys[at.top : at.bottom, :, at.end : after] = key_states
        self.values[at.top : at.bottom, :, at.end : after] = value_states
        seen = (slice(at.top, at.bottom), slice(None), slice(at.left, after))
        return self.keys[seen], self.values[seen]

    def get_seq_length(self) -> int:
        """Columns before the ones that the next pass writes."""
        return self.window.end - self.window.left

    def reset(self) -> None:
        """Let the buffers go."""
        self.keys = self.values = None
        self.is_initialized = False

    def repack(self, columns: int) -> None:
        """Move the window to the left end of a buffer of `columns` columns."""
        at = self.window
        old = (slice(at.top, at.bottom), slice(None), slice(at.left, at.end))
        new = (slice(at.top, at.bottom), slice(None), slice(0, at.end - at.left))
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            wider = buffer.new_zeros(*buffer.shape[:2], columns, buffer.shape[3])
            wider[new] = buffer[old]
            setattr(self, name, wider)


class RowCache(Cache):  # type: ignore[misc]
    """A cache whose rows and columns the caller chooses: set `window` before each forward pass."""

    def __init__(self, config: Any, rows: int) -> None:
        kinds = DynamicCache(config=config).layers
        # Sliding windows need nothing special: a row has no gaps, so columns are as far apart as positions.
        odd = [kind for kind in kinds if type(kind) not in (DynamicLayer, DynamicSlidingWindowLayer)]
        if odd:
            raise ModelError(
                f"the transformers engine runs models of plain or sliding-window attention, and this one has a "
                f"{type(odd[0]).__name__}: choose a model without recurrent layers"
            )
        self.window = Window(rows)
        super().__init__(layers=[WindowLayer(self.window) for _ in kinds])

    def filled(self) -> list[WindowLayer]:
        """The layers that hold keys and values: before the first pass none, and one that shares another's never."""
        return [layer for layer in self.layers if layer.is_initialized]

    def begin(self, width: int) -> None:
        """Forget everything, and make room for prompts of `width` tokens."""
        self.reset()
        self.window.left, self.window.end, self.window.columns = 0, width, width + SPARE

    def make_room(self) -> int:
        """Grow, if the buffer is full, by some columns more than the window needs; returns how far it moved left."""
        at = self.window
        if at.end < at.columns:
            return 0
        moved, at.columns = at.left, at.end - at.left + SPARE
        for layer in self.filled():
            layer.repack(at.columns)
        at.left, at.end = 0, at.end - moved
        return moved

    def move(self, source: list[int], target: list[int]) -> None:
        """Copy rows over others, as far as the window's columns go. No row is both a source and a target."""
        columns = slice(self.window.left, self.window.end)
        for layer in self.filled():
            for buffer in (layer.keys, layer.values):
                buffer[target, :, columns] = buffer[source, :, columns]
