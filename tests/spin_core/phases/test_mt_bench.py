"""The mt_bench phase: a tiny real model answers, and a judge on this machine grades it over HTTP."""

import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError, DataError
from spin_core.evaluation.mt_bench.judge_prompts import OWN_PROMPTS
from spin_core.lineage import suite_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.preflight.evaluation import inspect_judge
from spin_core.preflight.findings import Inspection
from spin_core.store import artifacts
from spin_core.store.evaluation_jobs import MtBenchJob
from spin_core.store.records import EvalReport
from tests.support.lineages.mt_bench_jobs import (
    CATEGORIES,
    PER_CATEGORY,
    QUESTIONS,
    choosing_judge,
    data,
    expected_grade,
    grade_by_question,
    human_answers,
    items_of,
    models,
    mt_bench_job,
    rows_of,
    run_mt_bench,
    short_pauses,
)
from tests.support.lineages.small_jobs import version_of
from tests.support.servers.endpoint import Reply, serving

__all__ = ["data", "human_answers", "models", "short_pauses"]


def test_scores_are_the_judges_grades_by_question_category_and_turn(tmp_path, data, models):
    with serving(grade_by_question) as endpoint:
        report = run_mt_bench(mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url))
    assert len(endpoint.requests) == 2 * QUESTIONS
    whole = {str(81 + i): (expected_grade(81 + i, 1) + expected_grade(81 + i, 2)) / 2 for i in range(QUESTIONS)}
    items = items_of(report)
    assert items["mt-bench"] == whole
    assert items["mt-bench/math"] == {id: whole[id] for id in list(whole)[PER_CATEGORY : 2 * PER_CATEGORY]}
    assert items["mt-bench/turn-2"] == {str(81 + i): expected_grade(81 + i, 2) for i in range(QUESTIONS)}
    turns = {"mt-bench/turn-1", "mt-bench/turn-2"}
    assert set(report.scores) == set(items) == {"mt-bench", *turns, *(f"mt-bench/{name}" for name in CATEGORIES)}
    score = report.scores["mt-bench"]
    assert score.value == pytest.approx(np.mean(list(whole.values())))
    assert score.stderr == pytest.approx(np.std(list(whole.values()), ddof=1) / np.sqrt(QUESTIONS))
    assert (score.n, score.higher_is_better) == (QUESTIONS, True)
    assert (report.suite, report.model) == ("mt-bench", version_of(models[0]).digest)
    assert "tiny-judge" in report.harness
    assert artifacts.verify(report.path) == []


def test_the_report_has_all_answers_and_verdicts(tmp_path, data, models):
    with serving(grade_by_question) as endpoint:
        report = run_mt_bench(mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url))
    answers, verdicts = rows_of(report, "answers"), rows_of(report, "verdicts")
    assert [(row["id"], row["turn"]) for row in answers] == [(str(81 + i), t) for i in range(QUESTIONS) for t in (1, 2)]
    answer_rows = {(row["id"], row["turn"]): row for row in answers}
    assert Counter(row["task"] for row in verdicts) == {"grade": 2 * QUESTIONS}
    for row in verdicts:
        prompt = json.loads(row["prompt"])[-1]["content"]
        assert answer_rows[row["id"], row["turn"]]["answer"] in prompt
        assert answer_rows[row["id"], 1]["answer"] in prompt
        assert f"Q{row['id']}.1?" in prompt
        assert (f"Q{row['id']}.2?" in prompt) == (row["turn"] == 2)
        assert row["reply"] == f"So. [[{row['value']}]]"
        assert (row["model"], row["asked"], row["fault"]) == ("tiny-judge", 1, "")
        # Only math has references here, for the turns up to the judged one.
        seen = [reference for reference in ("REF one", "REF two") if reference in prompt]
        is_math = 85 < int(row["id"]) <= 88
        assert seen == (["REF one", "REF two"][: row["turn"]] if is_math else [])
    assert "1 question judged without the reference answer they should have" in report.notes
    assert not list(report.path.glob(".*"))


def test_a_grade_that_cannot_be_read_does_not_count(tmp_path, data, models):
    def reply(body, _before):
        text = str(body["messages"][:2])
        return Reply(text="ten") if "Q82.2?" in text or "Q83" in text else Reply(text="[[4]]")

    with serving(reply) as endpoint:
        report = run_mt_bench(mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url))
    assert report.scores["mt-bench"].value == report.scores["mt-bench/turn-2"].value == 4
    assert (report.scores["mt-bench"].n, report.scores["mt-bench/turn-2"].n) == (QUESTIONS - 1, QUESTIONS - 2)
    assert any(
        note.startswith(f"3 of {2 * QUESTIONS} of the judge's verdicts could not be read") for note in report.notes
    )
    faults = {(row["id"], row["turn"]): row["fault"] for row in rows_of(report, "verdicts") if row["fault"]}
    assert faults == dict.fromkeys([("82", 2), ("83", 1), ("83", 2)], "unreadable")


