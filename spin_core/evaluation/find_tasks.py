"""Find the tasks of a configuration: in a folder of rows, in the hub's cache, or on the hub."""

import difflib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_core.errors import ConfigError, DataError, first_line
from spin_core.evaluation import local_tasks
from spin_core.evaluation.hub import go_offline
from spin_core.store import identity
from spin_core.store.evaluation_jobs import BenchmarkConfig, BenchmarkTask


@dataclass(frozen=True)
class SingleTask:
    """One task of lm-eval, by itself or in a group."""

    name: str
    rows_digest: str
    load: Callable[[], Any]
    """Returns lm-eval's object for it."""


@dataclass(frozen=True)
class NamedTask:
    """What a name of the configuration means: one task, or a group of tasks."""

    task: BenchmarkTask
    singles: list[SingleTask]
    means: list[dict[str, Any]] | None = None
    """How lm-eval computes a group's scores from its tasks': `metric`, `weight_by_size` and `filter_list` of each.
    None for one task."""
    notes: list[str] = field(default_factory=list)


def find_tasks(config: BenchmarkConfig, folder: Path) -> list[NamedTask]:
    """Return all tasks that the configuration names.

    Args:
        config: If it has local data, the process goes offline, and the hub is not asked.
        folder: An empty folder, to which local rows are written in lm-eval's form. It must exist until the tasks are
            scored.

    Raises:
        ConfigError: lm-eval does not know a task, or it has no rows in the folder of local data.
        DataError: Rows are not in their task's form, or the hub does not give them.
    """
    if config.local_data is None:
        return list(tasks_from_hub(config.tasks))
    if not config.local_data.is_dir():
        raise ConfigError(f"evaluate.lm_eval.local_data {config.local_data} is not a folder: give one, or unset it")
    go_offline()
    local = local_tasks.write_tasks([task.name for task in config.tasks], config.local_data, folder)

    @functools.cache
    def manager() -> Any:
        from lm_eval.tasks import TaskManager  # takes seconds, for which a suite that is scored already need not wait

        return TaskManager(include_path=str(folder), include_defaults=False)

    def load(name: str) -> Any:
        return manager().load([name])["tasks"][name]

    return [_named_task(task, local[task.name], load) for task in config.tasks]


def _named_task(task: BenchmarkTask, local: local_tasks.LocalTasks, load: Callable[[str], Any]) -> NamedTask:
    """Return a task on local rows, with notes on what rows are missing."""
    singles = [
        SingleTask(local_task.name, local_task.digest, functools.partial(load, local_task.name))
        for local_task in local.tasks
    ]
    notes = []
    if any(local_task.borrows_examples(task.num_fewshot) for local_task in local.tasks):
        notes.append(f"{task.name}: examples in the prompt come from the rows that are evaluated")
    if len(singles) < local.total:
        notes.append(f"{task.name}: {len(singles)} of its {local.total} tasks have rows, and the score is theirs alone")
    return NamedTask(task, singles, local.means, notes)


def tasks_from_hub(tasks: Sequence[BenchmarkTask]) -> Iterator[NamedTask]:
    """Yield the tasks on the hub's rows, which are read to see whether they were scored before.

    A name that lm-eval has for several tasks without a score of their own gives each of these tasks.
    """
    from lm_eval.tasks import TaskManager

    folders = {str(path) for task in tasks if (path := local_tasks.definition_folder(task.name))}
    manager = TaskManager(include_path=sorted(folders), include_defaults=False)
    if any(task.name not in manager.all_tasks for task in tasks):
        manager = TaskManager()  # takes a quarter of a minute: it reads all of lm-eval's definitions
    for task in tasks:
        if task.name not in manager.all_tasks:
            similar = difflib.get_close_matches(task.name, manager.all_tasks, n=3)
            raise ConfigError(
                f"evaluate.lm_eval.tasks names {task.name!r}, which lm-eval does not know: "
                + (f"did you mean {', '.join(similar)}?" if similar else "see `lm-eval ls tasks`")
            )
    for task in tasks:
        try:
            loaded = manager.load([task.name])
        except OSError as error:
            raise DataError(
                f"the rows of {task.name} could not be loaded from the hub ({first_line(error)}): connect to it, or "
                "set evaluate.lm_eval.local_data to a folder with the rows"
            ) from error
        singles = [
            SingleTask(name, _digest_rows(loaded_task, task.num_fewshot), functools.partial(_return, loaded_task))
            for name, loaded_task in loaded["tasks"].items()
        ]
        group = loaded["groups"].get(task.name)
        if group is not None and group.aggregate_metric_list:
            yield NamedTask(task, singles, [vars(mean) for mean in group.aggregate_metric_list])
        else:  # one task, or a name for several
            yield from (NamedTask(task.model_copy(update={"name": single.name}), [single]) for single in singles)


def _return(loaded_task: Any) -> Any:
    return loaded_task


def _digest_rows(task: Any, num_fewshot: int | None) -> str:
    """Return the digest of the rows that a task evaluates, and takes examples from."""
    count = task.get_config("num_fewshot") if num_fewshot is None else num_fewshot
    splits = [task.eval_docs, task.fewshot_docs() or () if count else ()]
    return identity.digest_of([[{key: repr(row[key]) for key in row} for row in rows] for rows in splits])
