"""A finished lineage, and a copy of it that a test may change."""

import shutil

import pytest

from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from tests.support.lineages.small_lineage import build_lineage


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """A finished lineage of two iterations; tests must not change it."""
    return build_lineage(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def lineage(built: Lineage, tmp_path) -> Lineage:
    """A copy of it that a test may change."""
    shutil.copytree(built.runs, tmp_path / "runs")
    return find_lineage(tmp_path / "runs", built.name)
