"""lm-eval's tasks on rows from a folder, where no hub is at hand.

The rows have one plain form, `{"question", "choices", "label"}`, or where a task has none of these the hub's own. They
are turned into the rows that lm-eval's own definition of a task reads, and that definition is included as it is, so
prompts and metrics are lm-eval's: also the examples of BBH, which stand in the definitions. Not even a split is told
anew where its rows are there, since lm-eval draws other examples where a definition names none.

    <name>.jsonl, or in a folder below, or <task>/<split>.jsonl     one file for each task and split
"""

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from spin_core.errors import ConfigError, DataError

Row = dict[str, Any]

LETTERS = "ABCDEFGHIJ"

GROUPS = {"mmlu": "mmlu/default/_mmlu", "bbh_cot_fewshot": "bbh/cot_fewshot/_bbh_cot_fewshot"}
"""Groups of tasks, and lm-eval's definition of each."""


@dataclass(frozen=True)
class Source:
    """Where a task's rows lie, and how they become those of its lm-eval definition."""

    definition: str
    """lm-eval's YAML, below its folder of tasks."""
    split: str
    """The split that is evaluated, by the definition's name."""
    file: str
    """Its rows: `<file>.jsonl`."""
    convert: Callable[[Row], Row]
    examples_split: str = ""
    """The split that few-shot examples come from, by the definition's name. Empty: there are none, or the definition
    holds them."""
    examples: str = ""
    """Its rows. Where there are none, examples come from the rows that are evaluated, other than the one asked."""
    only: tuple[str, str] | None = None
    """Of rows with a column that tells subjects apart, take those of one."""
    shots: int = 0
    """How many examples from a split the definition asks for by itself."""


@dataclass(frozen=True)
class LocalTask:
    """A task that was written for lm-eval."""

    name: str
    digest: str
    """Of its rows."""
    alone: bool
    """Whether there are no rows for examples but those that are evaluated."""
    shots: int
    """The number of examples that it has by itself."""

    def borrows(self, num_fewshot: int | None) -> bool:
        """Whether with so many examples these come from the rows that are evaluated."""
        return self.alone and bool(self.shots if num_fewshot is None else num_fewshot)


@dataclass(frozen=True)
class LocalName:
    """What a name of the configuration stands for: one task, or a group's."""

    tasks: list[LocalTask]
    means: list[dict[str, Any]] | None
    """How lm-eval makes the group's scores of its tasks'; None for one task."""
    whole: int = 1
    """How many tasks lm-eval has there, of which some may have no rows."""


def with_answer_key(row: Row, question: str = "question") -> Row:
    """ARC's and OpenBookQA's rows: choices with letters."""
    letters = list(LETTERS[: len(row["choices"])])
    choices = {"text": row["choices"], "label": letters}
    return {question: row["question"], "choices": choices, "answerKey": letters[row["label"]]}


def hellaswag(row: Row) -> Row:
    """HellaSwag's rows: the activity, the sentences before, and the beginning of the one to be finished.

    That beginning is in lower case in the data set, and lm-eval writes it with a capital, unless a quotation mark is
    the first of it.
    """
    activity, _, text = row["question"].partition(": ")
    found = re.search(r"""(?:(?<=[.!?])|(?<=[.!?]["']))\s+((?:["']\s*)?[a-z][^.!?]*)$""", text)
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


def bbh(row: Row) -> Row:
    """BIG-Bench Hard's rows, which are the hub's."""
    return {"input": row["input"], "target": row["target"]}


def gsm8k(row: Row) -> Row:
    """GSM8K's rows, which are the hub's."""
    return {"question": row["question"], "answer": row["answer"]}


def ifeval(row: Row) -> Row:
    """IFEval's rows, which are the hub's: arguments of each instruction, and none of those that are null."""
    arguments = [{name: value for name, value in one.items() if value is not None} for one in row["kwargs"]]
    instructions = row["instruction_id_list"]
    return {"key": row["key"], "prompt": row["prompt"], "instruction_id_list": instructions, "kwargs": arguments}


PLAIN = "give question, choices and label (from 0)"

FORMS: dict[Callable[[Row], Row], str] = {
    bbh: "give task, input and target",
    gsm8k: "give question and answer",
    ifeval: "give key, prompt, instruction_id_list and kwargs",
    truthfulqa: "give question, mc1_choices, mc1_labels, mc2_choices and mc2_labels",
}
"""What a row should hold, for people."""

