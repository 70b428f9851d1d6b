"""How many iterations a nightly run that is started again has to reach."""

import json

from flows import nightly
from tests.support.lineages.small_lineage import NLLS, build_lineage


def test_a_run_that_starts_for_the_first_time_has_no_target(tmp_path):
    assert nightly._target_iterations(tmp_path / "note.json", None) is None


def test_an_old_failed_run_that_is_started_again_leaves_later_iterations(tmp_path):
    lineage = build_lineage(tmp_path, "mine", NLLS[:3])
    note = tmp_path / "note.json"
    for written, target in ((1, 2), (2, 2), (3, 3)):
        note.write_text(json.dumps({"iterations": written}))
        assert nightly._target_iterations(note, lineage) == target
    assert nightly._target_iterations(note, None) == 3
