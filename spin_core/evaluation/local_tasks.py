"""Tasks of lm-eval whose rows come from a folder instead of the hub.

lm-eval's own definition of each task is included unchanged, so prompts and metrics are lm-eval's, also the examples of
BBH, which are in the definitions. Only the location of the rows is replaced. Not even a split is named again where its
rows exist, since lm-eval draws other examples if a definition names none.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from spin_core.errors import ConfigError
from spin_core.evaluation.task_rows import SINGLE_TASKS, RowsFolder, RowSource, convert_rows

GROUPS = {"mmlu": "mmlu/default/_mmlu", "bbh_cot_fewshot": "bbh/cot_fewshot/_bbh_cot_fewshot"}
"""Groups of tasks, and lm-eval's definition of each."""


@dataclass(frozen=True)
class LocalTask:
    """A task that was written for lm-eval."""

    name: str
    digest: str
    """Digest of its rows."""
    without_examples: bool
    """Whether there are no rows for examples other than the evaluated ones."""
    shots: int
    """The task's own number of examples."""

    def borrows_examples(self, num_fewshot: int | None) -> bool:
        """Return whether this number of examples (None: the task's own) is taken from the evaluated rows."""
        return self.without_examples and bool(self.shots if num_fewshot is None else num_fewshot)


@dataclass(frozen=True)
class LocalTasks:
    """The tasks of a name in the configuration: one, or those of a group."""

    tasks: list[LocalTask]
    means: list[dict[str, Any]] | None
    """How lm-eval computes the group's scores from its tasks'; None for one task."""
    total: int = 1
    """How many tasks lm-eval has under this name, of which some may have no rows."""


def write_tasks(names: Sequence[str], data: Path, output: Path) -> dict[str, LocalTasks]:
    """Write rows and definitions of tasks into a folder for lm-eval's `include_path`.

    Args:
        names: lm-eval's names. `mmlu` means all its subjects and `bbh_cot_fewshot` all its tasks that have rows.
        data: The folder with the rows.
        output: The folder to write to.

    Returns:
        The tasks by the given names.

    Raises:
        ConfigError: A task has no rows, or the rows are of a subject or task that lm-eval does not have.
        DataError: A row does not have its task's form.
    """
    folder = RowsFolder(data)
    sources = folder.sources()
    groups = {group: [name for name in sources if name.startswith(f"{group}_")] for group in GROUPS}
    groups = {group: members for group, members in groups.items() if members}
    for name in names:
        if name not in sources and name not in groups:
            raise _no_rows(name, data, sources, groups)
    tasks = {
        task: _write_task(task, sources[task], folder, output)
        for task in dict.fromkeys(task for name in names for task in groups.get(name, [name]))
    }
    return {
        name: _group(name, [tasks[task] for task in groups[name]])
        if name in groups
        else LocalTasks([tasks[name]], None)
        for name in names
    }


def definitions() -> Path:
    """Return lm-eval's folder of tasks, without importing lm-eval, which takes seconds."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tasks"


def definition_folder(name: str) -> Path | None:
    """Return the folder of lm-eval's definition of a task; None if this module does not know the task."""
    if name in SINGLE_TASKS:
        return (definitions() / SINGLE_TASKS[name].definition).parent
    group = next((group for group in GROUPS if name == group or name.startswith(f"{group}_")), None)
    return (definitions() / GROUPS[group]).parent if group else None


def tasks_of(group: str) -> list[str]:
    """Return the names of lm-eval's tasks in a group."""
    folder = (definitions() / GROUPS[group]).parent
    return sorted(f"{group}_{path.stem.removeprefix(f'{group}_')}" for path in folder.glob("[!_]*.yaml"))


def group_contains(group: str, name: str) -> bool:
    """Return whether a group has a task of that name, or a group within it, as `mmlu` has `mmlu_stem`."""
    return name in tasks_of(group) or (definitions() / GROUPS[group]).with_name(f"_{name}.yaml").exists()


def _no_rows(name: str, data: Path, sources: dict[str, RowSource], groups: dict[str, list[str]]) -> ConfigError:
    members = {member for group in groups.values() for member in group}
    choices = [task for task in sources if task not in members]
    choices += [text for group in groups for text in (group, f"{group}_<name>")]
    return ConfigError(
        f"{name!r} has no rows in {data}, which is evaluate.lm_eval.local_data: "
        f"choose among {', '.join(choices) or 'none (the folder holds no rows)'}, "
        "put them there, or unset that to use the hub"
    )


def _group(name: str, tasks: list[LocalTask]) -> LocalTasks:
    definition = yaml.safe_load((definitions() / f"{GROUPS[name]}.yaml").read_text("utf-8"))
    return LocalTasks(tasks, list(definition["aggregate_metric_list"]), len(tasks_of(name)))


def _write_task(name: str, source: RowSource, folder: RowsFolder, output: Path) -> LocalTask:
    """Write one task's rows and definition."""
    file = folder.find(source.file)
    assert file is not None, f"{source.file} existed when the sources were listed"
    if source.only and not (definitions() / f"{source.definition}.yaml").exists():
        column, value = source.only
        raise ConfigError(
            f"{file} has rows whose {column} is {value!r}, which lm-eval does not know: name it as lm-eval does, or "
            "take these rows out"
        )
    files = {source.split: file}
    examples = folder.find(source.examples_file) if source.examples_file else None
    if examples is not None:
        files[source.examples_split] = examples
    digest = _write_rows(name, source, folder, files, output)
    without_examples = bool(source.examples_split) and examples is None
    definition: dict[str, Any] = {
        "include": str(definitions() / f"{source.definition}.yaml"),
        "task": name,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(output / f"{name}.{split}.jsonl") for split in files},
            "cache_dir": str(output / "cache"),
        },
    }
    if without_examples:
        # lm-eval leaves the evaluated row out of its examples if these two splits are the same.
        same = {"test_split": source.split, "fewshot_split": source.split}
        definition |= {"training_split": None, "validation_split": None, **same}
    (output / f"{name}.yaml").write_text(yaml.safe_dump(definition, sort_keys=False), "utf-8")
    return LocalTask(name, digest, without_examples, source.shots)


def _write_rows(name: str, source: RowSource, folder: RowsFolder, files: dict[str, Path], output: Path) -> str:
    """Write the converted rows of each split, and return their digest."""
    digest = hashlib.sha256()
    for split, path in files.items():
        with (output / f"{name}.{split}.jsonl").open("wb") as file:
            digest.update(f"{split}\n".encode())
            for row in convert_rows(path, folder.rows(path), source):
                line = json.dumps(row).encode() + b"\n"
                digest.update(line)
                file.write(line)
    return digest.hexdigest()
