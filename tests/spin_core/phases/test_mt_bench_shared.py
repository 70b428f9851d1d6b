"""MT-Bench's verdicts are kept in the runs folder: no lineage requests a verdict that another one has."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from spin_core.errors import ConfigError
from spin_core.evaluation.mt_bench.judge import verdicts_folder
from tests.support.lineages.mt_bench_jobs import (
    QUESTIONS,
    choosing_judge,
    data,
    grade_by_question,
    models,
    mt_bench_job,
    rows_of,
    run_mt_bench,
    short_pauses,
)
from tests.support.servers.endpoint import Reply, serving

__all__ = ["data", "models", "short_pauses"]

GRADES = 2 * QUESTIONS


def lineage(runs, name, *job, **fields):
    """A lineage's job; all lineages have the same folder of answers, and so of verdicts."""
    return mt_bench_job(runs / name / "mt-bench", *job, speed={"answers": runs / ".answers"}, **fields)


def test_a_second_lineage_with_the_same_model_requests_nothing(tmp_path, data, models):
    with serving(grade_by_question) as endpoint:
        first = run_mt_bench(lineage(tmp_path, "first", data, models[0], endpoint.url))
        assert len(endpoint.requests) == GRADES
        # Another temperature in generate does not change the answers to MT-Bench's questions.
        job = lineage(tmp_path, "second", data, models[0], endpoint.url, generate={"temperature": 0.5})
        second = run_mt_bench(job)
        assert len(endpoint.requests) == GRADES
        assert rows_of(first, "verdicts") == rows_of(second, "verdicts")
        assert first.scores == second.scores
        run_mt_bench(lineage(tmp_path, "third", data, models[1], endpoint.url))
        assert len(endpoint.requests) == 2 * GRADES
    assert verdicts_folder(job).parent == tmp_path / ".verdicts"


def test_another_comparison_requests_only_its_own_verdicts(tmp_path, data, models):
    with serving(choosing_judge(lambda _a, _b: "A")) as endpoint:
        base = run_mt_bench(lineage(tmp_path, "base", data, models[0], endpoint.url))
        run_mt_bench(lineage(tmp_path, "alone", data, models[1], endpoint.url, t=1))
        requests_before = len(endpoint.requests)
        run_mt_bench(
            lineage(tmp_path, "pairs", data, models[1], endpoint.url, t=1, base=base, config={"pairwise": ("base",)})
        )
        assert len(endpoint.requests) == requests_before + 2 * GRADES
        assert all("assistant B" in str(body["messages"]) for body in endpoint.requests[requests_before:])


@pytest.mark.parametrize(
    "other", [{"model": "other"}, {"temperature": 0.5}, {"max_tokens": 9}, {"extra_body": {"speed": 1}}]
)
def test_another_judge_gets_all_requests_again(tmp_path, data, models, other):
    with serving(grade_by_question) as endpoint:
        run_mt_bench(lineage(tmp_path, "first", data, models[0], endpoint.url))
        run_mt_bench(lineage(tmp_path, "second", data, models[0], endpoint.url, judge=other))
    assert len(endpoint.requests) == 2 * GRADES


def test_another_key_or_speed_is_the_same_judge_and_the_key_is_not_kept(tmp_path, data, models, monkeypatch):
    monkeypatch.setenv("THEIR_KEY", "sk-secret")
    with serving(grade_by_question) as endpoint:
        run_mt_bench(lineage(tmp_path, "first", data, models[0], endpoint.url, judge={"api_key_env": "THEIR_KEY"}))
        run_mt_bench(lineage(tmp_path, "second", data, models[0], endpoint.url, judge={"speed": {"parallel": 1}}))
    assert len(endpoint.requests) == GRADES
    assert endpoint.keys == {"Bearer sk-secret"}
    texts = [path.read_bytes() for path in (tmp_path / ".verdicts").rglob("*") if path.is_file()]
    assert any(b"So. [[" in text for text in texts)
    assert not any(b"sk-secret" in text or b"THEIR_KEY" in text for text in texts)


def test_two_lineages_at_the_same_time_request_each_verdict_once(tmp_path, data, models):
    with serving(lambda body, before: Reply(text=grade_by_question(body, before).text, seconds=0.02)) as endpoint:
        jobs = [lineage(tmp_path, name, data, models[0], endpoint.url) for name in ("first", "second")]
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(run_mt_bench, jobs)
    assert len(endpoint.requests) == GRADES
    assert first.scores == second.scores


def test_an_item_that_the_judge_refuses_does_not_count_and_is_noted(tmp_path, data, models):
    def reply(body, before):
        return Reply(400, "we would rather not") if "Q82.2?" in str(body) else grade_by_question(body, before)

    with serving(reply) as endpoint:
        report = run_mt_bench(lineage(tmp_path, "first", data, models[0], endpoint.url))
    assert (
        f"1 of {GRADES} verdicts are missing, since the judge's endpoint refuses what is to be judged" in report.notes
    )
    assert report.scores["mt-bench/turn-2"].n == QUESTIONS - 1
    (row,) = [row for row in rows_of(report, "verdicts") if row["fault"]]
    assert (row["id"], row["turn"], row["fault"], row["reply"]) == ("82", 2, "refused", "400 we would rather not")


def test_a_judge_that_graded_nothing_gets_all_requests_again_once_it_is_fixed(tmp_path, data, models):
    with serving(lambda _body, _before: Reply(text="I like it.")) as endpoint:
        job = lineage(tmp_path, "first", data, models[0], endpoint.url)
        with pytest.raises(ConfigError, match="gives no grade that can be read"):
            run_mt_bench(job)
        endpoint.reply = lambda _body, _before: Reply(400, "filtered", code="content_filter")
        with pytest.raises(ConfigError, match=r"grades nothing, and refuses what it is to read .400 filtered"):
            run_mt_bench(job)
        endpoint.reply = grade_by_question
        assert run_mt_bench(job).scores["mt-bench"].n == QUESTIONS
