"""The local form of each task against lm-eval's own: the same rows in the hub's columns, read by its own definition.

The rows below are written twice by hand, in the plain form and as the hub has them, so that the conversion is tested
and not repeated.
"""

import json
import shutil
from pathlib import Path
from random import Random

import helpers  # noqa: F401 (first: it keeps libraries from the network)
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import character_tokenizer, save_tiny_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from small_game import CPU, version_of

from spin_core import local_tasks, phase
from spin_core.benchmark import run
from spin_core.jobs import BenchmarkConfig, BenchmarkJob, BenchmarkSpeed, BenchmarkTask
from spin_core.models import load_model, load_tokenizer, save_model
from spin_core.records import EvalReport

SENTENCE = "red sun dog runs fast over the old green hill and sleeps near a blue lake while cold rain falls"
WORDS = SENTENCE.split()
SUBJECTS = ("anatomy", "philosophy", "sociology", "virology")
"""One of each part of MMLU."""


def some(rng: Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def questions(seed: int, count: int = 6) -> list[tuple[str, list[str], int]]:
    rng = Random(seed)
    return [
        (f"Is {some(rng, 4)}?", [some(rng, rng.randint(1, 3)) for _ in range(4)], rng.randrange(4))
        for _ in range(count)
    ]


class Rows:
    """Rows of one split: of the plain file, and of the hub."""

    def __init__(self, file: str, split: str, plain: list[dict], hub: list[dict]) -> None:
        self.file, self.split, self.plain, self.hub = file, split, plain, hub


def plain(found) -> list[dict]:
    return [{"question": question, "choices": choices, "label": label} for question, choices, label in found]


def lettered(found, name: str) -> list[dict]:
    return [
        {"id": str(i), name: question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": "ABCD"[label]}
        for i, (question, choices, label) in enumerate(found)
    ]


def hellaswag_rows(seed: int, split: str) -> Rows:
    found = questions(seed)
    # The hub's columns keep apart what the plain form has joined, and its second sentence begins in lower case.
    rows = [
        {"ind": i, "activity_label": "Walking", "ctx_a": "A man runs.", "ctx_b": f"then {choices[0]}",
         "ctx": f"A man runs. then {choices[0]}", "endings": choices, "label": str(label)}
        for i, (_, choices, label) in enumerate(found)
    ]  # fmt: skip
    joined = [(f"Walking: A man runs. then {choices[0]}", choices, label) for _, choices, label in found]
    return Rows(f"hellaswag_{'val' if split == 'validation' else split}", split, plain(joined), rows)


def winogrande_rows(seed: int, split: str) -> Rows:
    rng = Random(seed)
    found = [(f"The {some(rng, 2)} met _ {some(rng, 3)}.", [rng.choice(WORDS), "stones"], i % 2) for i in range(6)]
    hub = [
        {"sentence": sentence, "option1": first, "option2": second, "answer": str(label + 1)}
        for sentence, (first, second), label in found
    ]
    return Rows(f"winogrande_{'dev' if split == 'validation' else split}", split, plain(found), hub)


def truthfulqa_rows() -> Rows:
    found = questions(31)
    labels = [1, 1, 0, 0]
    rows = [
        {"question": question, "mc1_choices": choices, "mc1_labels": [1, 0, 0, 0], "mc2_choices": choices,
         "mc2_labels": labels}
        for question, choices, _ in found
    ]  # fmt: skip
    hub = [
        {"question": question, "mc1_targets": {"choices": choices, "labels": [1, 0, 0, 0]},
         "mc2_targets": {"choices": choices, "labels": labels}}
        for question, choices, _ in found
    ]  # fmt: skip
    return Rows("truthfulqa_mc", "validation", rows, hub)


def gsm8k_rows(seed: int, split: str) -> Rows:
    rng = Random(seed)
    rows = [{"question": f"How many {some(rng, 3)}?", "answer": f"{some(rng, 4)}.\n#### {i}"} for i in range(6)]
    return Rows(f"gsm8k_{split}", split, rows, rows)


def mmlu_rows(subject: str, split: str) -> Rows:
    found = questions(len(subject + split), 5 if split == "dev" else SUBJECTS.index(subject) + 2)
    rows = [{"subject": subject, **row} for row in plain(found)]
    hub = [{"question": q, "subject": subject, "choices": c, "answer": label} for q, c, label in found]
    return Rows(f"mmlu_{split}", split, rows, hub)


def bbh_rows(task: str) -> Rows:
    rows = [{"input": f'Is "{some(Random(i), 5)}" plausible?', "target": ("yes", "no")[i % 2]} for i in range(2)]
    return Rows("bbh", "test", [{"task": task, **row} for row in rows], rows)


def ifeval_rows() -> Rows:
    asked = [
        ("Say nothing twice, without commas.", ["punctuation:no_comma"], [{}]),
        ("Write a lot.", ["length_constraints:number_words"], [{"relation": "at least", "num_words": 4}]),
        ("Name dogs.", ["keywords:existence", "punctuation:no_comma"], [{"keywords": ["dog"]}, {}]),
    ]
    rows = [
        {"key": i, "prompt": prompt, "instruction_id_list": names, "kwargs": arguments}
        for i, (prompt, names, arguments) in enumerate(asked)
    ]
    # The hub's columns have every argument of any instruction, null where it is not the row's.
    every = {"relation": None, "num_words": None, "keywords": None}
    hub = [{**row, "kwargs": [{**every, **one} for one in row["kwargs"]]} for row in rows]
    return Rows("ifeval_train", "train", rows, hub)


def tasks() -> dict[str, tuple[int | None, str, list[Rows]]]:
    """Examples in the prompt, lm-eval's definition, and rows, by task."""
    arc = {split: questions(seed) for seed, split in enumerate(("train", "test"))}
    book = {split: questions(10 + seed) for seed, split in enumerate(("train", "test"))}
    return {
        "arc_challenge": (
            3, "arc/arc_challenge",
            [
                Rows(f"arc_challenge_{split}", split, plain(rows), lettered(rows, "question"))
                for split, rows in arc.items()
            ],
        ),
        "openbookqa": (
            1, "openbookqa/openbookqa",
            [
                Rows(f"openbookqa_{split}", split, plain(rows), lettered(rows, "question_stem"))
                for split, rows in book.items()
            ],
        ),
        "hellaswag": (2, "hellaswag/hellaswag", [hellaswag_rows(20, "train"), hellaswag_rows(21, "validation")]),
        "winogrande": (2, "winogrande/default", [winogrande_rows(22, "train"), winogrande_rows(23, "validation")]),
        "truthfulqa_mc2": (0, "truthfulqa/truthfulqa_mc2", [truthfulqa_rows()]),
        "gsm8k": (2, "gsm8k/gsm8k", [gsm8k_rows(24, "train"), gsm8k_rows(25, "test")]),
        "ifeval": (0, "ifeval/ifeval", [ifeval_rows()]),
        "bbh_cot_fewshot_sports_understanding": (
            None, "bbh/cot_fewshot/sports_understanding", [bbh_rows("sports_understanding")],
        ),
        **{
            f"mmlu_{subject}": (
                5, f"mmlu/default/mmlu_{subject}", [mmlu_rows(subject, split) for split in ("dev", "test")],
            )
            for subject in SUBJECTS
        },
    }  # fmt: skip


def write_plain(folder: Path) -> None:
    """Rows as `evaluate.lm_eval.local_data` has them."""
    for _, _, several in tasks().values():
        for rows in several:
            with (folder / f"{rows.file}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows.plain)


def write_hub(folder: Path) -> None:
    """Rows as data sets of the hub's shape, and lm-eval's own definitions with no change but where those lie."""
    for name, (_, definition, several) in tasks().items():
        path = local_tasks.definitions() / f"{definition}.yaml"
        subset = own(path, "dataset_name") or "default"
        data = folder / "data" / name
        data.mkdir(parents=True)
        for rows in several:
            pq.write_table(pa.Table.from_pylist(rows.hub), data / f"{rows.split}.parquet")
        files = [{"split": rows.split, "path": f"{rows.split}.parquet"} for rows in several]
        card = yaml.safe_dump({"configs": [{"config_name": subset, "data_files": files}]})
        (data / "README.md").write_text(f"---\n{card}---\n")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"include": str(path), "dataset_path": str(data)}))
    for path in (local_tasks.definitions() / "mmlu" / "default").glob("_mmlu*.yaml"):
        shutil.copy(path, folder)


