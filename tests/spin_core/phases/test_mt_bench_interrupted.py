"""MT-Bench interrupted: killed, stopped, without its judge or a key. Nothing is lost or requested twice."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from spin_core.errors import ConfigError, Stopped, TryAgain
from spin_core.evaluation.mt_bench.answers import answers_folder
from spin_core.evaluation.mt_bench.judge import verdicts_folder
from spin_core.phases.mt_bench import run
from spin_core.runtime import phase, progress
from spin_core.store.evaluation_jobs import MtBenchJob
from spin_core.store.journal import Journal
from spin_core.store.records import EvalReport
from tests.support.lineages.mt_bench_jobs import (
    QUESTIONS,
    data,
    grade_by_question,
    models,
    mt_bench_job,
    rows_of,
    run_mt_bench,
    short_pauses,
)
from tests.support.lineages.small_jobs import start_job
from tests.support.servers.endpoint import Reply, serving

__all__ = ["data", "models", "short_pauses"]


class StopsDuringVerdicts(progress.Progress):
    """Stops during the verdicts, as on SIGTERM."""

    def show(self, done: int, **metrics: float) -> None:
        super().show(done, **metrics)
        if self.unit == "verdict" and done >= 5:
            self.stop()


def stop(job: MtBenchJob, _log: Path) -> None:
    with pytest.raises(Stopped):
        phase.execute(job, EvalReport, run, StopsDuringVerdicts(quiet=True))


def kill(job: MtBenchJob, log: Path) -> None:
    with start_job(job, log) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event.get("unit") == "verdict" and event["done"] >= 5:
                process.kill()
                break
        process.stdout.read()
    assert process.wait() == -9


@pytest.mark.slow
@pytest.mark.parametrize(("end", "in_flight"), [(kill, 2), (stop, 0)])
def test_a_phase_that_ends_during_the_verdicts_requests_nothing_twice(tmp_path, data, models, end, in_flight):
    slow = {"judge": {"speed": {"parallel": 2}}}
    with serving(lambda body, before: Reply(text=grade_by_question(body, before).text, seconds=0.15)) as endpoint:
        job = mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url, **slow)
        end(job, tmp_path / "first")
        time.sleep(0.4)  # requests in flight end
        kept = {row["key"] for row in Journal(verdicts_folder(job) / "verdicts.jsonl").rows}
        answered = (answers_folder(job) / "answers.jsonl").read_text()
        requests_before = len(endpoint.requests)
        assert 5 <= len(kept) < 2 * QUESTIONS
        report = run_mt_bench(job)
    again = {key_of(body) for body in endpoint.requests[requests_before:]}
    assert again & kept == set()
    lost = requests_before - len(kept)
    assert lost <= in_flight
    assert len(endpoint.requests) == 2 * QUESTIONS + lost
    for line in answered.splitlines():
        row = json.loads(line)
        published = next(r for r in rows_of(report, "answers") if (r["id"], r["turn"]) == (row["id"], row["turn"]))
        assert published["answer"] == row["answer"]
    assert report.scores["mt-bench"].n == QUESTIONS


def key_of(body: dict) -> str:
    return hashlib.sha256(json.dumps(body["messages"], ensure_ascii=False).encode()).hexdigest()


def test_a_judge_that_is_down_ends_the_phase_before_anything_is_computed(tmp_path, data, models):
    with serving() as endpoint:
        job = mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url)
    with pytest.raises(TryAgain, match=f"the judge at {endpoint.url} gives no answer") as failed:
        run_mt_bench(job)
    assert "\n" not in str(failed.value)
    assert not answers_folder(job).exists()


def test_verdicts_before_the_judge_goes_down_are_kept(tmp_path, data, models):
    def reply(body, before):
        return Reply(503, "gone") if len(endpoint.answered) >= 7 else grade_by_question(body, before)

    with serving(reply) as endpoint:
        job = mt_bench_job(
            tmp_path / "mt-bench", data, models[0], endpoint.url, judge={"speed": {"retries": 2, "parallel": 1}}
        )
        with pytest.raises(TryAgain, match="503 gone; attempt 2 of 2"):
            run_mt_bench(job)
        endpoint.reply = grade_by_question
        report = run_mt_bench(job)
    assert len(endpoint.answered) == len(set(endpoint.answered)) == 2 * QUESTIONS
    assert report.scores["mt-bench"].n == QUESTIONS


def test_a_key_that_is_missing_or_wrong_ends_the_phase_before_anything_is_computed(tmp_path, data, models, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    job = mt_bench_job(tmp_path / "mt-bench", data, models[0], "")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no key"):
        run_mt_bench(job)
    with serving() as endpoint:
        endpoint.key = "right"
        job = mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url)
        with pytest.raises(ConfigError, match=r"refuses a request without a key: OPENAI_API_KEY \(401\)"):
            run_mt_bench(job)
    assert not answers_folder(job).exists()
