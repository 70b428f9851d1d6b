"""Commands that check: `spin data` and `spin check` before a run, `spin verify` after it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from flows.command_line.options import (
    config_options,
    json_option,
    json_text,
    lineage_argument,
    recipe_argument,
    runs_option,
)


@click.command()
@recipe_argument()
@click.option("--weights", is_flag=True, help="Look for NaN in weights of any size, not only below 4 GB.")
@config_options
@json_option
@runs_option
def check(recipe: str, weights: bool, file: Path | None, sets: tuple[str, ...], as_json: bool, runs: Path) -> None:
    """Check what can be known before computing: config, data, tokenizer, memory, disk, rough time."""
    from spin_core.config.resolve import resolve
    from spin_core.preflight.check import check_run

    findings = check_run(resolve(recipe, file=file, sets=sets), runs, all_values=weights)
    if as_json:
        click.echo(json_text(findings.model_dump(mode="json")))
    else:
        from flows.command_line.printing.findings import print_findings

        print_findings(findings)
    sys.exit(0 if findings.ok else 2)


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
