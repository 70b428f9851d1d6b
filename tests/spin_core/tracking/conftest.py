"""A lineage whose points are sent to sinks."""

import shutil
from pathlib import Path

import pytest

from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from tests.support.lineages.small_lineage import build_lineage


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("built")
    build_lineage(runs)
    return runs


@pytest.fixture
def lineage(built: Path, tmp_path: Path) -> Lineage:
    """A lineage of two iterations of two steps each."""
    shutil.copytree(built, tmp_path / "runs")
    return find_lineage(tmp_path / "runs", "tale")
