"""Start a lineage, or continue one whose settings allow it."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from spin_core.config.base import at_iteration
from spin_core.config.run import RunConfig
from spin_core.errors import SpinError, StaleArtifact
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import CONFIGURATION, Lineage
from spin_core.store import identity
from spin_core.store.files import json_values, load, write_json, write_text

_logger = logging.getLogger(__name__)

_MAY_CHANGE = ("iterations", "controls", "evaluate", "gate", "metrics", "nightly", "push")
"""Sections that may differ from those a lineage was started with, because no version depends on them.

What was scored with other settings of `evaluate` is scored again (`rescore`)."""

_FIRST_USED: Mapping[str, tuple[str, ...]] = {
    "sft_first": ("base/eval/*", "{iteration}/generations"),
    "sft.train": ("base/eval/*", "{iteration}/generations"),
    "prompts": ("iter_00/prompts",),
    "generate.max_new_tokens": ("iter_00/prompts",),  # human responses are cut there
    "generate": ("{iteration}/generations",),
    "play_seed": ("{iteration}/generations",),
    "pairs": ("{iteration}/pairs",),
    "train": ("{iteration}/train",),
}
"""Settings, and the folders of the first phase that depends on them: they may change until one of these is published.
Settings that are not listed may change until anything is published."""


def start_lineage(
    runs: Path, name: str, config: RunConfig, *, warn: Callable[[str], None] = _logger.warning
) -> Lineage:
    """Start a lineage, or continue the one of that name, and write its configuration.

    The caller holds the lineage's lock. `preflight.prepare.prepare_run` checks the configuration itself.

    Args:
        runs: The folder that holds lineages.
        name: The lineage's name.
        config: Its settings from now on.
        warn: Called with one line if settings are replaced on which nothing published depends.

    Raises:
        ConfigError: The name is not allowed.
        StaleArtifact: Something published depends on a setting that has another value now. A schedule may change for
            iterations that have not begun.
    """
    path = lineage_folder(runs, name) / CONFIGURATION
    lineage = Lineage(runs=runs, name=name, config=config)
    if path.exists() and (replaced := _replaced_settings(lineage, load(RunConfig, path, "config"))):
        more = f" and {len(replaced) - 3} more" if len(replaced) > 3 else ""
        warn(
            f"lineage {name} takes new settings, because nothing that is published depends on them: "
            f"{', '.join(replaced[:3])}{more}"
        )
    write_json(path, {"lineage": name, "config": json_values(config)})
    return lineage


@contextlib.contextmanager
def restored_on_failure(lineage: Lineage, config: RunConfig) -> Iterator[None]:
    """Run a block that continues a lineage with `config`.

    If it fails, the lineage has its own settings again, so that what was tried once is not kept for later iterations.
    It keeps `config` where something was published that depends on a setting in which the two differ.
    """
    path = lineage.root / CONFIGURATION
    before = path.read_text("utf-8")
    try:
        yield
    except BaseException:
        with contextlib.suppress(SpinError):  # the error of the block is the one to show
            # Another process may have continued the lineage meanwhile, with settings that are not to be replaced.
            if load(RunConfig, path, "config") == config:
                _replaced_settings(lineage, config)
                write_text(path, before)
        raise


def _replaced_settings(lineage: Lineage, before: RunConfig) -> list[str]:
    """The settings that differ from `before` and that nothing published depends on: `train.beta = 0.2, not 0.1`.

    Raises:
        StaleArtifact: Something published depends on a setting that differs.
    """
    replaced: dict[str, str] = {}
    begun = max(1, sum(1 for _ in lineage.root.glob("iter_*")))
    for t in range(begun):
        # Identities leave out execution settings, which no result depends on.
        old, new = (identity.identity_of(at_iteration(config, t)) for config in (before, lineage.config))
        changed = {
            field: (identity.shorten(was), identity.shorten(now))
            for field, was, now in identity.differences(old, new)
            if field.split(".")[0] not in _MAY_CHANGE
        }
        if fixed := [field for field in changed if _is_used(lineage, t, field)]:
            if "recipe" in fixed:
                raise _other_recipe(lineage, before.recipe)
            values = "; ".join(f"{field} = {changed[field][0]}, not {changed[field][1]}" for field in fixed[:3])
            raise StaleArtifact(
                f"lineage {lineage.name} was started with {values}: leave that setting as it was, or choose a new "
                "lineage name"
            )
        replaced |= {field: f"{field} = {now}, not {was}" for field, (was, now) in changed.items()}
    return list(replaced.values())


def _is_used(lineage: Lineage, t: int, field: str) -> bool:
    """Whether something published in iteration t, or before it, depends on a setting."""
    iteration = lineage.iteration(t)
    # The folders of a finished iteration may have been removed to free the disk.
    if (iteration / "record.json").exists() or lineage.iteration(t + 1).exists():
        return True
    for section, folders in _FIRST_USED.items():
        if f"{field}.".startswith(f"{section}."):
            patterns = (f"{folder.format(iteration=iteration.name)}/{identity.MANIFEST}" for folder in folders)
            return any(path for pattern in patterns for path in lineage.root.glob(pattern))
    return bool(lineage.published())


def _other_recipe(lineage: Lineage, recipe: str) -> StaleArtifact:
    """The error for a lineage that was made from another recipe."""
    return StaleArtifact(
        f"lineage {lineage.name} was made from the recipe {recipe}, not {lineage.config.recipe}: continue it with "
        f"spin next {lineage.name}, or choose a new name with --lineage"
    )