SINGLE = {
    "arc_easy": Source("arc/arc_easy", "test", "arc_easy_test", with_answer_key, "train", "arc_easy_train"),
    "arc_challenge": Source(
        "arc/arc_challenge", "test", "arc_challenge_test", with_answer_key, "train", "arc_challenge_train"
    ),
    "openbookqa": Source(
        "openbookqa/openbookqa",
        "test",
        "openbookqa_test",
        partial(with_answer_key, question="question_stem"),
        "train",
        "openbookqa_train",
    ),
    "hellaswag": Source("hellaswag/hellaswag", "validation", "hellaswag_val", hellaswag, "train", "hellaswag_train"),
    "winogrande": Source("winogrande/default", "validation", "winogrande_dev", winogrande, "train", "winogrande_train"),
    "truthfulqa_mc1": Source("truthfulqa/truthfulqa_mc1", "validation", "truthfulqa_mc", truthfulqa),
    "truthfulqa_mc2": Source("truthfulqa/truthfulqa_mc2", "validation", "truthfulqa_mc", truthfulqa),
    "gsm8k": Source("gsm8k/gsm8k", "test", "gsm8k_test", gsm8k, "train", "gsm8k_train", shots=5),
    "ifeval": Source("ifeval/ifeval", "train", "ifeval_train", ifeval),
}
"""Tasks with files of their own."""


class Folder:
    """A folder with rows. Each file is read once: subjects share one."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._rows: dict[Path, list[Row]] = {}

    def find(self, name: str) -> Path | None:
        """The file of that name; None if there is none."""
        task, _, split = name.rpartition("_")
        places = [self.data / f"{name}.jsonl", *sorted(self.data.glob(f"*/{name}.jsonl"))]
        if task:
            places.append(self.data / task / f"{split}.jsonl")
        return next((path for path in places if path.exists()), None)

    def rows(self, path: Path) -> list[Row]:
        """The rows of a file."""
        if path not in self._rows:
            self._rows[path] = list(read(path))
        return self._rows[path]

    def sources(self) -> dict[str, Source]:
        """The tasks whose rows are here."""
        known = dict(SINGLE)
        known |= {
            f"mmlu_{subject}": Source(
                f"mmlu/default/mmlu_{subject}", "test", "mmlu_test", mmlu, "dev", "mmlu_dev", ("subject", subject)
            )
            for subject in self._values("mmlu_test", "subject")
        }
        known |= {
            f"bbh_cot_fewshot_{task}": Source(f"bbh/cot_fewshot/{task}", "test", "bbh", bbh, only=("task", task))
            for task in self._values("bbh", "task")
        }
        return {name: source for name, source in known.items() if self.find(source.file)}

    def _values(self, name: str, column: str) -> list[str]:
        path = self.find(name)
        return sorted({str(row.get(column)) for row in self.rows(path)}) if path else []


def definition_folder(name: str) -> Path | None:
    """The folder of lm-eval's tasks that defines one; None if it is not known here."""
    if name in SINGLE:
        return (definitions() / SINGLE[name].definition).parent
    group = next((group for group in GROUPS if name == group or name.startswith(f"{group}_")), None)
    return (definitions() / GROUPS[group]).parent if group else None


def tasks_of(group: str) -> list[str]:
    """lm-eval's tasks in a group."""
    folder = (definitions() / GROUPS[group]).parent
    return sorted(f"{group}_{path.stem.removeprefix(f'{group}_')}" for path in folder.glob("[!_]*.yaml"))


def holds(group: str, name: str) -> bool:
    """Whether a group has a task of that name, or a group within it, as `mmlu` has `mmlu_stem`."""
    return name in tasks_of(group) or (definitions() / GROUPS[group]).with_name(f"_{name}.yaml").exists()


