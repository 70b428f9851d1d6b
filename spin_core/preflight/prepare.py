"""The checks of a run before any compute, in one place for the command line, the flows and `spin check`.

`spin check` looks at more than this (data, model, memory, time), which takes longer and loads torch.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from spin_core.config import metrics
from spin_core.config.run import RunConfig
from spin_core.data.sources import DEMO, check_demo_is_meant
from spin_core.errors import ConfigError, TryAgain
from spin_core.evaluation import suites
from spin_core.leaderboard.gate import check_metrics
from spin_core.lineage import phase_jobs
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.preflight.first_rows import check_first_rows
from spin_core.preflight.model_files import check_model_files
from spin_core.remote.push import check_copy
from spin_core.runtime import interpreter
from spin_core.store import lock
from spin_core.store.identity import MANIFEST

_logger = logging.getLogger(__name__)


class Requirement(NamedTuple):
    """One thing that a configuration needs in order to run."""

    subject: str
    """The heading of its finding in `spin check`."""
    check: Callable[[RunConfig], None]
    """Raises `ConfigError` if the requirement is not met."""


def prepare_run(
    config: RunConfig,
    runs: Path,
    name: str,
    *,
    warn: Callable[[str], None] = _logger.warning,
    wait: bool = False,
) -> Lineage:
    """Check a run once, before any compute, and start or continue its lineage.

    Args:
        config: The settings of the run.
        runs: The folder that holds lineages.
        name: The lineage's name.
        warn: Called with each warning, for example that the store cannot be reached now.
        wait: Whether to wait for another process that uses the lineage.

    Raises:
        ConfigError: A requirement is not met, the name is not allowed, or the store cannot be used.
        DataError: The data cannot be read, or its first rows are not prompts with responses, or a file here has the
            name of the built-in data.
        ModelError: A file of the model is missing or damaged, or its files do not fit each other.
        StaleArtifact: Something that the lineage has published was made with other settings.
        LineageBusy: Another process uses the lineage, and `wait` is off.
    """
    check_requirements(config)
    folder = lineage_folder(runs, name)
    lineage = Lineage(runs, name, config)
    # What is published already is not read again.
    if not (lineage.iteration(0) / "prompts" / MANIFEST).exists():
        check_first_rows(config)
    check_model_files(config, phase_jobs.base_job(lineage).output)
    try:
        check_copy(runs, name, config.push)
    except TryAgain as error:
        warn(f"{error}; the run starts anyway")
    with lock.locked(folder, wait=wait):
        return start_lineage(runs, name, config, warn=warn)


def check_requirements(config: RunConfig) -> None:
    """Raise `ConfigError` for the first requirement that a configuration does not meet."""
    for requirement in REQUIREMENTS:
        requirement.check(config)


def _check_exact(config: RunConfig) -> None:
    """`evaluate.exact` has data whose distribution is known."""
    if config.evaluate.exact and not config.prompts.is_demo:
        raise ConfigError(
            "evaluate.exact needs data whose distribution is known: set evaluate.exact to false, or "
            f"prompts.source.path to {DEMO}"
        )


def _check_engine(config: RunConfig) -> None:
    """The engine that `generate.engine` names is installed."""
    if config.generate.engine == "vllm":
        interpreter.required_python(config.generate.vllm)


def _check_recipe_data(config: RunConfig) -> None:
    """The model and data of `tinystories`, which are not part of this repository, are in the folder `SPIN_DATA`."""
    folder = Path(os.environ.get("SPIN_DATA") or "data")
    is_used = any(Path(path).is_relative_to(folder) for path in (config.model.path, config.prompts.source.path))
    if config.recipe == "tinystories" and is_used and not folder.is_dir():
        raise ConfigError(
            f"{folder} does not exist: set SPIN_DATA to a folder with BabyLlama's tok105 weights (EN10, MIT) and "
            "TinyStories (Eldan & Li, CDLA-Sharing-1.0); see docs/benchmarks.md"
        )


REQUIREMENTS = (
    Requirement("data", _check_recipe_data),
    Requirement("data", check_demo_is_meant),
    Requirement("config", check_metrics),
    Requirement("config", _check_exact),
    Requirement("engine", _check_engine),
    Requirement("benchmarks", suites.check),
    Requirement("metrics", lambda config: metrics.check(config.metrics)),
)
"""What every run needs. Each check is fast and loads nothing heavy."""
