"""Options that several commands share."""

import os
import shlex
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
        type=click.Path(file_okay=False, path_type=Path),
        callback=lambda _context, _parameter, value: value.absolute(),
        help="The folder that holds lineages.",
    )(command)


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


def warn(text: str) -> None:
    """Print a warning on stderr."""
    click.echo(f"{click.style('warning', fg='yellow')}  {text}", err=True)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
