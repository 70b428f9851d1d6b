"""Paths and records of a lineage."""

import json
import shutil

import pytest

from spin_core.errors import DamagedArtifact
from spin_core.lineage import suite_jobs
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from spin_core.store.records import EvalReport
from tests.support.lineages.small_lineage import demo_config


def test_a_damaged_lineage_file_says_how_to_fix_it(lineage):
    (lineage.root / "lineage.json").write_bytes(b"\xff{")
    with pytest.raises(DamagedArtifact, match=r"lineage.json is damaged \(.*\): restore it, or remove"):
        find_lineage(lineage.runs, lineage.name)


def test_a_damaged_record_says_how_to_fix_it(lineage):
    path = lineage.iteration(0) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "t": "zero"}))
    with pytest.raises(DamagedArtifact, match=r"record.json is damaged"):
        lineage.records()


def test_records_come_in_order_and_end_at_a_gap(lineage):
    assert [record.t for record in lineage.records()] == [0, 1]
    (lineage.iteration(0) / "record.json").unlink()
    assert lineage.records() == []


def test_the_parts_of_an_iteration_know_each_other(built):
    first, second = built.records()
    assert second.opponent == first.player
    assert second.player.parent == first.player.digest
    assert second.generations.opponent == second.scores.opponent == first.player.digest
    assert second.scores.pairs == second.pairs.digest
    assert second.train.model == second.player.digest
    assert built.player(1) == second.player


def test_the_error_for_missing_weights_says_what_else_to_remove(lineage):
    shutil.rmtree(lineage.iteration(0) / "model")
    with pytest.raises(DamagedArtifact, match=r"iter_00/model is gone.*: remove .*iter_00/train too"):
        lineage.player(0)


def test_reports_are_those_of_the_version(built):
    reports = [built.reports(t) for t in range(3)]
    assert [report.model for (report,) in reports] == [
        built.records()[0].opponent.digest,
        *(record.player.digest for record in built.records()),
    ]
    assert all(isinstance(report, EvalReport) for (report,) in reports)
    assert built.reports(3) == []


def test_suites_follow_the_configuration(built):
    record = built.records()[0]

    def named(*sets, temperature=None):
        lineage = Lineage(built.runs, "tale", demo_config("evaluate.exact=false", *sets))
        jobs = suite_jobs.evaluate_jobs(lineage, record.player, record.prompts, None, temperature=temperature)
        return [job.output.name for job in jobs]

    assert named() == ["self-play"]
    assert named("evaluate.self_play=false") == []
    assert named("evaluate.lm_eval.tasks=[arc_easy]") == ["self-play", "lm-eval"]
    assert named("evaluate.lm_eval.tasks=[arc_easy]", temperature=0.7) == ["self-play"], "benchmarks have their own"
