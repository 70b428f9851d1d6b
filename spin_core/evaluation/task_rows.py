"""Rows of lm-eval's tasks in a folder of files, and their conversion to the columns of the hub's data sets.

A row has one plain form, `{"question", "choices", "label"}`, or for tasks without choices the hub's own columns. One
file for each task and split:

    <name>.jsonl, or <folder>/<name>.jsonl, or <task>/<split>.jsonl
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spin_core.errors import DataError

Row = dict[str, Any]

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class RowSource:
    """Where a task's rows are, and how they are converted."""

    definition: str
    """lm-eval's YAML of the task, relative to its folder of tasks, without `.yaml`."""
    split: str
    """The split that is evaluated, as the definition names it."""
    file: str
    """The file of its rows: `<file>.jsonl`."""
    convert: Callable[[Row], Row]
    """From a row of the file to a row with the hub's columns, as the definition reads it."""
    examples_split: str = ""
    """The split of few-shot examples, as the definition names it. Empty: there are none, or the definition has them."""
    examples_file: str = ""
    """The file of its rows. If it does not exist, examples are other rows of the evaluated split."""
    only: tuple[str, str] | None = None
    """Take the rows with this value in this column, in a file that several tasks share."""
    shots: int = 0
    """Number of examples from a split that the definition asks for by default."""


class RowsFolder:
    """A folder with rows. Each file is read once: MMLU's subjects share one."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._rows: dict[Path, list[Row]] = {}

    def find(self, name: str) -> Path | None:
        """Return the file of that name, or None."""
        task, _, split = name.rpartition("_")
        paths = [self.data / f"{name}.jsonl", *sorted(self.data.glob(f"*/{name}.jsonl"))]
        if task:
            paths.append(self.data / task / f"{split}.jsonl")
        return next((path for path in paths if path.exists()), None)

    def rows(self, path: Path) -> list[Row]:
        """Return the rows of a file."""
        if path not in self._rows:
            self._rows[path] = list(read_rows(path))
        return self._rows[path]

    def sources(self) -> dict[str, RowSource]:
        """Return the tasks that have rows here."""
        sources = dict(SINGLE_TASKS)
        sources |= {
            f"mmlu_{subject}": RowSource(
                f"mmlu/default/mmlu_{subject}", "test", "mmlu_test", _mmlu, "dev", "mmlu_dev", ("subject", subject)
            )
            for subject in self._values("mmlu_test", "subject")
        }
        sources |= {
            f"bbh_cot_fewshot_{task}": RowSource(f"bbh/cot_fewshot/{task}", "test", "bbh", _bbh, only=("task", task))
            for task in self._values("bbh", "task")
        }
        return {name: source for name, source in sources.items() if self.find(source.file)}

    def _values(self, name: str, column: str) -> list[str]:
        path = self.find(name)
        return sorted({str(row.get(column)) for row in self.rows(path)}) if path else []


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a JSONL file. Raises `DataError` for a line that is not JSON."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}, is not JSON ({error}): fix or remove it") from error


def convert_rows(path: Path, rows: Iterable[Row], source: RowSource) -> Iterator[Row]:
    """Convert those of a file's rows that belong to a task.

    Raises:
        DataError: A row does not have the task's form.
    """
    for number, row in enumerate(rows, start=1):
        try:
            if source.only is None or row.get(source.only[0]) == source.only[1]:
                yield source.convert(row)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}, is not in the form of {source.definition.split('/')[0]} "
                f"({type(error).__name__}: {error}): {_FORMS.get(source.convert, _PLAIN_FORM)}"
            ) from error


# Conversions from the plain form to the hub's columns.


def _with_answer_key(row: Row, question: str = "question") -> Row:
    """ARC and OpenBookQA: choices with letters, and the right one's letter."""
    letters = list(_LETTERS[: len(row["choices"])])
    choices = {"text": row["choices"], "label": letters}
    return {question: row["question"], "choices": choices, "answerKey": letters[row["label"]]}


