"""Find the tasks of lm-eval: local rows, the hub's cache, or the hub."""

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub

from spin_core.errors import ConfigError, DataError, first_line
from spin_core.evaluation import local_tasks
from spin_core.store import identity
from spin_core.store.jobs import BenchmarkConfig, BenchmarkTask


@dataclass(frozen=True)
class Single:
    """One task, by itself or in a group."""

    name: str
    rows: str
    """Digest of its data."""
    load: Callable[[], Any]
    """lm-eval's object for it."""


@dataclass(frozen=True)
class Found:
    """What a name of the configuration stands for."""

    task: BenchmarkTask
    singles: list[Single]
    means: list[dict[str, Any]] | None = None
    """How a group's scores are made of its tasks', as lm-eval has it: metric, weight_by_size, filter_list."""
    notes: list[str] = field(default_factory=list)


# Tasks, of the hub or of a folder.


def find_tasks(config: BenchmarkConfig, folder: Path) -> list[Found]:
    """All that the configuration names. Local rows are written to `folder`, and no hub is asked."""
    if config.local_data is None:
        return list(from_hub(config.tasks))
    if not config.local_data.is_dir():
        raise ConfigError(f"evaluate.lm_eval.local_data {config.local_data} is no folder: give one, or unset it")
    go_offline()
    known = local_tasks.write([task.name for task in config.tasks], config.local_data, folder)

    @functools.cache
    def manager() -> Any:
        from lm_eval.tasks import TaskManager  # takes seconds, which a suite that is known already need not wait

        return TaskManager(include_path=str(folder), include_defaults=False)

    def load(name: str) -> Any:
        return manager().load([name])["tasks"][name]

    found = []
    for task in config.tasks:
        local = known[task.name]
        singles = [Single(one.name, one.digest, functools.partial(load, one.name)) for one in local.tasks]
        borrowed = any(one.borrows(task.num_fewshot) for one in local.tasks)
        notes = [f"{task.name}: examples in the prompt come from the rows that are evaluated"] if borrowed else []
        if len(singles) < local.whole:
            notes.append(
                f"{task.name}: {len(singles)} of its {local.whole} tasks have rows, and the score is theirs alone"
            )
        found.append(Found(task, singles, local.means, notes))
    return found


def go_offline() -> None:
    """Keep this process from asking the hub, whose settings are read when its library is imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def from_hub(tasks: Sequence[BenchmarkTask]) -> Iterator[Found]:
    """The tasks with the hub's rows, which are read to see whether they are those that were scored before."""
    from lm_eval.tasks import TaskManager

    folders = {str(path) for task in tasks if (path := local_tasks.definition_folder(task.name))}
    manager = TaskManager(include_path=sorted(folders), include_defaults=False)
    if any(task.name not in manager.all_tasks for task in tasks):
        manager = TaskManager()  # a quarter of a minute: all of lm-eval's definitions are read
    for task in tasks:
        if task.name not in manager.all_tasks:
            near = difflib.get_close_matches(task.name, manager.all_tasks, n=3)
            raise ConfigError(
                f"evaluate.lm_eval.tasks names {task.name!r}, which lm-eval does not know: "
                + (f"did you mean {', '.join(near)}?" if near else "see `lm-eval ls tasks`")
            )
    for task in tasks:
        try:
            loaded = manager.load([task.name])
        except OSError as error:
            raise DataError(
                f"the rows of {task.name} did not come from the hub ({first_line(error)}): connect to it, or set "
                "evaluate.lm_eval.local_data to a folder with the rows"
            ) from error
        singles = [
            Single(name, digest_rows(one, task.num_fewshot), functools.partial(lambda one: one, one))
            for name, one in loaded["tasks"].items()
        ]
        group = loaded["groups"].get(task.name)
        if group is not None and group.aggregate_metric_list:
            yield Found(task, singles, [vars(one) for one in group.aggregate_metric_list])
        else:  # one task, or a name for several
            yield from (Found(task.model_copy(update={"name": one.name}), [one]) for one in singles)


def digest_rows(task: Any, num_fewshot: int | None) -> str:
    """The digest of the rows that a task asks, and takes examples from."""
    count = task.get_config("num_fewshot") if num_fewshot is None else num_fewshot
    parts = [task.eval_docs, task.fewshot_docs() or () if count else ()]
    return identity.digest_of([[{key: repr(row[key]) for key in row} for row in rows] for rows in parts])