def own(path: Path, key: str) -> str | None:
    """A plain setting of a definition or of what it includes."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        found[name.strip().strip('"')] = value.strip().strip('"')
    if key in found:
        return None if found[key] == "null" else found[key]
    return own(path.parent / found["include"], key) if "include" in found else None


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model whose context holds the examples of BBH, and that comes to an end by itself."""
    first, folder = (tmp_path_factory.mktemp(name) for name in ("first", "model"))
    tokenizer = character_tokenizer()
    network = load_model(save_tiny_model(first, tokenizer), CPU)
    network.config.max_position_embeddings = 6000
    with torch.no_grad():
        network.lm_head.weight[tokenizer.eos_token_id] *= 4
    save_model(network, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory, model) -> EvalReport:
    folder = tmp_path_factory.mktemp("ours")
    write_plain(folder)
    named = {name: shots for name, (shots, *_) in tasks().items() if not name.startswith("mmlu_")} | {"mmlu": 5}
    config = BenchmarkConfig(
        suite="lm-eval",
        tasks=[BenchmarkTask(name=name, num_fewshot=shots) for name, shots in named.items()],
        local_data=folder,
        speed=BenchmarkSpeed(batch_size=4, scores=folder / ".scores"),
    )
    job = BenchmarkJob(output=folder / "lm-eval", config=config, model=CPU, player=version_of(model))
    return phase.execute(job, EvalReport, run, phase.Progress())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, model) -> dict:
    folder = tmp_path_factory.mktemp("theirs")
    write_hub(folder)
    found: dict = {"results": {}, "samples": {}, "groups": {}}
    network = HFLM(pretrained=load_model(model, CPU), tokenizer=load_tokenizer(model, CPU), batch_size=4)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    by_shots: dict = {}
    for name, (shots, *_) in tasks().items():
        by_shots.setdefault(shots, []).append("mmlu" if name.startswith("mmlu_") else name)
    for shots, names in by_shots.items():
        results = simple_evaluate(
            model=network, tasks=sorted(set(names)), num_fewshot=shots, task_manager=manager, bootstrap_iters=1000
        )
        for part in ("results", "samples"):
            found[part] |= results[part]
    return found


