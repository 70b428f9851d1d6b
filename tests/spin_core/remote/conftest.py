"""A lineage, and stores for its copy: a folder, and S3 by a real server, moto's."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from spin_core.config.push import PushConfig
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from spin_core.store import files
from tests.support.lineages.small_lineage import NLLS, build_lineage
from tests.support.servers.object_store import Bucket, serve


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a lineage `tale` and its shared θ_0."""
    runs = tmp_path_factory.mktemp("built")
    lineage = build_lineage(runs)
    files.write_text(lineage.root / "report.html", "<p>as it was</p>")
    return runs


@pytest.fixture
def lineage(built: Path, tmp_path: Path) -> Lineage:
    """A copy of that lineage, which a test may change."""
    shutil.copytree(built, tmp_path / "runs")
    return find_lineage(tmp_path / "runs", "tale")


@pytest.fixture
def one_iteration(tmp_path: Path) -> Lineage:
    """A lineage of one iteration, because S3 is slow."""
    return build_lineage(tmp_path / "runs", nlls=NLLS[:2])


@pytest.fixture
def store(tmp_path: Path) -> PushConfig:
    """The settings of a store that is a folder."""
    return PushConfig(url=f"file://{tmp_path}/store")


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serve(tmp_path_factory.mktemp("store")) as bucket:
        yield bucket


@pytest.fixture
def s3(server: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    """A folder of the test's own in the bucket. The environment has its credentials."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return replace(server, folder=tmp_path.name)
