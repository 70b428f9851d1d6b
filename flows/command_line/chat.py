"""The command `spin chat`: talk to a version, or to two versions and vote."""

import contextlib
import io
import math
import sys
from pathlib import Path

import click

from flows.command_line.options import lineage_argument, runs_option


@click.command()
@lineage_argument("name", metavar="LINEAGE")
@click.argument("t", type=int, required=False)
@click.option("--versus", type=int, metavar="T", help="Show the answers of another version next to those of θ_T.")
@click.option("--blind", is_flag=True, help="Hide which answer is whose, and vote; --versus is θ_0 by default.")
@click.option("--system", default="", metavar="TEXT", help="Begin with this system prompt instead of the lineage's.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="Sampling temperature; default: the lineage's at iteration T."
)
@click.option(
    "--history", type=click.Path(dir_okay=False, path_type=Path), help="Append questions and answers to a JSONL file."
)
@runs_option
def chat(
    name: str,
    t: int | None,
    versus: int | None,
    blind: bool,
    system: str,
    temperature: float | None,
    history: Path | None,
    runs: Path,
) -> None:
    """Talk to θ_T, by default to the gate's choice, with the lineage's own chat template and sampling."""
    from flows.command_line.conversation import Conversation, Side
    from spin_core.errors import ConfigError
    from spin_core.lineage.find import find_lineage, find_version

    if temperature is not None and not math.isfinite(temperature):
        raise ConfigError(f"--temperature cannot be {temperature}: give a number from 0 on")
    if blind and (system or temperature is not None):
        raise ConfigError(
            "--blind compares versions with the lineage's own settings: leave --system and --temperature out"
        )
    lineage = find_lineage(runs, name)
    version = find_version(lineage, t)
    versions = [version]
    if versus is not None or blind:
        versions.append(find_version(lineage, versus or 0))
        if versions[1].t == version.t:
            raise ConfigError(f"both sides are θ_{version.t}: name another version with --versus")
    click.echo(f"loading {' and '.join(f'θ_{each.t}' for each in versions)} of {name} …")
    conversation = Conversation(
        lineage, [Side(each, lineage.config) for each in versions], blind=blind, history=history
    )
    conversation.system = system
    if temperature is not None:
        conversation.set_temperature(temperature)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a piped file may have another encoding
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input lines can be edited from here on)
    conversation.run()
