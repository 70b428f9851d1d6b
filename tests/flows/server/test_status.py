"""What `spin status` shows of lineages."""

import shutil

from spin_core.preflight.prepare import prepare_run
from tests.support.lineages.small_lineage import build_lineage, demo_config
from tests.support.processes.command_runner import run_spin


def test_a_lineage_has_no_version_before_its_first_one_is_built(tmp_path):
    prepare_run(demo_config(), tmp_path, "early")
    assert "lineages   early  no version yet\n" in run_spin("status", "--runs", tmp_path).stdout


def test_a_lineage_has_its_first_version_once_that_is_trained_and_before_it_is_scored(tmp_path):
    lineage = build_lineage(tmp_path)
    for name in ("base", "iter_00/record.json", "iter_01"):
        path = lineage.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "lineages   tale  θ_0, and iteration 0 has begun\n" in run_spin("status", "--runs", tmp_path).stdout
    shutil.rmtree(tmp_path / ".sft")
    assert "lineages   tale  no version yet\n" in run_spin("status", "--runs", tmp_path).stdout
