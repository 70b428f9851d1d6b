"""Phase `mt_bench`: MT-Bench (Zheng et al. 2023, arXiv 2306.05685): `python -m spin_core.phases.mt_bench JOB`.

Suites `mt-bench` and `mt-bench-quick`. The model answers questions of two turns each, at the temperature that the
benchmark sets for their category, and a judge grades each answer from 1 to 10. Scores, under the suite's name:

    mt-bench               a question's mean grade over its turns, and the mean of that over questions
    mt-bench/math …        over the questions of one category
    mt-bench/turn-1, -2    over one turn
    mt-bench/against-previous, -base, -human    how often the judge prefers these answers to another version's, or to
                           the human responses to held-out prompts. A tie is half a win, so .5 means no difference

A verdict that the judge gives in no readable form, or refuses to give, does not count, and a note says how many do not.

Writes `answers.parquet`, `verdicts.parquet` with the judge's replies, and `items.parquet`. Answers and verdicts are
written to journals one by one, so a restart neither samples nor requests anything twice. All lineages share them:
another judge reads the same answers, and no verdict is requested twice.
"""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spin_core.errors import ConfigError
from spin_core.evaluation.items import write_items
from spin_core.evaluation.mt_bench.answers import Answerer, answers_folder
from spin_core.evaluation.mt_bench.judge import Judge, Verdicts, verdicts_folder
from spin_core.evaluation.mt_bench.judge_prompts import OWN_PROMPTS, Prompts, read_prompts
from spin_core.evaluation.mt_bench.questions import (
    HUMAN,
    Answers,
    Question,
    TurnKey,
    held_out_questions,
    load_questions,
    quick_questions,
)
from spin_core.evaluation.mt_bench.scores import (
    comparison_note,
    comparison_values,
    fault_notes,
    grade_values,
    make_scores,
    reference_notes,
    score_name,
)
from spin_core.evaluation.mt_bench.tables import read_answers, write_answers, write_verdicts
from spin_core.evaluation.mt_bench.verdicts import Comparison, VerdictRequest, compare, grade_request, win_value
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store import lock
from spin_core.store.evaluation_jobs import MtBenchJob
from spin_core.store.journal import Journal
from spin_core.store.records import EvalReport

log = logging.getLogger("spin_core")

OWN_PROMPTS_NOTE = "graded by {model} with the built-in prompts: not comparable with published MT-Bench scores"


class Contender(NamedTuple):
    """Whose answers the player's are compared with, and on which questions."""

    name: str
    """`previous`, `base` or `human`."""
    answers: Answers
    questions: list[Question]


class Requests(NamedTuple):
    """All verdicts that a report needs."""

    grades: dict[TurnKey, VerdictRequest]
    comparisons: list[Comparison]

    def all(self) -> list[VerdictRequest]:
        """Return all requests: grades first."""
        return [*self.grades.values(), *(request for pair in self.comparisons for request in pair.requests)]


