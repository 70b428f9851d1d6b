"""The sizes of the tensors that a computation makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestFloat32(TorchDispatchMode):
    """Notes the most elements that any float32 tensor of a computation has, or any of `wide` rows."""

    def __init__(self, wide: int | None = None) -> None:
        super().__init__()
        self.elements, self.wide = 0, wide

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
                continue
            if self.wide in (None, *tensor.shape[-1:]):
                self.elements = max(self.elements, tensor.numel())
        return result