def test_a_judge_that_never_gives_a_readable_grade_is_an_error(tmp_path, data, models):
    with (
        serving(lambda _body, _before: Reply(text="I like it.")) as endpoint,
        pytest.raises(ConfigError, match=r"gives no grade that can be read \('I like it.'"),
    ):
        run_mt_bench(mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url))


def test_two_versions_are_compared_turn_by_turn_in_both_orders(tmp_path, data, models):
    def better(a, b):
        rank = lambda text: hashlib.sha256(text.encode()).hexdigest()  # noqa: E731
        return "A" if rank(a) < rank(b) else "B"

    with serving(choosing_judge(better)) as endpoint:
        base = run_mt_bench(mt_bench_job(tmp_path / "base", data, models[0], endpoint.url))
        job = mt_bench_job(tmp_path / "next", data, models[1], endpoint.url, t=1, previous=base, base=base)
        report = run_mt_bench(job)
    answers, base_answers = (
        {(r["id"], r["turn"]): r["answer"] for r in rows_of(answered, "answers")} for answered in (report, base)
    )
    assert answers != base_answers
    won = {where: float(better(answers[where], base_answers[where]) == "A") for where in answers}
    want = {str(81 + i): (won[str(81 + i), 1] + won[str(81 + i), 2]) / 2 for i in range(QUESTIONS)}
    items = items_of(report)
    assert items["mt-bench/against-previous"] == items["mt-bench/against-base"] == want
    score = report.scores["mt-bench/against-base"]
    assert score.value == pytest.approx(np.mean(list(want.values())))
    assert 0 < score.value < 1
    wins = sum(won.values())
    assert any(
        note.startswith(f"mt-bench/against-base: won {wins:.0f}, tied 0 and lost {2 * QUESTIONS - wins:.0f} answers")
        and "95 % interval" in note
        for note in report.notes
    )
    # Each grade once, each pair twice; the comparisons with base and previous have equal requests, which are sent once.
    assert len(endpoint.requests) == 2 * QUESTIONS * (1 + 1 + 2)
    orders = Counter((row["task"], row["order"]) for row in rows_of(report, "verdicts"))
    assert orders["against-base", "AB"] == orders["against-previous", "BA"] == 2 * QUESTIONS


def test_a_judge_that_prefers_the_first_answer_gives_ties(tmp_path, data, models):
    with serving(choosing_judge(lambda _a, _b: "A")) as endpoint:
        base = run_mt_bench(mt_bench_job(tmp_path / "base", data, models[0], endpoint.url))
        report = run_mt_bench(mt_bench_job(tmp_path / "next", data, models[1], endpoint.url, t=1, base=base))
        requests_before = len(endpoint.requests)
        same = run_mt_bench(mt_bench_job(tmp_path / "same", data, models[0], endpoint.url, t=1, previous=base))
    assert report.scores["mt-bench/against-base"].value == same.scores["mt-bench/against-previous"].value == 0.5
    # Equal answers need no verdict, and the grades of this model are kept.
    assert len(endpoint.requests) == requests_before


