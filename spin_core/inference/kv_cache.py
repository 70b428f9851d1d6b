"""Keys and values of a batch whose rows come and go, in one buffer that is not rebuilt for every token.

Shapes: R rows of the buffer, C columns of the buffer, H heads, D head size.

All rows end in the same column, so a shorter row begins further right, and the columns before its first one are masked.
transformers' own `DynamicCache` copies every key and value at every token, and again when a row leaves; here a token
costs one column, and a row that leaves costs one row copied into its place.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from spin_core.errors import ModelError

_SPARE = 32
"""Columns to grow by. Small, since attention reads a dense buffer faster than a window into a wide one."""


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
    """One past the last row."""
    left: int = 0
    """First column that is read."""
    end: int = 0
    """First column that is written."""


class _WindowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (R, H, C, D) each, seen through a window that all layers share."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.keys: Any = None
        self.values: Any = None
        self.is_initialized: bool = False

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns, (rows, H, new columns, D); return the window's keys and values as views."""
        window, end = self.window, self.window.end + key_states.shape[2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            # Zeros, not empty: masked values are still multiplied by 0, and 0 times NaN is NaN.
            self.keys, self.values = (
                new.new_zeros(window.rows, new.shape[1], window.columns, new.shape[3])
                for new in (key_states, value_states)
            )
            self.is_initialized = True
        self.keys[window.top : window.bottom, :, window.end : end] = key_states
        self.values[window.top : window.bottom, :, window.end : end] = value_states
        visible = (slice(window.top, window.bottom), slice(None), slice(window.left, end))
        return self.keys[visible], self.values[visible]

    def get_seq_length(self) -> int:
        """The columns of the window before those that the next pass writes."""
        return self.window.end - self.window.left

    def reset(self) -> None:
        """Free the buffers."""
        self.keys = self.values = None
        self.is_initialized = False

    def repack(self, columns: int) -> None:
        """Move the window to the left end of a buffer of `columns` columns."""
        window = self.window
        old = (slice(window.top, window.bottom), slice(None), slice(window.left, window.end))
        new = (slice(window.top, window.bottom), slice(None), slice(0, window.end - window.left))
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            wider = buffer.new_zeros(*buffer.shape[:2], columns, buffer.shape[3])
            wider[new] = buffer[old]
            setattr(self, name, wider)


class RowCache(Cache):  # type: ignore[misc]
    """A cache whose rows and columns the caller chooses: set `window` before each forward pass."""

    def __init__(self, config: Any, rows: int) -> None:
        """Raises `ModelError` for a model with other layers than attention."""
        layers = DynamicCache(config=config).layers
        # Sliding windows need nothing special: a row has no gaps, so two columns are as far apart as their positions.
        unsupported = [layer for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)]
        if unsupported:
            raise ModelError(
                f"the transformers engine runs models with full or sliding-window attention, and this one has a "
                f"{type(unsupported[0]).__name__}: choose a model without recurrent layers"
            )
        self.window = Window(rows)
        super().__init__(layers=[_WindowLayer(self.window) for _ in layers])

    def _filled(self) -> list[_WindowLayer]:
        """The layers that have buffers: none before the first pass, and never a layer that shares another's keys."""
        return [layer for layer in self.layers if layer.is_initialized]

    def begin(self, width: int) -> None:
        """Empty the cache, and leave space for prompts of `width` tokens."""
        self.reset()
        self.window.left, self.window.end, self.window.columns = 0, width, width + _SPARE

    def grow_if_full(self) -> int:
        """Move the window to the left end of a wider buffer if no column is free; returns by how many columns."""
        window = self.window
        if window.end < window.columns:
            return 0
        moved, window.columns = window.left, window.end - window.left + _SPARE
        for layer in self._filled():
            layer.repack(window.columns)
        window.left, window.end = 0, window.end - moved
        return moved

    def copy_rows(self, source: list[int], target: list[int]) -> None:
        """Copy the window's columns of some rows over others. No row is both a source and a target."""
        columns = slice(self.window.left, self.window.end)
        for layer in self._filled():
            for buffer in (layer.keys, layer.values):
                buffer[target, :, columns] = buffer[source, :, columns]
