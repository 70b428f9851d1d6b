"""Commands that check: `spin data` and `spin check` before a run, `spin verify` after it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from flows.command_line.options import (
    config_options,
    json_option,
    json_text,
    lineage_argument,
    recipe_argument,
    runs_option,
)

if TYPE_CHECKING:
    from spin_core.config.run import RunConfig


@click.command()
@recipe_argument()
@click.option("--weights", is_flag=True, help="Look for NaN in weights of any size, not only below 4 GB.")
@click.option("--on", "machine", metavar="MACHINE", help="Estimate memory, hours and money on 8xH100, L4, … instead.")
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(1, 1024), help="Machines, with --on.")
@click.option("--price", type=click.FloatRange(0), help="Price of a GPU hour in any currency, with --on.")
@click.option("--prompt-tokens", type=click.FloatRange(1), help="Mean length of a prompt, with --on.")
@click.option("--response-tokens", type=click.FloatRange(1), help="Mean length of a response, with --on.")
@config_options
@json_option
@runs_option
def check(
    recipe: str,
    weights: bool,
    machine: str | None,
    nodes: int,
    price: float | None,
    prompt_tokens: float | None,
    response_tokens: float | None,
    file: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
    runs: Path,
) -> None:
    """Check what can be known before computing: config, data, tokenizer, memory, disk, rough time.

    With --on: what training takes on a machine that is not here, under each stage of ZeRO and with LoRA.
    """
    from spin_core.config.resolve import resolve

    config = resolve(recipe, file=file, sets=sets)
    if machine is not None:
        _forecast(config, machine, nodes, price, (prompt_tokens, response_tokens), as_json=as_json)
    if nodes > 1 or (price, prompt_tokens, response_tokens) != (None, None, None):
        raise click.UsageError("--nodes, --price, --prompt-tokens and --response-tokens need --on")
    from spin_core.preflight.check import check_run

    findings = check_run(config, runs, all_values=weights)
    if as_json:
        click.echo(json_text(findings.model_dump(mode="json")))
    else:
        from flows.command_line.printing.findings import print_findings

        print_findings(findings)
    sys.exit(0 if findings.ok else 2)


def _forecast(
    config: "RunConfig",
    machine: str,
    nodes: int,
    price: float | None,
    lengths: tuple[float | None, float | None],
    *,
    as_json: bool,
) -> NoReturn:
    """Print what a run needs on a machine, and exit: with 0 if it fits."""
    from spin_core.preflight.machines.forecast import forecast
    from spin_core.preflight.machines.inputs import Lengths, read_inputs
    from spin_core.preflight.machines.profiles import machine_of

    where = machine_of(machine, nodes)
    inputs = read_inputs(config, Lengths(*lengths))
    result = forecast(config, where, inputs.shape, inputs.texts)
    if as_json:
        click.echo(json_text({**asdict(result), "price": price}))
    else:
        from flows.command_line.printing.forecasts import print_forecast

        print_forecast(result, inputs, config, price)
    sys.exit(0 if any(option.fits for option in result.options) else 2)


@click.command()
@recipe_argument()
@click.option("--rows", default=5, show_default=True, type=click.IntRange(0), help="How many rows to show.")
@click.option("--full", is_flag=True, help="Show long texts whole.")
@config_options
@json_option
def data(recipe: str, rows: int, full: bool, file: Path | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Show the first rows as the player will see them, and what is left out of the data, with the reasons."""
    from spin_core.config.resolve import resolve
    from spin_core.errors import DataError
    from spin_core.reports.data_preview import preview_data

    sources = preview_data(resolve(recipe, file=file, sets=sets), rows)
    if as_json:
        click.echo(json.dumps([asdict(source) for source in sources], indent=2, ensure_ascii=False))
    else:
        from flows.command_line.printing.data import print_sources

        print_sources(sources, full=full)
    # The rows are shown first: they may tell why there are too few.
    for source in sources:
        if source.problem:
            raise DataError(source.problem)


@click.command()
@lineage_argument()
@runs_option
def verify(lineage: str, runs: Path) -> None:
    """Check every published file against the digest in its manifest."""
    from spin_core.errors import count
    from spin_core.lineage.find import find_lineage
    from spin_core.lineage.verify import verify as verify_lineage

    problems, folders = verify_lineage(find_lineage(runs, lineage))
    for problem in problems:
        click.echo(f"{click.style('damaged', fg='red')}  {problem}", err=True)
    if problems:
        sys.exit(1)
    whole = f"{count(folders, 'published folder')} of {lineage} {'is' if folders == 1 else 'are'} whole"
    click.echo(f"{whole}, and its records agree with them")