def run(job: MtBenchJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Sample the missing answers, request the missing verdicts, and write the report."""
    questions, prompts = load_questions(job.config.data), read_prompts(job.config.data)
    if job.suite == "mt-bench-quick":
        questions = quick_questions(questions, job.seed)
    contenders = _contenders(job, questions)
    human_questions = [
        question for contender in contenders if contender.name == HUMAN for question in contender.questions
    ]
    all_questions = [*questions, *human_questions]
    judge = Judge(job.judge)
    judge.endpoint.check()  # before anything is computed

    answerer = _answer(job, all_questions, progress)
    requests = _requests(prompts, questions, contenders, answerer.answers())
    verdicts = _judge(job, judge, requests, progress)

    grades = {turn_key: verdicts.by_key[request.key]["value"] for turn_key, request in requests.grades.items()}
    win_values = [
        win_value([verdicts.by_key[request.key]["value"] for request in comparison.requests])
        for comparison in requests.comparisons
    ]
    ids = [question.id for question in all_questions]
    values = grade_values(job.suite, questions, grades, ids)
    values |= comparison_values(job.suite, requests.comparisons, win_values, ids)
    scores = make_scores(values, win_rates=[score_name(job.suite, contender.name) for contender in contenders])

    write_items(scratch / "items.parquet", ids, values)
    write_answers(scratch / "answers.parquet", all_questions, answerer.rows)
    write_verdicts(scratch / "verdicts.parquet", requests.grades, requests.comparisons, verdicts)

    apart = OWN_PROMPTS_NOTE.format(model=job.judge.model) if prompts is OWN_PROMPTS else ""
    notes = [apart] if apart else []
    notes += [*answerer.notes(), *reference_notes(questions), *fault_notes(requests.all(), verdicts)]
    for contender in contenders:
        name = score_name(job.suite, contender.name)
        pairs = zip(requests.comparisons, win_values, strict=True)
        if name in scores:
            own = [value for comparison, value in pairs if comparison.against == contender.name]
            notes.append(comparison_note(name, scores[name], own))
    for note in notes:
        log.info("%s", note)
    return {
        "model": job.player.digest,
        "suite": job.suite,
        "harness": f"MT-Bench judged by {job.judge.model} at {judge.endpoint.url}, "
        f"openai {importlib.metadata.version('openai')}",
        "scores": scores,
        "notes": notes,
        "apart": apart,
    }


def _contenders(job: MtBenchJob, questions: list[Question]) -> list[Contender]:
    """Return all whose answers the player's are compared with."""
    contenders = [
        Contender(name, read_answers(report, questions), questions)
        for name, report in (("previous", job.previous), ("base", job.base))
        if report is not None
    ]
    if job.prompts is not None:
        human_questions, responses = held_out_questions(job.prompts, job.config.pairwise_prompts, job.seed)
        contenders.append(Contender(HUMAN, responses, human_questions))
    return contenders


def _answer(job: MtBenchJob, questions: Sequence[Question], progress: Progress) -> Answerer:
    """Sample the answers that no lineage has sampled yet."""
    folder = answers_folder(job)
    with lock.locked(folder, wait=True):
        answerer = Answerer(job, Journal(folder / "answers.jsonl"), questions)
        answerer.answer_all(progress)
    return answerer


def _requests(
    prompts: Prompts, questions: Sequence[Question], contenders: Sequence[Contender], answers: Answers
) -> Requests:
    """Return the requests for all verdicts."""
    grades = {
        (question.id, turn): grade_request(prompts, question, answers[question.id], turn)
        for question in questions
        for turn in (1, 2)
    }
    comparisons = [
        compare(
            prompts,
            contender.name,
            question,
            player=answers[question.id],
            other=contender.answers[question.id],
            turn=turn,
        )
        for contender in contenders
        for question in contender.questions
        for turn in range(1, len(question.turns) + 1)
    ]
    return Requests(grades, comparisons)


def _judge(job: MtBenchJob, judge: Judge, requests: Requests, progress: Progress) -> Verdicts:
    """Request the verdicts that this judge has given to no lineage yet. Raises `ConfigError` if no grade is given."""
    folder = verdicts_folder(job)
    with lock.locked(folder, wait=True):
        verdicts = Verdicts(Journal(folder / "verdicts.jsonl"))
        verdicts.request_all(requests.all(), judge, progress)
        grades = [verdicts.by_key[request.key] for request in requests.grades.values()]
        if not any(grade["value"] for grade in grades):
            # The model behind this name may be fixed later, so its verdicts must not be reused then.
            verdicts.journal.path.unlink(missing_ok=True)
            raise _no_grades(job.judge.model, grades[0])
    return verdicts


def _no_grades(model: str, verdict: Mapping[str, Any]) -> ConfigError:
    """Return what to do if no answer was graded; `verdict` is one of those without a grade."""
    if verdict["fault"] == "too long":
        return ConfigError(
            f"what judge {model} is to read and its longest verdict together exceed its context: lower "
            "evaluate.judge.max_tokens, or set evaluate.judge.model to one with a longer context"
        )
    if verdict["fault"] == "refused":
        return ConfigError(
            f"judge {model} grades nothing, and refuses what it is to read ({verdict['reply']}): set "
            "evaluate.judge.model to one that takes these questions"
        )
    reply = " ".join(verdict["reply"].split())[:80]
    return ConfigError(
        f"judge {model} gives no grade that can be read ({reply!r}, for instance): set evaluate.judge.model to one "
        "that ends its reply with a grade such as [[7]] when asked to"
    )


if __name__ == "__main__":
    main(MtBenchJob, EvalReport, run)
