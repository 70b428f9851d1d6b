"""The local form of each task against lm-eval's own: the same rows in the hub's columns, read by its own definition.

The rows below are written twice by hand, in the plain form and as the hub has them, so that the conversion is tested
and not repeated.
"""

from pathlib import Path
from random import Random

import pytest

from spin_core.evaluation.task_rows import SINGLE_TASKS
from spin_core.store.records import EvalReport
from tests.support.lineages.parity import (
    ParityTask,
    Rows,
    assert_same_items,
    local_samples,
    save_ending_model,
    score_local,
    score_with_lm_eval,
    task_names,
)

SENTENCE = "red sun dog runs fast over the old green hill and sleeps near a blue lake while cold rain falls"
WORDS = SENTENCE.split()
SUBJECTS = ("anatomy", "philosophy", "sociology", "virology")
"""One of each part of MMLU."""


def random_words(rng: Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def questions(seed: int, count: int = 6) -> list[tuple[str, list[str], int]]:
    rng = Random(seed)
    return [
        (f"Is {random_words(rng, 4)}?", [random_words(rng, rng.randint(1, 3)) for _ in range(4)], rng.randrange(4))
        for _ in range(count)
    ]


def plain(items) -> list[dict]:
    return [{"question": question, "choices": choices, "label": label} for question, choices, label in items]


def lettered(items, name: str) -> list[dict]:
    return [
        {"id": str(i), name: question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": "ABCD"[label]}
        for i, (question, choices, label) in enumerate(items)
    ]


def hellaswag_rows(seed: int, split: str) -> Rows:
    items = questions(seed)
    # The hub's columns keep apart what the plain form has joined, and its second sentence begins in lower case.
    rows = [
        {"ind": i, "activity_label": "Walking", "ctx_a": "A man runs.", "ctx_b": f"then {choices[0]}",
         "ctx": f"A man runs. then {choices[0]}", "endings": choices, "label": str(label)}
        for i, (_, choices, label) in enumerate(items)
    ]  # fmt: skip
    joined = [(f"Walking: A man runs. then {choices[0]}", choices, label) for _, choices, label in items]
    return Rows(f"hellaswag_{'val' if split == 'validation' else split}", split, plain(joined), rows)


def winogrande_rows(seed: int, split: str) -> Rows:
    rng = Random(seed)
    items = [
        (f"The {random_words(rng, 2)} met _ {random_words(rng, 3)}.", [rng.choice(WORDS), "stones"], i % 2)
        for i in range(6)
    ]
    hub = [
        {"sentence": sentence, "option1": first, "option2": second, "answer": str(label + 1)}
        for sentence, (first, second), label in items
    ]
    return Rows(f"winogrande_{'dev' if split == 'validation' else split}", split, plain(items), hub)


def truthfulqa_rows() -> Rows:
    items = questions(31)
    labels = [1, 1, 0, 0]
    rows = [
        {"question": question, "mc1_choices": choices, "mc1_labels": [1, 0, 0, 0], "mc2_choices": choices,
         "mc2_labels": labels}
        for question, choices, _ in items
    ]  # fmt: skip
    hub = [
        {"question": question, "mc1_targets": {"choices": choices, "labels": [1, 0, 0, 0]},
         "mc2_targets": {"choices": choices, "labels": labels}}
        for question, choices, _ in items
    ]  # fmt: skip
    return Rows("truthfulqa_mc", "validation", rows, hub)


def gsm8k_rows(seed: int, split: str) -> Rows:
    rng = Random(seed)
    rows = [
        {"question": f"How many {random_words(rng, 3)}?", "answer": f"{random_words(rng, 4)}.\n#### {i}"}
        for i in range(6)
    ]
    return Rows(f"gsm8k_{split}", split, rows, rows)


def mmlu_rows(subject: str, split: str) -> Rows:
    items = questions(len(subject + split), 5 if split == "dev" else SUBJECTS.index(subject) + 2)
    rows = [{"subject": subject, **row} for row in plain(items)]
    hub = [{"question": q, "subject": subject, "choices": c, "answer": label} for q, c, label in items]
    return Rows(f"mmlu_{split}", split, rows, hub)


def bbh_rows(task: str) -> Rows:
    rows = [
        {"input": f'Is "{random_words(Random(i), 5)}" plausible?', "target": ("yes", "no")[i % 2]} for i in range(2)
    ]
    return Rows("bbh", "test", [{"task": task, **row} for row in rows], rows)


def ifeval_rows() -> Rows:
    instructions = [
        ("Say nothing twice, without commas.", ["punctuation:no_comma"], [{}]),
        ("Write a lot.", ["length_constraints:number_words"], [{"relation": "at least", "num_words": 4}]),
        ("Name dogs.", ["keywords:existence", "punctuation:no_comma"], [{"keywords": ["dog"]}, {}]),
    ]
    rows = [
        {"key": i, "prompt": prompt, "instruction_id_list": names, "kwargs": arguments}
        for i, (prompt, names, arguments) in enumerate(instructions)
    ]
    # The hub's columns have every argument of any instruction, null where it is not the row's.
    every = {"relation": None, "num_words": None, "keywords": None}
    hub = [{**row, "kwargs": [{**every, **given} for given in row["kwargs"]]} for row in rows]
    return Rows("ifeval_train", "train", rows, hub)


def tasks() -> dict[str, ParityTask]:
    """All tasks with their rows."""
    arc = {split: questions(seed) for seed, split in enumerate(("train", "test"))}
    book = {split: questions(10 + seed) for seed, split in enumerate(("train", "test"))}
    return {
        "arc_challenge": ParityTask(
            3, "arc/arc_challenge",
            [
                Rows(f"arc_challenge_{split}", split, plain(rows), lettered(rows, "question"))
                for split, rows in arc.items()
            ],
        ),
        "openbookqa": ParityTask(
            1, "openbookqa/openbookqa",
            [
                Rows(f"openbookqa_{split}", split, plain(rows), lettered(rows, "question_stem"))
                for split, rows in book.items()
            ],
        ),
        "hellaswag": ParityTask(
            2, "hellaswag/hellaswag", [hellaswag_rows(20, "train"), hellaswag_rows(21, "validation")]
        ),
        "winogrande": ParityTask(
            2, "winogrande/default", [winogrande_rows(22, "train"), winogrande_rows(23, "validation")]
        ),
        "truthfulqa_mc2": ParityTask(0, "truthfulqa/truthfulqa_mc2", [truthfulqa_rows()]),
        "gsm8k": ParityTask(2, "gsm8k/gsm8k", [gsm8k_rows(24, "train"), gsm8k_rows(25, "test")]),
        "ifeval": ParityTask(0, "ifeval/ifeval", [ifeval_rows()]),
        "bbh_cot_fewshot_sports_understanding": ParityTask(
            None, "bbh/cot_fewshot/sports_understanding", [bbh_rows("sports_understanding")]
        ),
        **{
            f"mmlu_{subject}": ParityTask(
                5, f"mmlu/default/mmlu_{subject}", [mmlu_rows(subject, split) for split in ("dev", "test")]
            )
            for subject in SUBJECTS
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_ending_model(*(tmp_path_factory.mktemp(name) for name in ("first", "model")))


@pytest.fixture(scope="module")
def local_report(tmp_path_factory, model) -> EvalReport:
    return score_local(tasks(), tmp_path_factory.mktemp("ours"), model)


@pytest.fixture(scope="module")
def hub_results(tmp_path_factory, model) -> dict:
    return score_with_lm_eval(tasks(), tmp_path_factory.mktemp("theirs"), model)


@pytest.mark.parametrize("task", tasks())
def test_a_local_task_has_the_prompts_and_scores_of_lm_eval_item_by_item(task, local_report, hub_results):
    mine = local_samples(local_report, task)
    assert len(mine) >= 2
    assert_same_items(mine, hub_results["samples"][task])


@pytest.mark.parametrize("task", task_names(tasks()))
def test_scores_and_errors_are_lm_evals(task, local_report, hub_results):
    expected = hub_results["results"][task]
    keys = [key for key in expected if "," in key and "_stderr," not in key]
    scores = [score for name, score in local_report.scores.items() if name.split("/")[0] == task]
    assert sorted(score.value for score in scores) == pytest.approx(sorted(expected[key] for key in keys))
    errors = [expected[key.replace(",", "_stderr,")] for key in keys]
    if task != "ifeval":  # some of its errors are by resampling
        assert sorted(score.stderr for score in scores) == pytest.approx(sorted(errors))


def test_the_tasks_are_not_all_right_or_all_wrong(local_report):
    assert len({score.value for score in local_report.scores.values()}) > 4


def test_examples_come_from_their_own_split(local_report):
    assert local_report.notes == ("mmlu: 4 of its 57 tasks have rows, and the score is theirs alone",)


@pytest.mark.parametrize(
    ("text", "before", "begun"),
    [
        ('A man waves. " buy now', "A man waves.", '" buy now'),  # lm-eval gives a capital to what comes first
        ('He says "stop." he', 'He says "stop."', "he"),
        ('He says "stop". \'then he', 'He says "stop".', "'then he"),
    ],
)
def test_quotation_marks_stay_with_their_sentence_of_hellaswag(text, before, begun):
    row = SINGLE_TASKS["hellaswag"].convert({"question": f"Ad: {text}", "choices": ["goes."], "label": 0})
    assert (row["ctx_a"], row["ctx_b"]) == (before, begun)
