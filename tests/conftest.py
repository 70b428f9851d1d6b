"""Fixtures that every test may ask for, and the order in which files are shared out."""

import pytest
from helpers import tiny_model  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that the processes that share the files out end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
