"""Phase `mt_bench`: MT-Bench (Zheng et al. 2023, arXiv 2306.05685). Suites `mt-bench` and `mt-bench-quick`.

The model answers questions of two turns each, at the temperature that the benchmark sets for their category, and a
judge grades each answer from 1 to 10. Under the suite's name:

    mt-bench               a question's mean grade over its turns, and the mean of that over questions
    mt-bench/math …        over the questions of one category
    mt-bench/turn-1, -2    over one turn
    mt-bench/against-previous, -base, -human    how often a judge likes these answers better than another version's,
                           or than the human responses to held-out prompts, a tie half; .5 if nothing is to choose

A grade that the judge does not give in a form that can be read does not count, nor does one that it refuses to give,
and a note says how many do not.

Writes `answers.parquet`, `verdicts.parquet` with the judge's replies, and `items.parquet`. Answers and verdicts are
journaled one by one, so a restart neither answers nor asks anything twice; what it answers shares its batch with fewer
others, which may change a logit's last bits. Both are kept for all lineages: another judge reads the answers that are
there, and what a judge has said of an answer, or of two, it is not asked again.
"""

import importlib.metadata
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.errors import ConfigError, DataError
from spin_core.evaluation.items import Values, mean, write_items
from spin_core.evaluation.judge import Judge, Verdicts
from spin_core.evaluation.questions import (
    HUMAN,
    REFERENCED,
    Question,
    Said,
    Speaker,
    Where,
    answers_folder,
    held_out,
    load_questions,
    quick,
    verdicts_folder,
)
from spin_core.evaluation.verdicts import (
    OWN,
    SINGLE,
    Ask,
    Pair,
    Prompts,
    interval,
    messages,
    outcome,
    pair,
    prompt_name,
    read_prompts,
    shown,
)
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store import lock
from spin_core.store.jobs import MtBenchJob
from spin_core.store.journal import Journal
from spin_core.store.records import EvalReport, Score

log = logging.getLogger("spin_core")

ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("category", pa.string()),
        ("turn", pa.int32()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)

VERDICTS = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.string()),
        ("turn", pa.int32()),
        ("order", pa.string()),
        ("value", pa.string()),
        ("fault", pa.string()),
        ("asked", pa.int32()),
        ("reply", pa.string()),
        ("model", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("prompt", pa.string()),
    ]
)
"""`order` is `AB` where ours is A, `BA` where it is B, and empty for a grade."""

OWN_PROMPTS = "graded by {model} with Spin's own prompts: not comparable with published MT-Bench scores"

Grades = Mapping[Where, float | None]


