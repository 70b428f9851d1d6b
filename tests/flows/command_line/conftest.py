"""A finished lineage, and the command `spin` in its runs folder."""

import pytest

from spin_core.lineage.lineage import Lineage
from tests.support.lineages.small_lineage import build_lineage
from tests.support.processes.command_runner import Spin, run_spin


@pytest.fixture(scope="session")
def lineage(tmp_path_factory) -> Lineage:
    """A finished lineage `tale`; tests must not change it."""
    return build_lineage(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def spin(lineage, monkeypatch) -> Spin:
    """`spin` in that lineage's runs folder, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SPIN_RUNS", str(lineage.runs))
    return run_spin