def _hellaswag(row: Row) -> Row:
    """HellaSwag: the activity, the complete sentences, and the beginning of the sentence to be finished.

    The hub has that beginning in lower case, and lm-eval's definition capitalises it, unless it begins with a quotation
    mark. The plain form joins the three, so the beginning is the last part without an end that starts in lower case
    after the end of a sentence.
    """
    activity, _, text = row["question"].partition(": ")
    match = re.search(r"""(?:(?<=[.!?])|(?<=[.!?]["']))\s+((?:["']\s*)?[a-z][^.!?]*)$""", text)
    sentences, beginning = (text[: match.start()], match[1]) if match else (text, "")
    return {
        "activity_label": activity,
        "ctx_a": sentences,
        "ctx_b": beginning,
        "endings": row["choices"],
        "label": str(row["label"]),
    }


def _winogrande(row: Row) -> Row:
    """WinoGrande: a sentence with a blank, and two texts to fill it with."""
    first, second = row["choices"]
    return {"sentence": row["question"], "option1": first, "option2": second, "answer": str(row["label"] + 1)}


def _mmlu(row: Row) -> Row:
    return {"question": row["question"], "choices": row["choices"], "answer": row["label"]}


def _truthfulqa(row: Row) -> Row:
    """TruthfulQA: choices of which one is right (mc1), and choices of which several are right (mc2)."""
    targets = {
        f"{kind}_targets": {"choices": row[f"{kind}_choices"], "labels": row[f"{kind}_labels"]}
        for kind in ("mc1", "mc2")
    }
    return {"question": row["question"], **targets}


def _bbh(row: Row) -> Row:
    return {"input": row["input"], "target": row["target"]}


def _gsm8k(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answer"]}


def _ifeval(row: Row) -> Row:
    """IFEval: the arguments of each instruction, without the null ones that the hub's columns have."""
    arguments = [
        {name: value for name, value in instruction.items() if value is not None} for instruction in row["kwargs"]
    ]
    instructions = row["instruction_id_list"]
    return {"key": row["key"], "prompt": row["prompt"], "instruction_id_list": instructions, "kwargs": arguments}


_PLAIN_FORM = "give question, choices and label (from 0)"

_FORMS: dict[Callable[[Row], Row], str] = {
    _bbh: "give task, input and target",
    _gsm8k: "give question and answer",
    _ifeval: "give key, prompt, instruction_id_list and kwargs",
    _truthfulqa: "give question, mc1_choices, mc1_labels, mc2_choices and mc2_labels",
}
"""The columns of rows that are not in the plain form."""

SINGLE_TASKS = {
    "arc_easy": RowSource("arc/arc_easy", "test", "arc_easy_test", _with_answer_key, "train", "arc_easy_train"),
    "arc_challenge": RowSource(
        "arc/arc_challenge", "test", "arc_challenge_test", _with_answer_key, "train", "arc_challenge_train"
    ),
    "openbookqa": RowSource(
        "openbookqa/openbookqa",
        "test",
        "openbookqa_test",
        partial(_with_answer_key, question="question_stem"),
        "train",
        "openbookqa_train",
    ),
    "hellaswag": RowSource(
        "hellaswag/hellaswag", "validation", "hellaswag_val", _hellaswag, "train", "hellaswag_train"
    ),
    "winogrande": RowSource(
        "winogrande/default", "validation", "winogrande_dev", _winogrande, "train", "winogrande_train"
    ),
    "truthfulqa_mc1": RowSource("truthfulqa/truthfulqa_mc1", "validation", "truthfulqa_mc", _truthfulqa),
    "truthfulqa_mc2": RowSource("truthfulqa/truthfulqa_mc2", "validation", "truthfulqa_mc", _truthfulqa),
    "gsm8k": RowSource("gsm8k/gsm8k", "test", "gsm8k_test", _gsm8k, "train", "gsm8k_train", shots=5),
    "ifeval": RowSource("ifeval/ifeval", "train", "ifeval_train", _ifeval),
}
"""Tasks with files of their own."""
