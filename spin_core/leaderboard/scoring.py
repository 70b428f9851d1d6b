"""What `spin evaluate` scores: versions of a lineage, or a model that belongs to no lineage.

Such a model becomes the θ_0 of a lineage without iterations, so that it has a leaderboard.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from spin_core.config.base import valid_path
from spin_core.config.evaluate import SuiteName
from spin_core.config.resolve import build_config, merge, resolve
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.evaluation import suites
from spin_core.leaderboard import gate
from spin_core.lineage.find import find_lineage, lineage_folder, lineage_names
from spin_core.lineage.lineage import CONFIGURATION, Lineage
from spin_core.lineage.start import start_lineage
from spin_core.runtime import interpreter
from spin_core.store import identity, lock
from spin_core.store.files import json_values

Suite = SuiteName | Literal["self-play"]

_MAY_CHANGE = ("evaluate", "generate")
"""Sections that scoring may change. The lineage's own settings stay as they are."""


def prepare(
    runs: Path,
    target: str,
    suite_names: Sequence[str] = (),
    changes: Sequence[Mapping[str, Any]] = (),
    recipe: str = "",
    name: str = "",
) -> Lineage:
    """The lineage to score, with the suites to score it on in its configuration.

    Args:
        runs: The folder that holds lineages.
        target: The name of a lineage, or the folder of a model.
        suite_names: The suites; those of the lineage's configuration if empty.
        changes: Nested settings, each merged over the ones before it.
        recipe: For a model, the recipe whose settings it has.
        name: For a model, the name of its lineage; by default that of its folder.

    Raises:
        ConfigError: The target, the suites or the settings cannot be used; the message says how to fix it.
    """
    try:
        valid_path(target)
    except ValueError as error:
        raise ConfigError(f"what to score: {error}") from error
    if (runs / target / CONFIGURATION).exists():
        if recipe or name:
            raise ConfigError(
                f"{target} is a lineage, which has its recipe and its name: leave out --recipe and --lineage"
            )
        return _of_lineage(find_lineage(runs, target), suite_names, changes)
    folder = Path(target).expanduser()
    if not folder.is_dir() and "/" not in target:
        existing = ", ".join(lineage_names(runs)) or "none yet"
        raise ConfigError(
            f"{target} is neither a lineage in {runs} (there: {existing}) nor a model's folder: name one of them"
        )
    model = str(folder.resolve()) if folder.is_dir() else target
    name = name or re.sub(r"[^a-z0-9]+", "-", Path(model).name.lower()).strip("-")[:63]
    return _of_model(runs, model, name, suite_names, changes, recipe)


def versions(lineage: Lineage, wanted: Sequence[int]) -> list[int]:
    """The versions to score: those wanted, or all. Raises `ConfigError` for one that does not exist."""
    last = len(lineage.records())
    for t in wanted:
        if not 0 <= t <= last:
            raise ConfigError(f"lineage {lineage.name} has no θ_{t}: choose from 0 to {last}")
    return sorted(set(wanted)) or list(range(last + 1))


def _of_lineage(lineage: Lineage, suite_names: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> Lineage:
    """An existing lineage with these suites in its configuration."""
    rejected = [section for change in changes for section in change if section not in _MAY_CHANGE]
    if rejected:
        raise ConfigError(
            f"scoring cannot change {rejected[0]} of lineage {lineage.name}: set only {' and '.join(_MAY_CHANGE)}"
        )
    config = _with_suites(lineage.config, suite_names, changes)
    # Their scores will be on the same leaderboard.
    suites.check_names([*suites.benchmarks(lineage.config.evaluate), *suites.benchmarks(config.evaluate)])
    return replace(lineage, config=config)


def _of_model(
    runs: Path,
    model: str,
    name: str,
    suite_names: Sequence[str],
    changes: Sequence[Mapping[str, Any]],
    recipe: str,
) -> Lineage:
    """The lineage of a model, started if it does not exist."""
    root = lineage_folder(runs, name)
    if (root / CONFIGURATION).exists() and _has_results(root):
        lineage = find_lineage(runs, name)
        if lineage.config.model.path != model:
            raise ConfigError(f"the name {name} is taken by another model: choose another with --lineage")
        return _of_lineage(lineage, suite_names, changes)
    path = {"model": {"path": model}}
    # Without a recipe there are no held-out prompts.
    plain = {"recipe": "model", "evaluate": {"self_play": False}, **path}
    settings = resolve(recipe, overrides=path) if recipe else build_config(plain)
    config = _with_suites(settings, suite_names, changes)
    with lock.locked(root):
        return start_lineage(runs, name, config)


def _has_results(root: Path) -> bool:
    """Whether anything of a lineage is published."""
    return any(root.rglob(identity.MANIFEST))


def _with_suites(config: RunConfig, suite_names: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> RunConfig:
    """The configuration with these suites and nothing else to score. Raises `ConfigError` if that is nothing."""
    values = json_values(config)
    if suite_names:
        benchmarks = [suite for suite in suite_names if suite != "self-play"]
        self_play = "self-play" in suite_names
        only = {"suites": benchmarks, "self_play": self_play, "lm_eval": {"tasks": []}, "frontier": []}
        values = merge(values, {"evaluate": only if self_play else {**only, "exact": False}})
    for change in changes:
        values = merge(values, change)
    config = build_config(values)
    evaluate, scores = config.evaluate, suites.score_names(config.evaluate)
    if not (evaluate.self_play or evaluate.exact or evaluate.suites or scores):
        raise ConfigError("no suite is named: name one with --suite, as in --suite open-llm-leaderboard-quick")
    if not evaluate.self_play and evaluate.main_metric in gate.SELF_PLAY:
        # The main score of the leaderboard has to be one that is made.
        first = evaluate.suites[0] if evaluate.suites else scores[0]
        config = config.model_copy(update={"evaluate": evaluate.model_copy(update={"main_metric": first})})
    suites.check(config)
    if config.generate.engine == "vllm" and suites.mt_bench_suites(config.evaluate):
        interpreter.required_python(config.generate.vllm)
    return config
