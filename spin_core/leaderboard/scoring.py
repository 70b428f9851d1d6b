"""What is to be scored after a game, or without one: a lineage's versions, or a model that is no lineage's.

A model becomes a lineage of its own that has played nothing, so that it has a leaderboard to stand in.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from spin_core.config.base import nameable
from spin_core.config.evaluate import SuiteName
from spin_core.config.resolve import merge, resolve, validate
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.evaluation import suites
from spin_core.leaderboard import gate
from spin_core.lineage.find import find_lineage, lineage_folder, lineage_names
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.runtime import interpreter
from spin_core.store import identity, lock
from spin_core.store.files import dump

Suite = SuiteName | Literal["self-play"]

OPEN = ("evaluate", "generate")
"""Settings that scoring may change. A lineage's own stay as they are."""


def prepare(
    runs: Path,
    target: str,
    asked: Sequence[str] = (),
    changes: Sequence[Mapping[str, Any]] = (),
    recipe: str = "",
    lineage: str = "",
) -> Lineage:
    """The lineage to score, with the suites asked for in its configuration; without any, those that it has there.

    `target` names a lineage, or a model's folder. A model is scored under `recipe`'s settings, if one is named, and
    called `lineage`, or as its folder is. Raises `ConfigError` with the cure.
    """
    try:
        nameable(target)
    except ValueError as error:
        raise ConfigError(f"what to score: {error}") from error
    if (runs / target / "lineage.json").exists():
        if recipe or lineage:
            raise ConfigError(
                f"{target} is a lineage, which has its recipe and its name: leave out --recipe and --lineage"
            )
        return of_lineage(find_lineage(runs, target), asked, changes)
    folder = Path(target).expanduser()
    if not folder.is_dir() and "/" not in target:
        there = ", ".join(lineage_names(runs)) or "none yet"
        raise ConfigError(
            f"{target} is neither a lineage in {runs} (there: {there}) nor a model's folder: name one of them"
        )
    model = str(folder.resolve()) if folder.is_dir() else target
    name = lineage or re.sub(r"[^a-z0-9]+", "-", Path(model).name.lower()).strip("-")[:63]
    root = lineage_folder(runs, name)
    if (root / "lineage.json").exists():
        game = find_lineage(runs, name)
        if game.config.model.path != model:
            raise ConfigError(f"the name {name} is taken by another model: give this one another with --lineage")
        if any(root.rglob(identity.MANIFEST)):
            return of_lineage(game, asked, changes)
    path = {"model": {"path": model}}
    # Without a recipe nobody says which prompts are held out.
    plain = {"recipe": "model", "evaluate": {"self_play": False}, **path}
    config = with_suites(resolve(recipe, overrides=path) if recipe else validate(plain), asked, changes)
    with lock.locked(root):
        if not any(root.rglob(identity.MANIFEST)):  # an earlier try came to nothing, perhaps for its settings
            (root / "lineage.json").unlink(missing_ok=True)
        return start_lineage(runs, name, config)


def of_lineage(game: Lineage, asked: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> Lineage:
    """A lineage that is there, scoring what is asked for."""
    refused = [name for change in changes for name in change if name not in OPEN]
    if refused:
        raise ConfigError(f"scoring cannot change {refused[0]} of lineage {game.name}: set {' and '.join(OPEN)} alone")
    config = with_suites(game.config, asked, changes)
    # They will stand on one leaderboard.
    suites.check_names([*suites.benchmarks(game.config.evaluate), *suites.benchmarks(config.evaluate)])
    return replace(game, config=config)


def with_suites(config: RunConfig, asked: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> RunConfig:
    """The configuration, scoring what is asked for and nothing else. `ConfigError` if that is nothing."""
    values = dump(config)
    if asked:
        named = [suite for suite in asked if suite != "self-play"]
        only = {"suites": named, "self_play": "self-play" in asked, "lm_eval": {"tasks": []}}
        values = merge(values, {"evaluate": only if "self-play" in asked else {**only, "exact": False}})
    for change in changes:
        values = merge(values, change)
    config = validate(values)
    known = suites.score_names(config.evaluate)
    if not (config.evaluate.self_play or config.evaluate.exact or config.evaluate.suites or known):
        raise ConfigError(
            "nothing is to be scored: name a suite with --suite, as in --suite open-llm-leaderboard-quick"
        )
    if not config.evaluate.self_play and config.evaluate.main_metric in gate.SELF_PLAY:
        first = config.evaluate.suites[0] if config.evaluate.suites else known[0]
        config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"main_metric": first})})
    suites.check(config)
    if config.generate.engine == "vllm" and suites.mt_bench_suites(config.evaluate):
        interpreter.required_python(config.generate.vllm)
    return config


def versions(game: Lineage, wanted: Sequence[int]) -> list[int]:
    """The versions to score: those wanted, or all. `ConfigError` for one that is not there."""
    last = len(game.records())
    for t in wanted:
        if not 0 <= t <= last:
            raise ConfigError(f"lineage {game.name} has no θ_{t}: choose from 0 to {last}")
    return sorted(set(wanted)) or list(range(last + 1))
