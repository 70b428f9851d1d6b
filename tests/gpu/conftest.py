"""Tests that need a CUDA device, and skip where there is none."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them all."""
    here = __file__.removesuffix("conftest.py")
    reason = "torch sees no GPU"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason))
