"""The layout of a lineage's copy."""

import pytest

from spin_core.errors import DamagedArtifact
from spin_core.lineage.find import find_lineage
from spin_core.remote import push as pushes
from spin_core.remote.manifest import MANIFEST
from spin_core.remote.pull import pull
from spin_core.remote.push import push
from tests.support.lineages.copies import contents
from tests.support.lineages.small_lineage import build_lineage


def test_a_copy_can_be_read_without_spin_at_the_local_paths(lineage, store, tmp_path):
    push(lineage, store)
    for path, content in contents(lineage).items():
        assert (tmp_path / "store" / "tale" / path).read_bytes() == content


@pytest.mark.parametrize("kept", [0, 100], ids=["empty", "cut"])
def test_a_copy_with_a_damaged_manifest_is_not_treated_as_absent(lineage, store, tmp_path, kept):
    push(lineage, store)
    manifest = tmp_path / "store/tale" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:kept])
    build_lineage(tmp_path / "other", nlls=((3.0, 3.1), (2.0, 2.1)))
    for call in (
        lambda: push(find_lineage(tmp_path / "other", "tale"), store),
        lambda: push(lineage, store, again=True),
        lambda: pushes.check_copy(tmp_path / "elsewhere", "tale", store),
        lambda: pull(tmp_path / "elsewhere", "tale", store.url),
    ):
        with pytest.raises(DamagedArtifact, match=r"manifest.json is damaged .* spin push --replace; what") as raised:
            call()
        assert "\n" not in str(raised.value)
    assert push(lineage, store, replace=True).moved == 0, "all of it is there and whole"
    pull(tmp_path / "elsewhere", "tale", store.url)
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == contents(lineage)
