"""Tasks with the hub's rows, in folders with the names of the hub's data sets: nothing of lm-eval's is changed.

`datasets` takes a folder of that name below the one it works in for the data set itself, card, parts, splits and all.
"""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from spin_core.errors import DataError
from spin_core.evaluation import local_tasks
from spin_core.evaluation.find_tasks import tasks_from_hub
from spin_core.phases.benchmark import run
from spin_core.runtime import phase, progress
from spin_core.store.evaluation_jobs import BenchmarkConfig, BenchmarkJob, BenchmarkSpeed, BenchmarkTask
from spin_core.store.records import EvalReport
from tests.support.lineages.parity import save_ending_model, write_data_set
from tests.support.lineages.small_jobs import CPU, version_of

GROUP = "mmlu_social_sciences"
SIZES = (1, 2, 3, 4)
"""Items of the group's subjects, over and over."""


def question(i: int) -> dict:
    """A plain row, whose choices have unlike lengths."""
    choices = [f"{'ab' * (1 + (i + place) % 4)} {place}" for place in range(4)]
    return {"question": f"Which is {i}?", "choices": choices, "label": i * 7 % 4}


def arc(i: int) -> dict:
    row = question(i)
    choices = {"text": row["choices"], "label": list("ABCD")}
    return {"id": f"{i}", "question": row["question"], "choices": choices, "answerKey": "ABCD"[row["label"]]}


def mmlu(subject: str, i: int) -> dict:
    row = question(i)
    return {"question": row["question"], "subject": subject, "choices": row["choices"], "answer": row["label"]}


def subjects() -> list[str]:
    """The group's subjects, as lm-eval's definitions have them."""
    folder = local_tasks.definitions() / "mmlu" / "default"
    files = [path for path in sorted(folder.glob("mmlu_*.yaml")) if f"{GROUP}_tasks" in path.read_text("utf-8")]
    return [path.stem.removeprefix("mmlu_") for path in files]


def ifeval_rows() -> list[dict]:
    # Every argument of any instruction has a column, null where it is not the row's.
    every = {"relation": None, "num_words": None, "keywords": None}
    instructions = [
        ("Say nothing twice, without commas.", ["punctuation:no_comma"], [{}]),
        ("Write a lot.", ["length_constraints:number_words"], [{"relation": "at least", "num_words": 4}]),
        ("Name dogs.", ["keywords:existence", "punctuation:no_comma"], [{"keywords": ["dog"]}, {}]),
        ("Be brief.", ["length_constraints:number_words"], [{"relation": "less than", "num_words": 900}]),
    ]
    return [
        {"key": i, "prompt": prompt, "instruction_id_list": names, "kwargs": [every | given for given in arguments]}
        for i, (prompt, names, arguments) in enumerate(instructions)
    ]


def write_hub() -> None:
    """The hub's data sets of three tasks, below the folder that is worked in."""
    parts = {
        "ARC-Easy": {"train": [arc(i) for i in range(20, 26)], "test": [arc(i) for i in range(8)]},
        "ARC-Challenge": {"train": [arc(i) for i in range(20, 26)], "test": [arc(i) for i in range(8, 11)]},
    }
    write_data_set(Path("allenai/ai2_arc"), parts)
    by_subject = {
        subject: {
            "test": [mmlu(subject, 5 * place + i) for i in range(SIZES[place % 4])],
            "dev": [mmlu(subject, 100 + i) for i in range(5)],
        }
        for place, subject in enumerate(subjects())
    }
    write_data_set(Path("cais/mmlu"), by_subject)
    write_data_set(Path("google/IFEval"), {"default": {"train": ifeval_rows()}})