def run(job: MtBenchJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer what no journal holds the answer of yet, then ask for the verdicts that are missing."""
    questions, prompts = load_questions(job.config.data), read_prompts(job.config.data)
    if job.suite == "mt-bench-quick":
        questions = quick(questions, job.seed)
    people: list[Question] = []
    compared: list[tuple[str, Said, list[Question]]] = [
        (against, answers_of(report, questions), questions)
        for against, report in (("previous", job.previous), ("base", job.base))
        if report is not None
    ]
    if job.prompts is not None:
        people, responses = held_out(job.prompts, job.config.pairwise_prompts, job.seed)
        compared.append((HUMAN, responses, people))
    judge = Judge(job.judge)
    judge.meet()
    entry = answers_folder(job)
    with lock.locked(entry, wait=True):
        speaker = Speaker(job, Journal(entry / "answers.jsonl"), [*questions, *people])
        speaker.answer(progress)
    said = speaker.said()

    grades = {(one.id, turn): grade_ask(prompts, one, said[one.id], turn) for one in questions for turn in (1, 2)}
    pairs = [
        compare(prompts, against, one, said[one.id], theirs[one.id], turn)
        for against, theirs, asked in compared
        for one in asked
        for turn in range(1, len(one.turns) + 1)
    ]
    asks = [*grades.values(), *(ask for one in pairs for ask in one.asks)]
    entry = verdicts_folder(job)
    with lock.locked(entry, wait=True):
        verdicts = Verdicts(Journal(entry / "verdicts.jsonl"))
        verdicts.ask(asks, judge, progress)
        graded = {where: verdicts.by_key[ask.key]["value"] for where, ask in grades.items()}
        if not any(graded.values()):
            # It may be mended behind the same name, and is to be asked anew then.
            verdicts.journal.path.unlink(missing_ok=True)
            raise no_grades(job.judge.model, verdicts.by_key[asks[0].key])
    outcomes = [outcome([verdicts.by_key[ask.key]["value"] for ask in one.asks]) for one in pairs]
    ids = [question.id for question in (*questions, *people)]
    values = grade_values(job.suite, questions, graded, ids) | pair_values(job.suite, pairs, outcomes, ids)
    scores = {name: mean(value_N, name) for name, value_N in values.items() if np.isfinite(value_N).any()}
    for name in [f"{job.suite}/against-{against}" for against, _, _ in compared]:
        if name in scores:
            ends = interval(scores[name].value, scores[name].n)
            scores[name] = scores[name].model_copy(update={"interval": ends})
    write_items(scratch / "items.parquet", ids, values)
    write_answers(scratch / "answers.parquet", [*questions, *people], speaker.rows)
    write_verdicts(scratch / "verdicts.parquet", grades, pairs, verdicts)
    apart = OWN_PROMPTS.format(model=job.judge.model) if prompts is OWN else ""
    notes = [*filter(None, [apart]), *speaker.notes(), *reference_notes(questions), *fault_notes(asks, verdicts)]
    for against, _, _ in compared:
        name = f"{job.suite}/against-{against}"
        found = [value for one, value in zip(pairs, outcomes, strict=True) if one.against == against]
        if name in scores:
            notes.append(f"{name}: {told(found)}; {rate(scores[name])}")
    for note in notes:
        log.info("%s", note)
    version = importlib.metadata.version("openai")
    return {
        "model": job.player.digest,
        "suite": job.suite,
        "harness": f"MT-Bench judged by {job.judge.model} at {judge.url}, openai {version}",
        "scores": scores,
        "notes": notes,
        "apart": apart,
    }


def no_grades(model: str, verdict: Mapping[str, Any]) -> ConfigError:
    """What to do where no answer was graded; `verdict` is one of those that are none."""
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
        "that closes with [[7]] when it is asked to"
    )


def answers_of(report: EvalReport, questions: Sequence[Question]) -> Said:
    """Another version's answers to these questions. `DataError` if its report is about others."""
    found: dict[str, list[str]] = {}
    for row in pq.read_table(report.path / "answers.parquet", columns=["id", "turn", "answer"]).to_pylist():
        found.setdefault(row["id"], []).append(row["answer"])
    if any(len(found.get(question.id, ())) != len(question.turns) for question in questions):
        raise DataError(
            f"{report.path} answers other questions than these: evaluate that version on these, or start a new lineage"
        )
    return found


def grade_ask(prompts: Prompts, question: Question, said: Sequence[str], turn: int) -> Ask:
    """The grade that is wanted for the answer in a turn."""
    references = question.references[:turn]
    prompt = prompts[prompt_name(SINGLE, reference=bool(references), turn=turn)]
    return Ask(SINGLE, messages(prompt, shown(question.turns[:turn], references, answer=said[:turn])))


def compare(
    prompts: Prompts, against: str, question: Question, ours: Sequence[str], theirs: Sequence[str], turn: int
) -> Pair:
    """The comparison that is wanted in a turn."""
    return pair(
        prompts,
        against,
        question.id,
        questions=question.turns[:turn],
        ours=ours[:turn],
        theirs=theirs[:turn],
        references=question.references[:turn],
    )


def grade_values(suite: str, questions: Sequence[Question], graded: Grades, ids: Sequence[str]) -> Values:
    """Grades by score and question, in the order of `ids`; NaN where a question does not count."""
    whole = {question.id: average([graded[question.id, 1], graded[question.id, 2]]) for question in questions}
    found = {suite: whole}
    for category in dict.fromkeys(question.category for question in questions):
        found[f"{suite}/{category}"] = {one.id: whole[one.id] for one in questions if one.category == category}
    for turn in (1, 2):
        found[f"{suite}/turn-{turn}"] = {one.id: average([graded[one.id, turn]]) for one in questions}
    return {name: np.array([values.get(id, np.nan) for id in ids]) for name, values in found.items()}


def pair_values(suite: str, pairs: Sequence[Pair], outcomes: Sequence[float | None], ids: Sequence[str]) -> Values:
    """Outcomes by score and question, a mean over turns, in the order of `ids`."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for one, value in zip(pairs, outcomes, strict=True):
        found.setdefault(f"{suite}/against-{one.against}", {}).setdefault(one.item, []).append(value)
    return {name: np.array([average(items.get(id, [])) for id in ids]) for name, items in found.items()}


def average(values: Sequence[float | None]) -> float:
    """The mean of those that are there; NaN of none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else float("nan")


def write_answers(path: Path, questions: Sequence[Question], rows: Mapping[Where, Mapping[str, Any]]) -> None:
    """Write `answers.parquet`: questions in their order, turn by turn."""
    table = [
        {**rows[one.id, turn], "category": one.category, "question": text}
        for one in questions
        for turn, text in enumerate(one.turns, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(table, schema=ANSWERS), path)


def write_verdicts(path: Path, grades: Mapping[Where, Ask], pairs: Sequence[Pair], verdicts: Verdicts) -> None:
    """Write `verdicts.parquet`: each verdict as the judge gave it."""
    asked = [("grade", id, turn, "", ask) for (id, turn), ask in grades.items()]
    for one in pairs:
        orders = zip(("AB", "BA"), one.asks, strict=False)
        asked += [(f"against-{one.against}", one.item, one.turn, order, ask) for order, ask in orders]
    table = []
    for task, id, turn, order, ask in asked:
        row = verdicts.by_key[ask.key]
        value = row["value"]
        table.append(
            {
                **row,
                "task": task,
                "id": id,
                "turn": turn,
                "order": order,
                "value": f"{value:g}" if isinstance(value, float) else value,
                "prompt": json.dumps(ask.messages, ensure_ascii=False),
            }
        )
    pq.write_table(pa.Table.from_pylist(table, schema=VERDICTS), path)


def reference_notes(questions: Sequence[Question]) -> list[str]:
    """Which questions are judged without the reference that MT-Bench judges them with."""
    without = [one for one in questions if one.category in REFERENCED and not one.references]
    return [f"{len(without)} questions are judged without the reference answer they should have"] if without else []


def fault_notes(asks: Sequence[Ask], verdicts: Verdicts) -> list[str]:
    """How many verdicts there are not, and why."""
    keys = {ask.key for ask in asks}
    faults = Counter(verdicts.by_key[key]["fault"] for key in keys)
    said = {
        "unreadable": "of the judge's verdicts could not be read, asked again and again, and do not count",
        "too long": "verdicts are missing, since what is to be judged is too long for the judge",
        "refused": "verdicts are missing, since the judge's endpoint refuses what is to be judged",
    }
    return [f"{faults[fault]} of {len(keys)} {words}" for fault, words in said.items() if faults[fault]]


def told(outcomes: Sequence[float | None]) -> str:
    """`won 31, tied 20 and lost 29 answers`."""
    counts = Counter(outcomes)
    return f"won {counts[1.0]}, tied {counts[0.5]} and lost {counts[0.0]} answers"


def rate(score: Score) -> str:
    """A win rate with its interval."""
    assert score.interval is not None
    low, high = score.interval
    return f"win rate {score.value:.3f}, 95 % interval {low:.3f} to {high:.3f} over {score.n} questions"


if __name__ == "__main__":
    main(MtBenchJob, EvalReport, run)
