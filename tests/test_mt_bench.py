"""The mt_bench phase: a tiny real model answers, and a judge on this machine grades it over HTTP."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endpoint import Reply, serving
from helpers import character_tokenizer, data_folder, save_tiny_model
from judge_model import grade, save_judge
from small_game import CPU, start, version_of

from spin_core import engines, judge, launch, phase, store, suites
from spin_core.check import look_at_judge
from spin_core.config import ChatConfig, GenerateConfig, JudgeConfig, MtBenchConfig, VllmConfig
from spin_core.engine import Request, make_engine
from spin_core.errors import ConfigError, DataError, TryAgain
from spin_core.findings import Looks
from spin_core.generate import seed_of
from spin_core.jobs import MtBenchJob
from spin_core.judge import Journal
from spin_core.lineage import Lineage
from spin_core.mt_bench import run
from spin_core.questions import TEMPERATURES, Speaker, fit, load_questions, quick
from spin_core.recipes import resolve
from spin_core.records import EvalReport, PromptSet

VLLM = engines.vllm_python(VllmConfig())
needs_vllm = pytest.mark.skipif(not VLLM.exists(), reason=f"no vLLM at {VLLM}: make vllm installs it")

CATEGORIES = ("writing", "math", "stem")
EACH = 4
QUESTIONS = 3 * EACH


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of MT-Bench's form: four questions in each of three categories, one of math without a reference."""
    folder = tmp_path_factory.mktemp("mt-bench")
    rows = [
        {"question_id": 81 + i, "category": CATEGORIES[i // EACH], "turns": [f"Q{81 + i}.1?", f"Q{81 + i}.2?"]}
        for i in range(QUESTIONS)
    ]
    references = [
        {"question_id": row["question_id"], "choices": [{"index": 0, "turns": ["REF one", "REF two"]}]}
        for row in rows[EACH + 1 :]  # those of stem too, which nobody is to see
    ]
    for name, table in (("question", rows), ("reference_answer_gpt-4", references)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two random models with a vocabulary of characters."""
    root = tmp_path_factory.mktemp("models")
    return [save_tiny_model(root / str(seed), character_tokenizer(), seed) for seed in range(2)]


@pytest.fixture(autouse=True)
def _without_long_pauses(monkeypatch):
    monkeypatch.setattr(judge, "FIRST_PAUSE", 0.02)


def job_of(output: Path, data: Path | None, model: Path, url: str, **fields) -> MtBenchJob:
    config = {"max_new_tokens": 12, "data": data, **fields.pop("config", {})}
    judged = {"base_url": url, "model": "tiny-judge", "speed": {"retries": 2}, **fields.pop("judge", {})}
    generate = {"engine": "transformers", "max_new_tokens": 10, **fields.pop("generate", {})}
    return MtBenchJob(
        output=output,
        suite=fields.pop("suite", "mt-bench"),
        config=MtBenchConfig(**config),
        judge=JudgeConfig(**judged),
        generate=GenerateConfig(**generate),
        model=CPU,
        chat=ChatConfig(template="plain"),
        player=version_of(model, fields.pop("t", 0)),
        **fields,
    )


def do(job: MtBenchJob) -> EvalReport:
    return phase.execute(job, EvalReport, run, phase.Progress(quiet=True))


def rows_of(report: EvalReport, name: str) -> list[dict]:
    return pq.read_table(report.path / f"{name}.parquet").to_pylist()


def items_of(report: EvalReport) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows_of(report, "items"):
        found.setdefault(row["task"], {})[row["item"]] = row["value"]
    return found


def shown(body: dict) -> str:
    return body["messages"][-1]["content"]


def grade_of(id: int, turn: int) -> int:
    return 1 + (3 * id + 5 * turn) % 10


def grades(body, _before) -> Reply:
    """Grades by the question and the turn."""
    (id, turn) = re.findall(r"Q(\d+)\.([12])\?", shown(body))[-1]
    return Reply(text=f"So. [[{grade_of(int(id), int(turn))}]]")


def likes(wanted):
    """Of two answers the one that `wanted` likes better; the other kind of prompt gets a 5."""

    def reply(body, _before):
        text = shown(body)
        if "assistant B" not in text:
            return Reply(text="[[5]]")
        fence = text.splitlines()[-1].removesuffix(" end")
        blocks = re.split(rf"{fence} (.*)\n", f"{text}\n")[1:]
        last = {title: said.removesuffix("\n") for title, said in zip(blocks[::2], blocks[1::2], strict=False)}
        return Reply(text=f"[[{wanted(last['the answer of assistant A'], last['the answer of assistant B'])}]]")

    return reply


def test_scores_are_the_judges_grades_by_question_category_and_turn(tmp_path, data, models):
    with serving(grades) as endpoint:
        report = do(job_of(tmp_path / "mt-bench", data, models[0], endpoint.url))
    assert len(endpoint.asked) == 2 * QUESTIONS
    whole = {str(81 + i): (grade_of(81 + i, 1) + grade_of(81 + i, 2)) / 2 for i in range(QUESTIONS)}
    found = items_of(report)
    assert found["mt-bench"] == whole
    assert found["mt-bench/math"] == {id: whole[id] for id in list(whole)[EACH : 2 * EACH]}
    assert found["mt-bench/turn-2"] == {str(81 + i): grade_of(81 + i, 2) for i in range(QUESTIONS)}
    turns = {"mt-bench/turn-1", "mt-bench/turn-2"}
    assert set(report.scores) == set(found) == {"mt-bench", *turns, *(f"mt-bench/{name}" for name in CATEGORIES)}
    score = report.scores["mt-bench"]
    assert score.value == pytest.approx(np.mean(list(whole.values())))
    assert score.stderr == pytest.approx(np.std(list(whole.values()), ddof=1) / np.sqrt(QUESTIONS))
    assert (score.n, score.higher_is_better) == (QUESTIONS, True)
    assert (report.suite, report.model) == ("mt-bench", version_of(models[0]).digest)
    assert "tiny-judge" in report.harness
    assert store.verify(report.path) == []


def test_answers_and_verdicts_are_kept_whole(tmp_path, data, models):
    with serving(grades) as endpoint:
        report = do(job_of(tmp_path / "mt-bench", data, models[0], endpoint.url))
    answers, verdicts = rows_of(report, "answers"), rows_of(report, "verdicts")
    assert [(row["id"], row["turn"]) for row in answers] == [(str(81 + i), t) for i in range(QUESTIONS) for t in (1, 2)]
    said = {(row["id"], row["turn"]): row for row in answers}
    assert Counter(row["task"] for row in verdicts) == {"grade": 2 * QUESTIONS}
    for row in verdicts:
        prompt = json.loads(row["prompt"])[-1]["content"]
        assert said[row["id"], row["turn"]]["answer"] in prompt
        assert said[row["id"], 1]["answer"] in prompt
        assert f"Q{row['id']}.1?" in prompt
        assert (f"Q{row['id']}.2?" in prompt) == (row["turn"] == 2)
        assert row["reply"] == f"So. [[{row['value']}]]"
        assert (row["model"], row["asked"], row["fault"]) == ("tiny-judge", 1, "")
        # References are for math alone here, and for the turns up to the one that is judged.
        seen = [one for one in ("REF one", "REF two") if one in prompt]
        is_math = 85 < int(row["id"]) <= 88
        assert seen == (["REF one", "REF two"][: row["turn"]] if is_math else [])
    assert "1 questions are judged without the reference answer they should have" in report.notes
    assert not list(report.path.glob(".*"))


def test_the_second_turn_sees_the_first_and_each_category_has_its_temperature(tmp_path, data, models):
    with serving(grades) as endpoint:
        job = job_of(tmp_path / "mt-bench", data, models[0], endpoint.url, generate={"temperature": 3.0, "top_k": 2})
        report = do(job)
    tokenizer = character_tokenizer()
    said = {(row["id"], row["turn"]): row for row in rows_of(report, "answers")}
    for (id, turn), row in said.items():
        text = row["question"] if turn == 1 else f"Q{id}.1?\n{said[id, 1]['answer']}\n{row['question']}"
        prompt = [1, *tokenizer(text)["input_ids"]]
        # Greedy at 1e-6: the engine's own settings do not take 0.
        drawn = GenerateConfig(temperature=TEMPERATURES[row["category"]] or 1e-6, max_new_tokens=12)
        engine = make_engine(models[0], CPU, (2,), drawn, 0)
        ((_, want),) = engine.answer([Request(prompt, seed_of(0, "mt-bench", id, turn))])
        assert row["response_ids"] == want.response_ids
        assert row["finish_reason"] == want.finish_reason
        assert row["answer"] == tokenizer.decode(want.response_ids, skip_special_tokens=True)
    cut = sum(row["finish_reason"] == "length" for row in said.values())
    assert f"{cut} of {2 * QUESTIONS} answers were cut at their longest" in report.notes


def test_a_grade_that_cannot_be_read_does_not_count(tmp_path, data, models):
    def reply(body, _before):
        text = str(body["messages"][:2])
        return Reply(text="ten") if "Q82.2?" in text or "Q83" in text else Reply(text="[[4]]")

    with serving(reply) as endpoint:
        report = do(job_of(tmp_path / "mt-bench", data, models[0], endpoint.url))
    assert report.scores["mt-bench"].value == report.scores["mt-bench/turn-2"].value == 4
    assert (report.scores["mt-bench"].n, report.scores["mt-bench/turn-2"].n) == (QUESTIONS - 1, QUESTIONS - 2)
    assert any(
        note.startswith(f"3 of {2 * QUESTIONS} of the judge's verdicts could not be read") for note in report.notes
    )
    faults = {(row["id"], row["turn"]): row["fault"] for row in rows_of(report, "verdicts") if row["fault"]}
    assert faults == dict.fromkeys([("82", 2), ("83", 1), ("83", 2)], "unreadable")


def test_a_judge_that_never_follows_the_form_is_refused(tmp_path, data, models):
    with (
        serving(lambda _body, _before: Reply(text="I like it.")) as endpoint,
        pytest.raises(ConfigError, match=r"gives no grade that can be read \('I like it.'"),
    ):
        do(job_of(tmp_path / "mt-bench", data, models[0], endpoint.url))


def test_two_versions_are_compared_turn_by_turn_in_both_orders(tmp_path, data, models):
    def better(a, b):
        rank = lambda text: hashlib.sha256(text.encode()).hexdigest()  # noqa: E731
        return "A" if rank(a) < rank(b) else "B"

    with serving(likes(better)) as endpoint:
        base = do(job_of(tmp_path / "base", data, models[0], endpoint.url))
        job = job_of(tmp_path / "next", data, models[1], endpoint.url, t=1, previous=base, base=base)
        report = do(job)
    ours, theirs = ({(r["id"], r["turn"]): r["answer"] for r in rows_of(one, "answers")} for one in (report, base))
    assert ours != theirs
    won = {where: float(better(ours[where], theirs[where]) == "A") for where in ours}
    want = {str(81 + i): (won[str(81 + i), 1] + won[str(81 + i), 2]) / 2 for i in range(QUESTIONS)}
    found = items_of(report)
    assert found["mt-bench/against-previous"] == found["mt-bench/against-base"] == want
    score = report.scores["mt-bench/against-base"]
    assert score.value == pytest.approx(np.mean(list(want.values())))
    assert 0 < score.value < 1
    wins = sum(won.values())
    assert any(
        note.startswith(f"mt-bench/against-base: won {wins:.0f}, tied 0 and lost {2 * QUESTIONS - wins:.0f} answers")
        and "95 % interval" in note
        for note in report.notes
    )
    # Each grade once, each pair twice, and what is one question to the judge is asked once.
    assert len(endpoint.asked) == 2 * QUESTIONS * (1 + 1 + 2)
    orders = Counter((row["task"], row["order"]) for row in rows_of(report, "verdicts"))
    assert orders["against-base", "AB"] == orders["against-previous", "BA"] == 2 * QUESTIONS


def test_a_judge_that_likes_what_it_reads_first_finds_ties(tmp_path, data, models):
    with serving(likes(lambda _a, _b: "A")) as endpoint:
        base = do(job_of(tmp_path / "base", data, models[0], endpoint.url))
        report = do(job_of(tmp_path / "next", data, models[1], endpoint.url, t=1, base=base))
        asked = len(endpoint.asked)
        same = do(job_of(tmp_path / "same", data, models[0], endpoint.url, t=1, previous=base))
    assert report.scores["mt-bench/against-base"].value == same.scores["mt-bench/against-previous"].value == 0.5
    # Equal answers are no question.
    assert len(endpoint.asked) == asked + 2 * QUESTIONS


def test_a_report_about_other_questions_is_refused(tmp_path, data, models):
    with serving(grades) as endpoint:
        few = do(job_of(tmp_path / "few", data, models[0], endpoint.url, suite="mt-bench-quick"))
        assert report_ids(few) < {str(81 + i) for i in range(QUESTIONS)}
        with pytest.raises(DataError, match="answers other questions"):
            do(job_of(tmp_path / "all", data, models[1], endpoint.url, previous=few))


def report_ids(report: EvalReport) -> set[str]:
    return {row["id"] for row in rows_of(report, "answers")}


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> PromptSet:
    """Ten held-out prompts with a human response each."""
    folder, tokenizer = tmp_path_factory.mktemp("prompts"), character_tokenizer()
    asked = [f"say {i}" for i in range(10)]
    columns = {
        "id": [f"{i:016x}" for i in range(10)],
        "prompt": asked,
        "response": [f"PERSON {i}" for i in range(10)],
        "prompt_ids": pa.array([[1, *tokenizer(text)["input_ids"]] for text in asked], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), folder / "held_out.parquet")
    return PromptSet(path=folder, digest="0" * 64, source="x", revision=None, rows=0, held_out=10, drops={})


def test_answers_are_compared_with_the_human_responses_to_held_out_prompts(tmp_path, data, models, people):
    human = lambda a, _b: "A" if "PERSON" in a else "B"  # noqa: E731
    with serving(likes(human)) as endpoint:
        some = {"pairwise_prompts": 6}
        report = do(job_of(tmp_path / "mt-bench", data, models[0], endpoint.url, prompts=people, config=some))
    assert report.scores["mt-bench/against-human"].value == 0
    assert report.scores["mt-bench/against-human"].n == 6
    assert "interval 0.000 to 0.390 over 6 questions" in " ".join(report.notes)
    answers = [row for row in rows_of(report, "answers") if row["category"] == "human"]
    assert len(answers) == 6
    assert set(items_of(report)["mt-bench/against-human"]) == {row["id"] for row in answers}
    assert all(len(row["response_ids"]) <= 10 for row in answers)  # generate's own cap
    assert report.scores["mt-bench"].n == QUESTIONS
    asked = [row for row in rows_of(report, "verdicts") if row["task"] == "against-human"]
    assert all("say " in row["prompt"] and "PERSON" in row["prompt"] for row in asked)


def test_a_long_prompt_loses_its_beginning_and_leaves_room_for_an_answer():
    assert fit([1, 2, 3], 1024, None) == [1, 2, 3]
    assert fit(list(range(100)), 1024, 100) == list(range(25, 100))
    assert fit(list(range(100)), 7, 100) == list(range(7, 100))
    assert fit(list(range(60)), 40, 100) == list(range(60))


def test_a_prompt_that_does_not_fit_is_noted(tmp_path, models):
    folder = tmp_path / "long"
    folder.mkdir()
    row = {"question_id": 1, "category": "writing", "turns": ["x" * 1500, "again"]}
    (folder / "question.jsonl").write_text(json.dumps(row))
    (folder / "reference_answer_gpt-4.jsonl").write_text("")
    with serving() as endpoint:
        report = do(job_of(tmp_path / "mt-bench", folder, models[0], endpoint.url))
    assert "2 of 2 prompts are too long for the model and lost their beginning" in report.notes


# Interruptions.


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_phase_that_is_ended_among_the_verdicts_asks_nothing_twice(tmp_path, data, models, how):
    slow = {"judge": {"speed": {"parallel": 2}}}
    with serving(lambda body, before: Reply(text=grades(body, before).text, seconds=0.15)) as endpoint:
        job = job_of(tmp_path / "mt-bench", data, models[0], endpoint.url, **slow)
        with start(job, tmp_path / "first") as process:
            for line in process.stdout:
                said = json.loads(line)
                if said.get("unit") == "verdict" and said["done"] >= 5:
                    process.send_signal(how)
                    break
            process.stdout.read()
        assert process.wait() == (-9 if how == signal.SIGKILL else 143)
        time.sleep(0.4)  # what was in flight ends
        scratch = phase.scratch_of(job.output)
        kept = {row["key"] for row in Journal(scratch / ".verdicts.jsonl").rows}
        answered = (scratch / ".answers.jsonl").read_text()
        asked = len(endpoint.asked)
        assert 5 <= len(kept) < 2 * QUESTIONS
        report = do(job)
    again = {key_of(body) for body in endpoint.asked[asked:]}
    assert again & kept == set()
    lost = asked - len(kept)
    assert lost <= (2 if how == signal.SIGKILL else 0)  # those in flight
    assert len(endpoint.asked) == 2 * QUESTIONS + lost
    for line in answered.splitlines():
        row = json.loads(line)
        published = next(r for r in rows_of(report, "answers") if (r["id"], r["turn"]) == (row["id"], row["turn"]))
        assert published["answer"] == row["answer"]
    assert report.scores["mt-bench"].n == QUESTIONS


def key_of(body: dict) -> str:
    return hashlib.sha256(json.dumps(body["messages"], ensure_ascii=False).encode()).hexdigest()


def test_a_phase_that_is_killed_among_the_answers_gives_none_twice(tmp_path, data, models, monkeypatch):
    with serving(grades) as endpoint:
        whole = do(job_of(tmp_path / "whole", data, models[0], endpoint.url))
        job = job_of(tmp_path / "mt-bench", data, models[0], endpoint.url, generate={"batch_size": 2})
        scratch = phase.workspace(job.output, job.model_dump(mode="json"))
        told = (rows_of(whole, "answers")[i] for i in (0, 1, 4))
        marked = [{**row, "answer": f"kept {row['id']}", "prompt_cut": False} for row in told]
        lines = [json.dumps(row) + "\n" for row in marked]
        (scratch / ".answers.jsonl").write_text("".join(lines) + '{"id": "84", "tu')
        asked = []
        answer = Speaker.answer_turn

        def count(self, engine, questions, turn, progress):
            asked.extend((question.id, turn) for question in questions)
            answer(self, engine, questions, turn, progress)

        monkeypatch.setattr(Speaker, "answer_turn", count)
        report = do(job)
    assert len(asked) == len(set(asked)) == 2 * QUESTIONS - 3
    kept = [row["answer"] for row in rows_of(report, "answers") if row["answer"].startswith("kept")]
    assert kept == ["kept 81", "kept 81", "kept 83"]


@pytest.mark.slow
def test_a_judge_that_is_down_ends_the_phase_before_anything_is_computed(tmp_path, data, models):
    with serving() as endpoint:
        url = endpoint.url
    job = job_of(tmp_path / "mt-bench", data, models[0], url)
    with start(job, tmp_path / "log") as process:
        *_, last = process.stdout.read().splitlines()
    assert process.wait() == 75
    told = json.loads(last)
    assert told["error"] == "TryAgain"
    assert told["message"].startswith(f"the judge at {url} gives no answer (")
    assert "\n" not in told["message"]
    assert not (phase.scratch_of(job.output) / ".answers.jsonl").exists()


def test_a_judge_that_goes_down_on_the_way_costs_nothing_that_was_done(tmp_path, data, models):
    def reply(body, before):
        return Reply(503, "gone") if len(endpoint.answered) >= 7 else grades(body, before)

    with serving(reply) as endpoint:
        job = job_of(
            tmp_path / "mt-bench", data, models[0], endpoint.url, judge={"speed": {"retries": 2, "parallel": 1}}
        )
        with pytest.raises(TryAgain, match="503 gone; attempt 2 of 2"):
            do(job)
        endpoint.reply = grades
        report = do(job)
    assert len(endpoint.answered) == len(set(endpoint.answered)) == 2 * QUESTIONS
    assert report.scores["mt-bench"].n == QUESTIONS


def test_a_key_that_is_missing_or_wrong_ends_the_phase_before_anything_is_computed(tmp_path, data, models, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    job = job_of(tmp_path / "mt-bench", data, models[0], "")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no key"):
        do(job)
    with serving() as endpoint:
        endpoint.key = "right"
        job = job_of(tmp_path / "mt-bench", data, models[0], endpoint.url)
        with pytest.raises(ConfigError, match=r"refuses a request without a key: OPENAI_API_KEY \(401\)"):
            do(job)
    assert not (phase.scratch_of(job.output) / ".answers.jsonl").exists()


# The data.


def test_the_real_questions_are_read():
    questions = load_questions(data_folder("mt_bench"))
    assert len(questions) == 80
    assert Counter(question.category for question in questions) == dict.fromkeys(TEMPERATURES, 10)
    with_references = [question.category for question in questions if question.references]
    assert Counter(with_references) == {"math": 10, "reasoning": 10, "coding": 10}
    few = quick(questions, 0)
    assert Counter(question.category for question in few) == dict.fromkeys(TEMPERATURES, 3)
    assert [q.id for q in few] == [q.id for q in questions if q in few] != [q.id for q in quick(questions, 1)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no questions"),
        ([{"question_id": 1, "category": "math", "turns": ["one"]}], "question 1 needs .* two turns"),
        ([{"question_id": 1, "turns": ["one", "two"]}], "question 1 needs"),
        ([{"question_id": 1, "category": "x", "turns": ["a", "b"]}] * 2, "two of one question_id"),
    ],
)
def test_questions_that_are_none_are_refused(tmp_path, rows, said):
    (tmp_path / "question.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "reference_answer_gpt-4.jsonl").write_text("")
    with pytest.raises(DataError, match=said):
        load_questions(tmp_path)


def test_a_folder_without_questions_and_a_hub_out_of_reach_are_told(tmp_path):
    with pytest.raises(DataError, match=r"question.jsonl is not there: set evaluate.mt_bench.data"):
        load_questions(tmp_path)
    with pytest.raises(DataError, match=r"mt_bench_prompts is no file or folder here.*mend evaluate.mt_bench.data"):
        load_questions(None)


# What leads to it.


def configured(url, data, *settings, suites_=("mt-bench",)):
    evaluate = {
        "suites": suites_,
        "mt_bench": {"data": str(data)},
        "judge": {"base_url": url, "model": "tiny-judge", "speed": {"retries": 1}},
    }
    return resolve("demo", overrides={"evaluate": evaluate, **dict(settings)})


def test_spin_check_meets_the_judge(data, monkeypatch):
    def look(config):
        looks = Looks()
        looks.at("judge", look_at_judge, config)
        return [(finding.level, finding.text) for finding in looks.findings]

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


def test_a_lineages_jobs_name_whom_to_compare_with(tmp_path, data, models, people):
    with serving(grades) as endpoint:
        base = do(job_of(tmp_path / "runs" / "game" / "base" / "eval" / "mt-bench", data, models[0], endpoint.url))
        other = do(job_of(tmp_path / "other" / "mt-bench", data, models[1], endpoint.url))
    config = configured("http://127.0.0.1:1/v1", data)
    pairwise = config.evaluate.mt_bench.model_copy(update={"pairwise": ("previous", "base", "human")})
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"mt_bench": pairwise})})
    game = Lineage(runs=tmp_path / "runs", name="game", config=config)

    def job(t, **others):
        jobs = suites.evaluate_jobs(game, version_of(models[0], t), people, None, **others)
        (found,) = [one for one in jobs if isinstance(one, MtBenchJob)]
        return found

    first, later = job(0), job(2, against=(other,))
    assert (first.previous, first.base, first.prompts) == (None, None, people)
    assert (later.previous, later.base, later.prompts) == (other, base, people)
    assert later.output == game.eval_folder(2) / "mt-bench"
    assert later.generate.temperature == config.evaluate.temperature
    with pytest.raises(ConfigError, match=r"pairwise names previous, and there is no report on that version"):
        job(2)


# A server that others wrote, and a model that speaks.


@contextlib.contextmanager
def vllm_serving(model: Path, log: Path):
    """What `vllm serve` runs, on a free port of this machine. The CPU build's own command does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny-judge", "--dtype", "float32"]
    given += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    words = [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *given]
    with log.open("wb") as file:
        server = subprocess.Popen(
            words, stdout=file, stderr=file, env={**os.environ, **settings}, start_new_session=True
        )
        try:
            wait_until_up(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@needs_vllm
@pytest.mark.slow
def test_a_judge_behind_vllms_own_server_grades_and_compares(tmp_path, data, models, people):
    with vllm_serving(save_judge(tmp_path / "judge"), tmp_path / "server.log") as url:
        brief = {"judge": {"max_tokens": 64}}
        base = do(job_of(tmp_path / "base", data, models[0], url, **brief))
        some = {"pairwise_prompts": 4}
        job = job_of(tmp_path / "next", data, models[1], url, t=1, base=base, prompts=people, config=some, **brief)
        report = launch.run_phase(job, EvalReport)
        with pytest.raises(ConfigError, match=r"has no model 'gpt-9'.*tiny-judge"):
            do(job_of(tmp_path / "unknown", data, models[0], url, judge={"model": "gpt-9"}))
        with pytest.raises(ConfigError, match=r"refuses our request \(400 max_tokens=2048 cannot be greater"):
            do(job_of(tmp_path / "verbose", data, models[0], url))
        (folder := tmp_path / "long").mkdir()
        asked = {"question_id": 1, "category": "stem", "turns": ["why " * 1200, "and why?"]}
        (folder / "question.jsonl").write_text(json.dumps(asked))
        (folder / "reference_answer_gpt-4.jsonl").write_text("")
        with pytest.raises(ConfigError, match=r"exceed its context: lower evaluate.judge.max_tokens"):
            do(job_of(tmp_path / "long-answers", folder, models[0], url, **brief))
    for row in rows_of(report, "verdicts"):
        prompt = json.loads(row["prompt"])[-1]["content"]
        want = f"{grade(prompt):g}" if row["task"] == "grade" else "B"
        if row["task"] == "against-human":
            want = {"AB": "B", "BA": "A"}[row["order"]]
        assert (row["value"], row["model"], row["asked"]) == (want, "tiny-judge", 1)
        assert row["prompt_tokens"] > 50
        assert row["completion_tokens"] == 2
    assert report.scores["mt-bench/against-base"].value == 0.5  # it says B in both orders
    assert report.scores["mt-bench/against-human"].value == 0
    assert 3 < report.scores["mt-bench"].value < 9


@needs_vllm
@pytest.mark.slow
def test_vllm_answers_where_generate_says_so(tmp_path, data):
    from transformers import LlamaConfig, LlamaForCausalLM

    # Heads as wide as vLLM's kernels want them.
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with serving(grades) as endpoint:
        vllm = {"engine": "vllm", "vllm": {"speed": {"cache_gb": 0.0625}}}
        ours = do(job_of(tmp_path / "ours", data, tmp_path / "model", endpoint.url))
        theirs = launch.run_phase(
            job_of(tmp_path / "theirs", data, tmp_path / "model", endpoint.url, generate=vllm), EvalReport
        )
    # At temperature 0 there is one answer.
    math = [
        {(row["id"], row["turn"]): row["answer"] for row in rows_of(report, "answers") if row["category"] == "math"}
        for report in (ours, theirs)
    ]
    assert math[0] == math[1]
    assert theirs.scores == ours.scores
