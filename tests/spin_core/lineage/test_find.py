"""Names of lineages, and finding one by its name."""

import pytest

from spin_core.errors import ConfigError
from spin_core.lineage.find import find_lineage, lineage_names
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.store import lock
from tests.support.lineages.small_lineage import demo_config


def start(runs, name="tale", *, sets=()) -> Lineage:
    with lock.locked(runs / name):
        return start_lineage(runs, name, demo_config(*sets))


def test_a_lineage_is_found_as_it_was_started(tmp_path):
    begun = start(tmp_path, sets=["train.beta=0.3"])
    lineage = find_lineage(tmp_path, "tale")
    assert lineage.config == begun.config
    assert lineage_names(tmp_path) == ["tale"]


def test_a_missing_lineage_is_a_one_line_error_that_lists_the_others(tmp_path):
    start(tmp_path, "one")
    start(tmp_path, "two")
    with pytest.raises(ConfigError, match=r"no lineage 'three' in .* \(there: one, two\): start it with spin run"):
        find_lineage(tmp_path, "three")
    with pytest.raises(ConfigError, match="there: none yet"):
        find_lineage(tmp_path / "elsewhere", "three")


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "", ".hidden", "-x", "A", "a b", "a" * 64, "a\n", "ä", "a.b"])
def test_a_name_that_could_leave_the_folder_is_rejected(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a lineage: use lower-case letters, digits and -"):
        find_lineage(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "7b", "my-run-2", "a" * 63])
def test_a_plain_name_is_taken(tmp_path, name):
    assert start(tmp_path, name).root == tmp_path / name
