"""lm-eval's tasks on rows from a folder, where no hub is at hand.

The rows have one plain form, `{"question", "choices", "label"}`. They are turned into the rows that lm-eval's own
definition of a task reads, and that definition is included as it is, so prompts and metrics are lm-eval's.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from spin_core.errors import ConfigError, DataError

Row = dict[str, Any]

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Source:
    """Where a task's rows lie, and how they become those of its lm-eval definition."""

    definition: str
    """lm-eval's YAML, below its folder of tasks."""
    split: str
    """The split that is evaluated, by the definition's name."""
    file: str
    """Its rows: `<file>.jsonl`."""
    examples_split: str
    """The split that few-shot examples come from, by the definition's name."""
    examples: str
    """Its rows. Where there are none, examples come from the rows that are evaluated, other than the one asked."""
    convert: Callable[[Row], Row]
    subject: str | None = None
    """Of rows that name a subject, take this one's."""


def with_answer_key(row: Row, question: str = "question") -> Row:
    """ARC's and OpenBookQA's rows: choices with letters."""
    letters = list(LETTERS[: len(row["choices"])])
    choices = {"text": row["choices"], "label": letters}
    return {question: row["question"], "choices": choices, "answerKey": letters[row["label"]]}


def hellaswag(row: Row) -> Row:
    """HellaSwag's rows: the activity, the sentences before, and the beginning of the one to be finished.

    That beginning is in lower case in the data set, and lm-eval writes it with a capital.
    """
    activity, _, text = row["question"].partition(": ")
    found = re.search(r"""(?<=[.!?"'])\s+([a-z][^.!?]*)$""", text)
    before, begun = (text[: found.start()], found[1]) if found else (text, "")
    return {
        "activity_label": activity,
        "ctx_a": before,
        "ctx_b": begun,
        "endings": row["choices"],
        "label": str(row["label"]),
    }


def winogrande(row: Row) -> Row:
    """WinoGrande's rows: a sentence with a blank and two fillings."""
    first, second = row["choices"]
    return {"sentence": row["question"], "option1": first, "option2": second, "answer": str(row["label"] + 1)}


def mmlu(row: Row) -> Row:
    """MMLU's rows."""
    return {"question": row["question"], "choices": row["choices"], "answer": row["label"]}


def truthfulqa(row: Row) -> Row:
    """TruthfulQA's rows: choices of which one is right, and choices of which several are."""
    both = {
        f"{kind}_targets": {"choices": row[f"{kind}_choices"], "labels": row[f"{kind}_labels"]}
        for kind in ("mc1", "mc2")
    }
    return {"question": row["question"], **both}


def sources(data: Path) -> dict[str, Source]:
    """The tasks whose rows are in the folder."""
    openbookqa = partial(with_answer_key, question="question_stem")
    known = {
        "arc_easy": Source("arc/arc_easy", "test", "arc_easy_test", "train", "arc_easy_train", with_answer_key),
        "arc_challenge": Source(
            "arc/arc_challenge", "test", "arc_challenge_test", "train", "arc_challenge_train", with_answer_key
        ),
        "openbookqa": Source(
            "openbookqa/openbookqa", "test", "openbookqa_test", "train", "openbookqa_train", openbookqa
        ),
        "hellaswag": Source(
            "hellaswag/hellaswag", "validation", "hellaswag_val", "train", "hellaswag_train", hellaswag
        ),
        "winogrande": Source(
            "winogrande/default", "validation", "winogrande_dev", "train", "winogrande_train", winogrande
        ),
        **{
            f"truthfulqa_{kind}": Source(
                f"truthfulqa/truthfulqa_{kind}", "validation", "truthfulqa_mc", "train", "truthfulqa_train", truthfulqa
            )
            for kind in ("mc1", "mc2")
        },
        **{
            f"mmlu_{subject}": Source(
                f"mmlu/default/mmlu_{subject}", "test", "mmlu_test", "dev", "mmlu_dev", mmlu, subject
            )
            for subject in sorted({row["subject"] for row in read(data / "mmlu_test.jsonl")})
        },
    }
    return {name: source for name, source in known.items() if (data / f"{source.file}.jsonl").exists()}


def write(names: Sequence[str], data: Path, into: Path) -> list[str]:
    """Write rows and definitions of the named tasks into a folder for lm-eval's `include_path`.

    `mmlu` stands for all its subjects. Returns what a reader of the scores should know. Raises `ConfigError` for a
    task whose rows are not there, `DataError` for a row that is not in the plain form.
    """
    known = sources(data)
    subjects = [name for name in known if name.startswith("mmlu_")]
    groups = {"mmlu": subjects} if subjects else {}
    unknown = [name for name in names if name not in known and name not in groups]
    if unknown:
        have = [name for name in known if name not in subjects] + (["mmlu", "mmlu_<subject>"] if subjects else [])
        raise ConfigError(
            f"evaluate.lm_eval.tasks names {unknown[0]!r}, which has no rows in {data}: "
            f"choose among {', '.join(have) or 'none (the folder holds no rows)'}, "
            "or unset evaluate.lm_eval.local_data to use the hub"
        )
    notes = []
    for name in dict.fromkeys(task for named in names for task in groups.get(named, [named])):
        notes += write_task(name, known[name], data, into)
    for name in groups.keys() & set(names):
        average = [{"metric": "acc", "weight_by_size": True}]
        write_yaml(into / f"{name}.yaml", {"group": name, "task": groups[name], "aggregate_metric_list": average})
    return notes


def write_task(name: str, source: Source, data: Path, into: Path) -> list[str]:
    """Write one task. Returns a note if its few-shot examples come from the rows that are evaluated."""
    files = {source.split: source.file}
    if (data / f"{source.examples}.jsonl").exists():
        files[source.examples_split] = source.examples
    for split, file in files.items():
        with (into / f"{name}.{split}.jsonl").open("w", encoding="utf-8") as out:
            for row in converted(data / f"{file}.jsonl", source):
                print(json.dumps(row), file=out)
    own = source.examples_split not in files
    definition = {
        "include": str(definitions() / f"{source.definition}.yaml"),
        "task": name,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(into / f"{name}.{split}.jsonl") for split in files},
            "cache_dir": str(into / "cache"),
        },
        "training_split": "train" if "train" in files else None,
        "validation_split": None,
        # lm-eval leaves the row that is asked out of the examples where these two are the same.
        "test_split": source.split,
        "fewshot_split": source.split if own else source.examples_split,
    }
    write_yaml(into / f"{name}.yaml", definition)
    return [f"{name}: examples in the prompt come from the rows that are evaluated"] if own else []


def converted(path: Path, source: Source) -> Iterator[Row]:
    """The rows of a file as lm-eval's definition reads them."""
    for number, row in enumerate(read(path), start=1):
        if source.subject is None or row.get("subject") == source.subject:
            try:
                yield source.convert(row)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, line {number}, is not in the plain form ({type(error).__name__}: {error}): "
                    "give question, choices and label (from 0)"
                ) from error


def read(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file; none if there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}, is not JSON ({error}): mend or remove it") from error


def definitions() -> Path:
    """lm-eval's folder of tasks, found without loading lm-eval."""
    found = find_spec("lm_eval")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "tasks"


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a definition."""
    path.write_text(yaml.safe_dump(dict(value), sort_keys=False), "utf-8")
