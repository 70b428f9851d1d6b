"""The local form of each task against lm-eval's own on real rows, which are converted to the hub's columns here.

The plain rows hold all of the hub's columns that lm-eval reads, with these exceptions. ARC's choices bear letters or
digits in the hub, which no prompt shows: here every second row has digits. HellaSwag's contexts are joined and cleaned.
Where they tell of a video, the hub keeps the sentence that is to be finished apart; where it begins is read off the row
that follows, whose context has that sentence finished and with its capital. WikiHow's have no such part, but marks
for headings and steps, which lm-eval takes out again: those of the headline and the title are put back, the marks of
steps are lost, and it is the prompts that are compared. Nor are there training rows of HellaSwag and WinoGrande, for
which some of the others stand in.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from spin_core.evaluation.task_rows import SINGLE_TASKS
from spin_core.store.records import EvalReport
from tests.support.helpers import data_folder
from tests.support.lineages.parity import (
    ParityTask,
    Rows,
    assert_same_items,
    local_samples,
    save_ending_model,
    score_local,
    score_with_lm_eval,
)

FEW = 24
SUBJECTS = ("abstract_algebra", "global_facts", "marketing", "moral_scenarios", "professional_law", "us_foreign_policy")
VIDEOS = 3243
"""The number of HellaSwag's validation rows about videos; those of WikiHow follow."""
QUOTED = (1692, 2421)
"""HellaSwag's rows where the sentence to be finished begins with a quotation mark, and there is one that follows."""
WORD = re.compile(r'\w+|"')


def read(*parts: str) -> list[dict]:
    with data_folder(*parts).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def choose_rows(rows: list[dict], count: int = FEW, seed: int = 0) -> list[dict]:
    """A seeded choice of rows."""
    return Random(seed).sample(rows, count)


def lettered(rows: Iterable[dict], question: str) -> Iterator[dict]:
    for i, row in enumerate(rows):
        labels = list("ABCDE" if i % 2 else "12345")[: len(row["choices"])]
        choices = {"text": row["choices"], "label": labels}
        yield {"id": f"row-{i}", question: row["question"], "choices": choices, "answerKey": labels[row["label"]]}


def with_letters(folder: str, task: str, question: str, shots: int) -> ParityTask:
    split_rows = {split: choose_rows(read("benchmarks", f"{task}_{split}.jsonl")) for split in ("train", "test")}
    rows = [Rows(f"{task}_{split}", split, few, list(lettered(few, question))) for split, few in split_rows.items()]
    return ParityTask(shots, f"{folder}/{task}", rows)


def begun_at(row: dict, later: dict) -> int | None:
    """Where in a video's context the sentence to be finished begins, as the following row has it; None if it has not.

    There that sentence stands finished, behind another sentence's end or at the beginning.
    """
    (activity, text), (other, following) = (video["question"].split(": ", 1) for video in (row, later))
    if activity != other:
        return None
    words_before, next_words = list(WORD.finditer(text)), list(WORD.finditer(following))
    ending = [match[0].lower() for match in WORD.finditer(row["choices"][row["label"]])]
    words = [match[0].lower() for match in next_words]
    for count in range(1, len(words_before) + 1):
        finished = [match[0].lower() for match in words_before[-count:]] + ending
        for place in range(len(words) - len(finished) + 1):
            before = following[: next_words[place].start()].rstrip()
            if words[place : place + len(finished)] == finished and (not before or before[-1] in ".!?"):
                return words_before[-count].start()
    return None


def begun(rows: list[dict]) -> dict[int, int]:
    """The rows of videos whose next row shows where the sentence to finish begins, with that position."""
    beginnings = ((i, begun_at(*pair)) for i, pair in enumerate(pairwise(rows[:VIDEOS])))
    return {i: place for i, place in beginnings if place is not None}


def hellaswag_columns(row: dict, place: int | None) -> dict:
    activity, text = row["question"].split(": ", 1)
    before, part = (text, "") if place is None else (text[:place].rstrip(), text[place:])
    if place is None and text.startswith("How to "):
        before = "[header] " + text.replace(". ", " [title] ", 1)
    return {"activity_label": activity, "ctx_a": before, "ctx_b": part, "ctx": f"{before} {part}".strip(),
            "endings": row["choices"], "label": str(row["label"])}  # fmt: skip