def ours_of(report: EvalReport, task: str) -> dict[int, dict]:
    rows = pq.read_table(report.path / "samples.parquet").to_pylist()
    return {int(row["item"]): row for row in rows if row["task"] == task}


@pytest.mark.parametrize("task", tasks())
def test_a_local_task_asks_and_scores_item_by_item_as_lm_eval_does_with_the_hubs_rows(task, ours, theirs):
    mine = ours_of(ours, task)
    samples = theirs["samples"][task]
    assert len(mine) == len({sample["doc_id"] for sample in samples}) >= 2
    for sample in samples:
        row = mine[sample["doc_id"]]
        choices = row["choices"] or [""]
        requests = [request[0] + (request[1] if row["choices"] else "") for request in sample["arguments"]]
        assert [row["prompt"] + choice for choice in choices] == requests
        if row["choices"]:
            assert row["logps"] == pytest.approx([answers[0][0] for answers in sample["resps"]], abs=1e-4)
        else:
            assert row["answer"] == sample["resps"][0][0]
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        said = json.loads(row["scores"])
        for key in sample["metrics"]:
            assert said[key + suffix] == (
                sample[key] if isinstance(sample[key], list) else pytest.approx(sample[key], abs=1e-6)
            )


@pytest.mark.parametrize("task", [*(name for name in tasks() if not name.startswith("mmlu_")), "mmlu"])
def test_scores_and_errors_are_lm_evals(task, ours, theirs):
    found = theirs["results"][task]
    keys = [key for key in found if "," in key and "_stderr," not in key]
    scores = [score for name, score in ours.scores.items() if name.split("/")[0] == task]
    assert sorted(score.value for score in scores) == pytest.approx(sorted(found[key] for key in keys))
    errors = [found[key.replace(",", "_stderr,")] for key in keys]
    if task != "ifeval":  # some of its errors are by resampling
        assert sorted(score.stderr for score in scores) == pytest.approx(sorted(errors))


def test_the_tasks_are_not_all_right_or_all_wrong(ours):
    assert len({score.value for score in ours.scores.values()}) > 4


def test_examples_come_from_their_own_split(ours):
    assert ours.notes == ()