@pytest.fixture
def work_in(monkeypatch) -> Callable[[Path], None]:
    """A function that changes to a folder, with the cache of `datasets` in it."""

    def go(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")

    return go


@pytest.fixture(autouse=True)
def hub(tmp_path, work_in) -> None:
    work_in(tmp_path)
    write_hub()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_ending_model(*(tmp_path_factory.mktemp(name) for name in ("first", "model")), context=2600)


def job(model: Path, folder: Path, *tasks: str, shots: int | None = None, data: Path | None = None) -> BenchmarkJob:
    named = [BenchmarkTask(name=name, num_fewshot=shots) for name in tasks]
    speed = BenchmarkSpeed(batch_size=8, scores=folder / ".scores")
    config = BenchmarkConfig(suite="lm-eval", tasks=named, local_data=data, speed=speed)
    return BenchmarkJob(output=folder / "lm-eval", config=config, model=CPU, player=version_of(model))


def do(job_to_run: BenchmarkJob) -> EvalReport:
    return phase.execute(job_to_run, EvalReport, run, progress.Progress())


def samples(report: EvalReport) -> list[dict]:
    return pq.read_table(report.path / "samples.parquet").to_pylist()


def values(report: EvalReport, task: str) -> list[float]:
    return [row["value"] for row in pq.read_table(report.path / "items.parquet").to_pylist() if row["task"] == task]


def write_plain(folder: Path) -> Path:
    """The same rows in the plain form."""
    folder.mkdir()

    def write(name: str, rows: list[dict]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    write("arc_easy_test", [question(i) for i in range(8)])
    write("arc_easy_train", [question(i) for i in range(20, 26)])
    sized = [(subject, 5 * place, SIZES[place % 4]) for place, subject in enumerate(subjects())]
    write("mmlu_test", [{"subject": s, **question(first + i)} for s, first, size in sized for i in range(size)])
    write("mmlu_dev", [{"subject": s, **question(100 + i)} for s, _, _ in sized for i in range(5)])
    write("ifeval_train", ifeval_rows())
    return folder


def test_the_hubs_rows_give_the_scores_of_the_same_rows_from_a_folder(tmp_path, model):
    data = write_plain(tmp_path / "plain")
    names = ("arc_easy", "ifeval", *(f"mmlu_{subject}" for subject in subjects()[:2]))
    far, near = (
        do(job(model, tmp_path / where, *names, shots=2, data=rows)) for where, rows in (("hub", None), ("near", data))
    )
    assert far.scores == near.scores
    assert far.scores["arc_easy"].n == 8
    assert far.scores["ifeval"].n == 4
    assert 0 < far.scores["ifeval"].value < 1
    assert samples(far) == samples(near)
    assert far.notes == near.notes == ()


def test_a_group_of_the_hub_weighs_all_items_equally(tmp_path, model):
    report = do(job(model, tmp_path / "runs", GROUP))
    names = [f"mmlu_{subject}" for subject in subjects()]
    assert report.averages == {GROUP: tuple(names)}
    sizes = [report.scores[name].n for name in names]
    assert sizes == [SIZES[place % 4] for place in range(len(names))]
    answers = values(report, GROUP)
    assert answers == [value for name in names for value in values(report, name)]
    assert 0 < sum(answers) < len(answers)
    assert report.scores[GROUP].n == len(answers) == sum(sizes)
    assert report.scores[GROUP].value == pytest.approx(np.mean(answers))
    means = [report.scores[name].value for name in names]
    assert report.scores[GROUP].value != pytest.approx(np.mean(means)), "which would weigh subjects"


def test_a_hub_name_for_several_tasks_gives_their_scores_and_no_mean(tmp_path, model):
    report = do(job(model, tmp_path / "runs", f"{GROUP}_tasks"))
    assert {f"mmlu_{subject}" for subject in subjects()} == set(report.scores)
    assert report.averages == {}


def test_the_hubs_rows_are_identified_by_their_content(tmp_path, work_in):
    def digests() -> tuple[str, str]:
        """Without examples in the prompt, and with two."""
        tasks = tasks_from_hub([BenchmarkTask(name="arc_easy", num_fewshot=count) for count in (None, 2)])
        bare, shown = (task.singles[0].rows_digest for task in tasks)
        return bare, shown

    def changed(name: str, test: range, train: range) -> tuple[str, str]:
        work_in(tmp_path / name)
        rows = {"train": [arc(i) for i in train], "test": [arc(i) for i in test]}
        write_data_set(Path("allenai/ai2_arc"), {"ARC-Easy": rows})
        return digests()

    bare, shown = digests()
    assert bare != shown
    assert changed("same", range(8), range(20, 26)) == (bare, shown)
    other_examples = changed("examples", range(8), range(30, 36))
    assert other_examples[0] == bare, "which shows none"
    assert other_examples[1] != shown
    assert not {bare, shown} & set(changed("rows", range(1, 9), range(20, 26)))


def test_a_task_on_the_same_hub_rows_is_not_scored_again(tmp_path, model):
    first = do(job(model, tmp_path / "runs", "arc_easy"))
    repeated = job(model, tmp_path / "runs", "arc_easy")
    hollow = repeated.player.model_copy(update={"path": tmp_path / "nowhere"})
    again = do(repeated.model_copy(update={"output": tmp_path / "runs" / "again", "player": hollow}))
    assert again.scores == first.scores


def test_a_missing_data_set_is_an_error_in_one_line(tmp_path, model, work_in):
    work_in(tmp_path / "empty")
    with pytest.raises(DataError, match="the rows of arc_easy could not be loaded from the hub"):
        do(job(model, tmp_path / "runs", "arc_easy"))
