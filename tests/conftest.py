"""Fixtures that every test may ask for."""

from helpers import tiny_model  # noqa: F401