def test_grades_by_spins_own_prompts_are_marked_as_not_comparable(tmp_path, data, models):
    published = tmp_path / "published"
    shutil.copytree(data, published)
    rows = [
        {"name": name, "system_prompt": prompt.system, "prompt_template": prompt.template}
        for name, prompt in OWN_PROMPTS.items()
    ]
    (published / "judge_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(grade_by_question) as endpoint:
        own, theirs = (
            run_mt_bench(mt_bench_job(tmp_path / folder.name, folder, models[0], endpoint.url))
            for folder in (data, published)
        )
    note = "graded by tiny-judge with the built-in prompts: not comparable with published MT-Bench scores"
    assert (own.apart, own.notes[0]) == (note, note)
    assert (theirs.apart, note in theirs.notes) == ("", False)


def test_a_report_about_other_questions_is_rejected(tmp_path, data, models):
    with serving(grade_by_question) as endpoint:
        few = run_mt_bench(mt_bench_job(tmp_path / "few", data, models[0], endpoint.url, suite="mt-bench-quick"))
        assert report_ids(few) < {str(81 + i) for i in range(QUESTIONS)}
        with pytest.raises(DataError, match="answers other questions"):
            run_mt_bench(mt_bench_job(tmp_path / "all", data, models[1], endpoint.url, previous=few))


def report_ids(report: EvalReport) -> set[str]:
    return {row["id"] for row in rows_of(report, "answers")}


def test_answers_are_compared_with_the_human_responses_to_held_out_prompts(tmp_path, data, models, human_answers):
    human = lambda a, _b: "A" if "PERSON" in a else "B"  # noqa: E731
    with serving(choosing_judge(human)) as endpoint:
        settings = {"pairwise_prompts": 6}
        report = run_mt_bench(
            mt_bench_job(tmp_path / "mt-bench", data, models[0], endpoint.url, prompts=human_answers, config=settings)
        )
    assert report.scores["mt-bench/against-human"].value == 0
    assert report.scores["mt-bench/against-human"].n == 6
    assert report.scores["mt-bench/against-human"].interval == pytest.approx((0, 0.3903), abs=1e-4)
    assert report.scores["mt-bench"].interval is None
    assert "interval 0.000 to 0.390 over 6 questions" in " ".join(report.notes)
    answers = [row for row in rows_of(report, "answers") if row["category"] == "human"]
    assert len(answers) == 6
    assert set(items_of(report)["mt-bench/against-human"]) == {row["id"] for row in answers}
    assert all(len(row["response_ids"]) <= 10 for row in answers)  # generate's own cap
    assert report.scores["mt-bench"].n == QUESTIONS
    verdicts = [row for row in rows_of(report, "verdicts") if row["task"] == "against-human"]
    assert all("say " in row["prompt"] and "PERSON" in row["prompt"] for row in verdicts)


def configured(url, data, *settings, suites_=("mt-bench",)):
    evaluate = {
        "suites": suites_,
        "mt_bench": {"data": str(data)},
        "judge": {"base_url": url, "model": "tiny-judge", "speed": {"retries": 1}},
    }
    return resolve("demo", overrides={"evaluate": evaluate, **dict(settings)})


def test_spin_check_checks_the_judge(data, monkeypatch):
    def look(config):
        inspection = Inspection()
        inspection.run("judge", inspect_judge, config)
        return [(finding.level, finding.text) for finding in inspection.findings]

    with serving() as endpoint:
        ((level, text),) = look(configured(endpoint.url, data))
        assert level == "ok"
        assert "tiny-judge" in text
        assert f"12 questions in {data}" in text
        endpoint.key = "right"
        ((level, text),) = look(configured(endpoint.url, data))
        assert (level, "(401)" in text) == ("wrong", True)
        ((level, text),) = look(configured(endpoint.url, data / "elsewhere"))
        assert (level, "is not there" in text) == ("wrong", True)
        url = endpoint.url
    ((level, text),) = look(configured(url, data))
    assert (level, "gives no answer" in text) == ("wrong", True)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ((level, text),) = look(configured("", data))
    assert (level, "holds no key" in text) == ("wrong", True)
    assert look(configured("", data, suites_=())) == []


def test_a_lineages_jobs_name_the_versions_to_compare_with(tmp_path, data, models, human_answers):
    with serving(grade_by_question) as endpoint:
        base = run_mt_bench(
            mt_bench_job(tmp_path / "runs" / "game" / "base" / "eval" / "mt-bench", data, models[0], endpoint.url)
        )
        other = run_mt_bench(mt_bench_job(tmp_path / "other" / "mt-bench", data, models[1], endpoint.url))
    config = configured("http://127.0.0.1:1/v1", data)
    pairwise = config.evaluate.mt_bench.model_copy(update={"pairwise": ("previous", "base", "human")})
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"mt_bench": pairwise})})
    lineage = Lineage(runs=tmp_path / "runs", name="game", config=config)

    def job(t, **others):
        jobs = suite_jobs.evaluate_jobs(lineage, version_of(models[0], t), human_answers, None, **others)
        (mt_bench,) = [job_of_suite for job_of_suite in jobs if isinstance(job_of_suite, MtBenchJob)]
        return mt_bench

    first, later = job(0), job(2, against=(other,))
    assert (first.previous, first.base, first.prompts) == (None, None, human_answers)
    assert (later.previous, later.base, later.prompts) == (other, base, human_answers)
    assert later.output == lineage.eval_folder(2) / "mt-bench"
    assert later.generate.temperature == config.evaluate.temperature
    with pytest.raises(ConfigError, match=r"pairwise names previous, and there is no report on that version"):
        job(2)
