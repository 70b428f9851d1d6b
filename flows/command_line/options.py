"""Options that several commands share."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def runs_option(command: F) -> F:
    """`--runs`, the folder that holds lineages."""
    return click.option(
        "--runs",
        envvar="SPIN_RUNS",
        default="runs",
        show_default=True,
        metavar="DIRECTORY",
        type=click.Path(),
        callback=lambda _context, _parameter, value: _checked_folder(value),
        help="The folder that holds lineages.",
    )(command)


def lineage_argument(name: str = "lineage", **settings: Any) -> Callable[[F], F]:
    """An argument that names a lineage. The shell completes it from the runs folder."""
    return click.argument(name, shell_complete=_complete_lineages, **settings)


def recipe_argument(**settings: Any) -> Callable[[F], F]:
    """An argument that names a recipe. The shell completes it."""
    return click.argument("recipe", shell_complete=_complete_recipes, **settings)


def _complete_lineages(context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    """The lineages of the runs folder whose names begin so."""
    runs = Path(context.params.get("runs") or os.environ.get("SPIN_RUNS", "") or "runs")
    return sorted(path.parent.name for path in runs.glob("*/lineage.json") if path.parent.name.startswith(start))


def _complete_recipes(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    """The recipes whose names begin so."""
    from spin_core.config.recipes import RECIPES

    return [name for name in RECIPES if name.startswith(start)]


def _checked_folder(name: str) -> Path:
    """The folder if it exists or may be created. Raises `ConfigError` otherwise."""
    from spin_core.errors import ConfigError

    if not name:
        raise ConfigError("--runs is empty: name a folder, or leave it out")
    runs = Path(name).absolute()
    # Messages and Prefect's server could not name it.
    if not str(runs).isprintable():
        raise ConfigError(f"--runs {str(runs)!r} has characters that cannot be printed: choose another folder")
    try:
        existing = next(path for path in (runs, *runs.parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"--runs {runs} cannot be a folder ({error.strerror}): choose another folder") from error
    if not existing.is_dir():
        raise ConfigError(f"--runs {runs} cannot be a folder, because {existing} is a file: choose another folder")
    return runs


def spin_command() -> str:
    """`spin`, as it is to be typed here: with its path, if the shell would not find this installation's command."""
    own = Path(sys.executable).with_name("spin")
    on_path = shutil.which("spin")
    if not own.exists() or (on_path and Path(on_path).resolve() == own.resolve()):
        return "spin"
    here = Path.cwd()
    return shlex.quote(str(own.relative_to(here) if own.is_relative_to(here) else own))


def runs_argument(runs: Path) -> str:
    """` --runs PATH`, for a command that is shown to a user; empty if the command finds this folder without it."""
    default = Path(os.environ.get("SPIN_RUNS", "") or "runs").absolute()
    return "" if runs.absolute() == default else f" --runs {shlex.quote(str(runs))}"


def config_options(command: F) -> F:
    """`--config` and `--set`, which change settings of a recipe or of a lineage."""
    command = click.option(
        "--config", "file", type=click.Path(dir_okay=False, path_type=Path), help="Settings from a YAML or TOML file."
    )(command)
    return click.option("--set", "sets", multiple=True, metavar="A.B=C", help="One setting; may be repeated.")(command)


no_verify_option = click.option(
    "--no-verify",
    is_flag=True,
    help="Do not compare what phases read with the digests in its manifests.",
)

no_wait_option = click.option(
    "--no-wait",
    is_flag=True,
    help="Run at once, also while another run computes on this machine.",
)


def json_text(value: Any) -> str:
    """A value as JSON that standard output can show: other letters than ASCII are escaped where it has only those."""
    is_ascii = (getattr(sys.stdout, "encoding", None) or "ascii").lower() in ("ascii", "us-ascii", "ansi_x3.4-1968")
    return json.dumps(value, indent=2, ensure_ascii=is_ascii)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    click.echo(f"{click.style('warning', fg='yellow')}  {text}", err=True)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