def write(names: Sequence[str], data: Path, into: Path) -> dict[str, LocalName]:
    """Write rows and definitions of the named tasks into a folder for lm-eval's `include_path`.

    `mmlu` stands for all its subjects, `bbh_cot_fewshot` for all its tasks, as far as they have rows. Raises
    `ConfigError` for a task whose rows are not there, and for rows of one that lm-eval does not know, `DataError` for a
    row that is not in its form.
    """
    folder = Folder(data)
    known = folder.sources()
    groups = {group: [name for name in known if name.startswith(f"{group}_")] for group in GROUPS}
    groups = {group: members for group, members in groups.items() if members}
    unknown = [name for name in names if name not in known and name not in groups]
    if unknown:
        members = {member for several in groups.values() for member in several}
        have = [name for name in known if name not in members]
        have += [text for group in groups for text in (group, f"{group}_<name>")]
        raise ConfigError(
            f"{unknown[0]!r} has no rows in {data}, which is evaluate.lm_eval.local_data: "
            f"choose among {', '.join(have) or 'none (the folder holds no rows)'}, "
            "put them there, or unset that to use the hub"
        )
    written = {
        name: write_task(name, known[name], folder, into)
        for name in dict.fromkeys(task for named in names for task in groups.get(named, [named]))
    }
    found = {}
    for name in names:
        tasks = [written[task] for task in groups.get(name, [name])]
        means, whole = None, 1
        if name in groups:
            whole = len(tasks_of(name))
            group = yaml.safe_load((definitions() / f"{GROUPS[name]}.yaml").read_text("utf-8"))
            means = list(group["aggregate_metric_list"])
        found[name] = LocalName(tasks, means, whole)
    return found


def write_task(name: str, source: Source, folder: Folder, into: Path) -> LocalTask:
    """Write one task's rows and definition."""
    file = folder.find(source.file)
    assert file is not None, f"{source.file} was there"
    if source.only and not (definitions() / f"{source.definition}.yaml").exists():
        column, value = source.only
        raise ConfigError(
            f"{file} has rows whose {column} is {value!r}, which lm-eval does not know: name it as lm-eval does, or "
            "take these rows out"
        )
    files = {source.split: file}
    examples = folder.find(source.examples) if source.examples else None
    if examples is not None:
        files[source.examples_split] = examples
    digest = hashlib.sha256()
    for split, path in files.items():
        with (into / f"{name}.{split}.jsonl").open("wb") as out:
            digest.update(f"{split}\n".encode())
            for row in converted(path, folder.rows(path), source):
                line = json.dumps(row).encode() + b"\n"
                digest.update(line)
                out.write(line)
    alone = bool(source.examples_split) and examples is None
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
    }
    if alone:
        # lm-eval leaves the row that is asked out of the examples where these two are the same.
        own = {"test_split": source.split, "fewshot_split": source.split}
        definition |= {"training_split": None, "validation_split": None, **own}
    write_yaml(into / f"{name}.yaml", definition)
    return LocalTask(name, digest.hexdigest(), alone, source.shots)


def converted(path: Path, rows: Iterable[Row], source: Source) -> Iterator[Row]:
    """The rows of a file as lm-eval's definition reads them."""
    for number, row in enumerate(rows, start=1):
        try:
            if source.only is None or row.get(source.only[0]) == source.only[1]:
                yield source.convert(row)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}, is not in the form of {source.definition.split('/')[0]} "
                f"({type(error).__name__}: {error}): {FORMS.get(source.convert, PLAIN)}"
            ) from error


def read(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file."""
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


SENTENCES = (
    "run `python -m nltk.downloader punkt_tab` where there is a network, or set NLTK_DATA to a folder that holds "
    "tokenizers/punkt_tab"
)
"""What to do where NLTK's data are missing."""

COUNTED = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
"""IFEval's instructions that sentences or words are counted for."""


def counts_sentences() -> bool:
    """Whether NLTK has what IFEval counts sentences and words with."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def require_sentences(data: Path | None) -> None:
    """Raise `ConfigError` if IFEval would fail for want of NLTK's data, which are fetched where they can be.

    `data` is the folder of local rows; None stands for the hub's, some of which want sentences counted.
    """
    path = Folder(data).find(SINGLE["ifeval"].file) if data is not None else None
    wanted = data is None or (path is not None and any(counted(row) for row in read(path)))
    if wanted and not counts_sentences() and not (hub_is_near() and fetch_sentences()):
        raise ConfigError(f"ifeval counts sentences with NLTK's punkt_tab, which is not here: {SENTENCES}")


def counted(row: Row) -> bool:
    """Whether an instruction in one of IFEval's rows wants sentences or words counted."""
    return not COUNTED.isdisjoint(row.get("instruction_id_list") or ())


def fetch_sentences() -> bool:
    """Fetch NLTK's data, as lm-eval would among the scoring. Whether they came."""
    import nltk

    with contextlib.redirect_stdout(sys.stderr):
        return bool(nltk.download("punkt_tab", quiet=True)) and counts_sentences()


def hub_is_near() -> bool:
    """Whether the hub may be asked, and answers within seconds: a sign that there is a network."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5.0)
    except httpx.HTTPError:
        return False
    return True


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a definition."""
    path.write_text(yaml.safe_dump(dict(value), sort_keys=False), "utf-8")
