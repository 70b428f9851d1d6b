"""Suites on a cluster, as far as no Ray is needed: how many at a time, what becomes of failures, and identities."""

import contextlib

import pytest
from prefect.logging import disable_run_logger

from spin_core.config.generate import RayConfig
from spin_core.errors import DataError, WorkersLost
from spin_core.lineage import suite_jobs
from spin_core.runtime import launch
from spin_core.store import artifacts, identity
from spin_core.store.records import EvalReport
from tasks import evaluate
from tests.support.lineages.small_lineage import build_lineage, publish

NAMES = ["evaluate.suites=[open-llm-leaderboard,big-bench,mt-bench]"]
FIELDS = {"model": "m", "suite": "by hand", "harness": "none", "scores": {}}


def jobs_of(lineage):
    record = lineage.records()[0]
    return suite_jobs.evaluate_jobs(lineage, record.opponent, record.prompts, None)


class Cluster:
    """Runs a suite when it is looked at for the second time, and remembers how many were there at a time."""

    def __init__(self, errors) -> None:
        self.errors, self.at_work, self.most, self.begun = errors, set(), 0, []

    def submit(self, task, parameters):
        assert task is evaluate.run_suite_on_ray
        job = parameters["job"]
        self.begun.append(job.output.name)
        self.at_work.add(job.output.name)
        self.most = max(self.most, len(self.at_work))
        return Suite(self, job)


class Suite:
    def __init__(self, cluster, job) -> None:
        self.cluster, self.job, self.looks = cluster, job, 0

    def wait(self, _timeout=None) -> None:
        self.looks += 1

    def result(self, *_, **__):
        if self.looks < 2:
            raise TimeoutError
        name = self.job.output.name
        self.cluster.at_work.discard(name)
        if name in self.cluster.errors:
            return self.cluster.errors[name]
        if launch.finished_record(self.job, EvalReport) is None:
            publish(self.job.output, self.job, {"log/x": b""}, FIELDS, EvalReport)
        return None


@pytest.fixture
def score_again(tmp_path, monkeypatch):
    """Scores θ_0's suites again on a cluster where some have errors; gives the cluster and the reports."""

    def play(errors=(), **given):
        speed = {"address": "none", **given}
        lineage = build_lineage(tmp_path, sets=[*NAMES, f"evaluate.speed.ray={speed}".replace("'", '"')])
        artifacts.shutil.rmtree(lineage.eval_folder(0))
        cluster = Cluster(dict(errors))
        monkeypatch.setattr(evaluate, "runner_on", lambda *_, **__: contextlib.nullcontext(cluster))
        record = lineage.records()[0]
        with disable_run_logger():
            try:
                return cluster, evaluate.evaluate(lineage, record.opponent, record.prompts)
            except Exception as error:
                return cluster, error

    return play


def test_so_many_suites_are_run_at_a_time_and_records_are_read_from_the_folder(score_again):
    cluster, reports = score_again(workers=2)
    assert cluster.most == 2
    assert cluster.begun == ["self-play", "open-llm-leaderboard", "big-bench", "mt-bench"]
    assert [report.path.name for report in reports] == cluster.begun


def test_a_suite_that_fails_ends_the_run_when_the_others_are_done(score_again):
    cluster, error = score_again({"self-play": DataError("no rows: bring some")}, workers=2)
    assert isinstance(error, DataError)
    assert cluster.begun[1:] == ["open-llm-leaderboard", "big-bench", "mt-bench"]
    assert not cluster.at_work


def test_a_suite_whose_workers_die_repeatedly_is_a_one_line_error(score_again):
    _, error = score_again({"mt-bench": RuntimeError("the worker died\nat night")}, workers=4)
    assert isinstance(error, WorkersLost)
    assert "eval/mt-bench was started 3 times on the cluster" in str(error)
    assert "(the worker died)" in str(error)


def test_the_place_where_suites_run_is_not_part_of_their_identity(tmp_path):
    here, there = (
        build_lineage(tmp_path / name, sets=[*NAMES, *more])
        for name, more in (("here", []), ("there", ['evaluate.speed.ray={"address": "auto", "workers": 3}']))
    )
    assert there.config.evaluate.speed.ray == RayConfig(address="auto", workers=3)
    local, distributed = ([identity.identity_of(job) for job in jobs_of(lineage)] for lineage in (here, there))
    assert local == distributed
