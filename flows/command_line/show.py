"""Commands that read: `spin leaderboard`, `show`, `samples` and `recipes`."""

from pathlib import Path
from typing import Literal

import click

from flows.command_line.options import (
    json_option,
    json_text,
    lineage_argument,
    recipe_argument,
    runs_argument,
    runs_option,
    spin_command,
    warn,
)


@click.command()
@lineage_argument("names", nargs=-1, metavar="[LINEAGES]...")
@click.option("--all", "everything", is_flag=True, help="Show every score, not only the headline.")
@click.option("--differences", is_flag=True, help="Show paired differences from the previous version and from θ_0.")
@click.option("--frontier", is_flag=True, help="Compare versions with θ_0 over temperatures, where that was measured.")
@click.option("--sources", is_flag=True, help="Show the scores on the prompts of each source, if there are several.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@runs_option
def leaderboard(
    names: tuple[str, ...],
    everything: bool,
    differences: bool,
    frontier: bool,
    sources: bool,
    as_csv: bool,
    as_json: bool,
    runs: Path,
) -> None:
    """Show the scores of every version of some lineages side by side, or of all."""
    from flows.command_line.printing import leaderboards
    from flows.command_line.printing.status import unreadable_line
    from spin_core.errors import DamagedArtifact
    from spin_core.leaderboard import board
    from spin_core.lineage.find import find_lineage, lineage_names

    boards, existing = [], lineage_names(runs)
    for name in names or existing:
        try:
            lineage = find_lineage(runs, name)
            for path in lineage.lost_records():
                warn(f"{path} is missing, though the iteration is finished: spin verify {name} says how to go on")
            boards.append((board.leaderboard(lineage), lineage.config))
        except DamagedArtifact:
            if names:
                raise
            click.echo(unreadable_line(name, runs), err=True)
    if existing and not boards:
        raise DamagedArtifact(f"no lineage in {runs} can be read: restore their lineage.json, or name another --runs")
    if as_json:
        values = [each.model_dump(mode="json") for each, _ in boards]
        click.echo(json_text(values[0] if len(names) == 1 else values))
    elif as_csv:
        click.echo(leaderboards.csv_text([each for each, _ in boards]), nl=False)
    elif not boards:
        if not runs.exists():
            click.echo(f"{runs} does not exist: name another --runs, or start a lineage with {spin_command()} run demo")
        else:
            start = f"{spin_command()} run demo{runs_argument(runs)}"
            click.echo(f"no lineages in {runs} yet: start one with {start}")
    elif differences:
        leaderboards.print_differences(boards, runs, everything=everything)
    elif frontier:
        leaderboards.print_frontiers(boards, runs)
    elif sources:
        leaderboards.print_sources(boards, everything=everything)
    else:
        leaderboards.print_leaderboards(boards, runs, everything=everything)


@click.command()
@lineage_argument("name", metavar="LINEAGE")
@click.argument("t", type=int, required=False)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the whole lineage's report for a browser."
)
@json_option
@runs_option
def show(name: str, t: int | None, html: Path | None, as_json: bool, runs: Path) -> None:
    """Show what a lineage, or its iteration T, was made from, and what it cost."""
    from flows.command_line.printing import records as printing
    from spin_core.lineage.find import find_lineage

    lineage = find_lineage(runs, name)
    if html:
        from spin_core.reports import html as report

        click.echo(report.write(lineage, html))
        return
    records = lineage.records() if t is None else [printing.record_at(lineage, t)]
    if records:
        for path in lineage.lost_records():
            warn(f"{path} is missing, though the iteration is finished: spin verify {name} says how to go on")
    if as_json:
        values = [record.model_dump(mode="json") for record in records]
        click.echo(json_text(values if t is None else values[0]))
    else:
        printing.print_records(lineage, records)


@click.command()
@lineage_argument("name", metavar="LINEAGE")
@click.argument("t", type=int, required=False)
@click.option("--held-out", "part", flag_value="held-out", default="held-out", help="Held-out prompts: the default.")
@click.option("--train", "part", flag_value="train", help="Training prompts, with the answers that were trained on.")
@click.option("--find", default="", metavar="TEXT", help="Only prompts that contain TEXT, or whose responses do.")
@click.option(
    "--sort",
    type=click.Choice(["length", "margin", "random"]),
    help="Longest answers first, lowest reward margins first, or shuffled.",
)
@click.option("-n", "--limit", type=click.IntRange(1), help="How many prompts; default: all.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write one page to filter and search in a browser."
)
@json_option
@runs_option
def samples(
    name: str,
    t: int | None,
    part: Literal["held-out", "train"],
    find: str,
    sort: Literal["length", "margin", "random"] | None,
    limit: int | None,
    html: Path | None,
    as_json: bool,
    runs: Path,
) -> None:
    """Browse prompts with the human response and what every version up to θ_T, or iteration up to T, answered."""
    from spin_core.lineage.find import find_lineage
    from spin_core.reports.samples import read

    everything = read(find_lineage(runs, name), part, t)
    rows = everything.select(find=find, sort=sort, limit=limit)
    if html:
        from spin_core.reports.samples_page import write

        click.echo(write(html, everything, rows, limit))
    elif as_json:
        click.echo(json_text([everything.sample(row).as_json() for row in rows]))
    else:
        from flows.command_line.printing.samples import pages

        click.echo_via_pager(pages(everything, rows, find))


@click.command()
@click.option("--settings", is_flag=True, help="List every setting with its default and what it does.")
@recipe_argument(required=False)
def recipes(settings: bool, recipe: str | None) -> None:
    """List the recipes, or show all the values of one."""
    from flows.command_line.printing import recipes as printing

    if settings:
        printing.print_settings()
    elif recipe:
        from spin_core.config.resolve import resolve

        click.echo(printing.as_yaml(resolve(recipe)), nl=False)
    else:
        printing.print_recipes()