def hellaswag() -> ParityTask:
    rows = read("benchmarks", "hellaswag_val.jsonl")
    places = begun(rows)
    # Behind these come WikiHow's: two with brackets that the cleaning has left, in a context and in a choice.
    videos = sorted({*QUOTED, *Random(1).sample(sorted(places), FEW)})
    chosen = [*videos, 5592, 4016, *Random(2).sample(range(VIDEOS, len(rows)), FEW // 2)]
    chosen_rows = [rows[i] for i in chosen]
    hub = [hellaswag_columns(rows[i], places.get(i)) for i in chosen]
    split = FEW // 3
    return ParityTask(2, "hellaswag/hellaswag", [
        Rows("hellaswag_train", "train", chosen_rows[split : 2 * split], hub[split : 2 * split]),
        Rows("hellaswag_val", "validation", [*chosen_rows[:split], *chosen_rows[2 * split :]],
             [*hub[:split], *hub[2 * split :]]),
    ])  # fmt: skip


def winogrande() -> ParityTask:
    rows = choose_rows(read("benchmarks", "winogrande_dev.jsonl"), 2 * FEW)
    hub = [
        {"sentence": row["question"], "option1": row["choices"][0], "option2": row["choices"][1],
         "answer": "12"[row["label"]]}
        for row in rows
    ]  # fmt: skip
    return ParityTask(2, "winogrande/default", [
        Rows("winogrande_train", "train", rows[FEW:], hub[FEW:]),
        Rows("winogrande_dev", "validation", rows[:FEW], hub[:FEW]),
    ])  # fmt: skip


def truthfulqa(kind: str) -> ParityTask:
    rows = choose_rows(read("benchmarks", "truthfulqa_mc.jsonl"))
    hub = [
        {"question": row["question"],
         "mc1_targets": {"choices": row["mc1_choices"], "labels": row["mc1_labels"]},
         "mc2_targets": {"choices": row["mc2_choices"], "labels": row["mc2_labels"]}}
        for row in rows
    ]  # fmt: skip
    # Both tasks read one file, which the first of them writes.
    return ParityTask(0, f"truthfulqa/truthfulqa_{kind}", [
        Rows("truthfulqa_mc", "validation", rows if kind == "mc1" else [], hub)
    ])  # fmt: skip


def gsm8k() -> ParityTask:
    splits = {split: choose_rows(read("gsm8k", f"{split}.jsonl")) for split in ("train", "test")}
    return ParityTask(2, "gsm8k/gsm8k", [Rows(f"gsm8k_{split}", split, rows, rows) for split, rows in splits.items()])


def mmlu(subject: str) -> ParityTask:
    of_subject = {
        split: [row for row in read("benchmarks", f"mmlu_{split}.jsonl") if row["subject"] == subject]
        for split in ("dev", "test")
    }
    of_subject["test"] = choose_rows(of_subject["test"], 4)
    return ParityTask(5, f"mmlu/default/mmlu_{subject}", [
        Rows(f"mmlu_{split}", split, rows, [
            {"question": row["question"], "subject": subject, "choices": row["choices"], "answer": row["label"]}
            for row in rows
        ])
        for split, rows in of_subject.items()
    ])  # fmt: skip


def bbh() -> dict[str, ParityTask]:
    by_task: dict[str, list[dict]] = {}
    for row in read("benchmarks", "bbh.jsonl"):
        by_task.setdefault(row["task"], []).append(row)
    return {
        f"bbh_cot_fewshot_{task}": ParityTask(None, f"bbh/cot_fewshot/{task}", [
            Rows("bbh", "test", few, [{"input": row["input"], "target": row["target"]} for row in few])
        ])
        for task, rows in by_task.items()
        for few in [choose_rows(rows, 1)]
    }  # fmt: skip


def all_tasks() -> dict[str, ParityTask]:
    """All tasks with their rows; skips where there are none."""
    return {
        "arc_challenge": with_letters("arc", "arc_challenge", "question", 3),
        "openbookqa": with_letters("openbookqa", "openbookqa", "question_stem", 1),
        "hellaswag": hellaswag(),
        "winogrande": winogrande(),
        "truthfulqa_mc1": truthfulqa("mc1"),
        "truthfulqa_mc2": truthfulqa("mc2"),
        "gsm8k": gsm8k(),
        **{f"mmlu_{subject}": mmlu(subject) for subject in SUBJECTS},
        **bbh(),
    }


@pytest.fixture(scope="module")
def tasks() -> dict[str, ParityTask]:
    return all_tasks()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_ending_model(*(tmp_path_factory.mktemp(name) for name in ("first", "model")), context=2048)


@pytest.fixture(scope="module")
def local_report(tmp_path_factory, tasks, model) -> EvalReport:
    return score_local(tasks, tmp_path_factory.mktemp("ours"), model)


@pytest.fixture(scope="module")
def hub_results(tmp_path_factory, tasks, model) -> dict:
    return score_with_lm_eval(tasks, tmp_path_factory.mktemp("theirs"), model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["arc_challenge", "openbookqa", "hellaswag", "winogrande", "truthfulqa_", "gsm8k", "mmlu_", "bbh_"]
)
def test_a_local_task_on_real_rows_has_the_prompts_and_scores_of_lm_eval(kind, tasks, local_report, hub_results):
    names = [name for name in tasks if name.startswith(kind)]
    assert sum(len(local_samples(local_report, name)) for name in names) >= FEW
    for name in names:
        assert_same_items(local_samples(local_report, name), hub_results["samples"][name])


def test_hellaswags_sentences_are_split_as_the_next_row_shows():
    rows = read("benchmarks", "hellaswag_val.jsonl")
    places = begun(rows)
    assert len(places) > 1000
    assert set(QUOTED) <= set(places)
    for i, place in places.items():
        activity, _, text = rows[i]["question"].partition(": ")
        converted = SINGLE_TASKS["hellaswag"].convert(rows[i])
        part = text[place:]
        # What begins with a digit has no capital to be given, so it does not matter where it is cut.
        if part[0].isdigit():
            assert part.capitalize() == part
            part = ""
        whole = text if not part else text[:place].rstrip()
        assert (converted["activity_label"], converted["ctx_a"], converted["ctx_b"]) == (activity, whole, part)


def test_hellaswags_wikihow_contexts_are_whole():
    for row in read("benchmarks", "hellaswag_val.jsonl")[VIDEOS:]:
        assert SINGLE_TASKS["hellaswag"].convert(row)["ctx_b"] == ""
