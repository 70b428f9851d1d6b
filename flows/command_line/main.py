"""The command line. Heavy imports stay inside commands, so that `--help` is instant."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click

from flows.command_line.options import config_options, json_option, runs_option


class Commands(click.Group):
    """Shows commands in the order of a user's work, and a user's error as one line."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        from spin_core.errors import SpinError
        from spin_core.runtime.launch import PhaseCrashed

        try:
            return super().invoke(context)
        except SpinError as error:
            click.echo(f"{click.style('error', fg='red', bold=True)}  {error}", err=True)
            sys.exit(error.exit_code)
        except PhaseCrashed as error:
            click.echo(f"{click.style('crash', fg='red', bold=True)}  {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on from here", err=True)
            sys.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spin-loop")
def main() -> None:
    """Self-play fine-tuning (SPIN): generate, build pairs, train, evaluate, and again with the trained model."""


@main.command()
@click.argument("recipe")
@click.option("--lineage", help="Name of the chain of model versions; the recipe's own name if left out.")
@click.option("--iterations", type=int, help="How many iterations the lineage shall have in the end.")
@config_options
@runs_option
def run(
    recipe: str, lineage: str | None, iterations: int | None, file: Path | None, sets: tuple[str, ...], runs: Path
) -> None:
    """Play a recipe's game, or go on with a lineage."""
    from spin_core.config.resolve import resolve

    config = resolve(recipe, file=file, sets=sets, iterations=iterations)
    play(runs, lineage or recipe, config)


@main.command()
@click.argument("lineage")
@click.option("--anyway", is_flag=True, help="Also when the game has converged.")
@config_options
@runs_option
def next(lineage: str, anyway: bool, file: Path | None, sets: tuple[str, ...], runs: Path) -> None:
    """Play one more iteration of a lineage, with settings of its own, or changed ones."""
    from spin_core.config.resolve import changes
    from spin_core.leaderboard import convergence
    from spin_core.lineage import lineage as lineages

    game = lineages.find(runs, lineage).changed(changes(file, sets))
    config = game.one_more()
    if not anyway:
        convergence.check(game)
    play(runs, lineage, config)


def play(runs: Path, name: str, config: Any) -> None:
    """Run the flow here, with a live display, and end with the leaderboard."""
    from flows.server import local
    from spin_core.leaderboard import gate
    from spin_core.lineage import lineage as lineages
    from spin_core.lineage import start
    from spin_core.store import lock

    gate.check_metrics(config)
    meet_store(runs, name, config)
    with lock.locked(lineages.check_name(runs, name)):
        start.start(runs, name, config)
    local.prepare(runs, quiet=True)

    from flows.command_line.standings import print_leaderboards
    from flows.command_line.terminal import print_where
    from flows.spin import run_local

    with live_display():
        board = run_local(runs, name, config)
    print_leaderboards([(board, config)])
    print_where(runs, name)


def meet_store(runs: Path, name: str, config: Any) -> None:
    """Refuse a store that a person must mend, before anything is begun; warn of one that is merely away."""
    from spin_core.errors import TryAgain
    from spin_core.remote import push

    try:
        push.meet(runs, name, config.push)
    except TryAgain as error:
        click.echo(f"{click.style('warning', fg='yellow')}  {error}", err=True)


@contextlib.contextmanager
def live_display() -> Iterator[None]:
    """What runs meanwhile shows in the terminal how far it is."""
    from tasks import display

    display.current = display.Terminal()
    try:
        yield
    finally:
        display.current.close()


@main.command()
@click.argument("recipe")
@click.option("--name", help="Name of the comparison; compare-RECIPE if left out. Its lineages are NAME-seed-1, …")
@click.option("--seeds", default=3, show_default=True, help="How many games, from the same model on the same data.")
@click.option("--iterations", type=int, help="How many iterations each game has.")
@click.option(
    "--methods",
    default="",
    metavar="A,B,…",
    help="What to compare with: sft-steps, sft-tokens, dpo, spin-dpo, longer, sizes; everything if left out.",
)
@config_options
@runs_option
def compare(
    recipe: str,
    name: str | None,
    seeds: int,
    iterations: int | None,
    methods: str,
    file: Path | None,
    sets: tuple[str, ...],
    runs: Path,
) -> None:
    """Play SPIN over several seeds beside continued SFT, DPO, longer and smaller trainings, into one table."""
    from flows.server import local
    from spin_core.comparison import compare as comparisons
    from spin_core.config.resolve import resolve

    config = resolve(recipe, file=file, sets=sets, iterations=iterations)
    chosen = [method.strip() for method in methods.split(",") if method.strip()]
    name = name or f"compare-{recipe}"
    for lineage in comparisons.names(name, seeds):
        meet_store(runs, lineage, config)
    comparisons.begin(runs, name, config, seeds, chosen)
    local.prepare(runs, quiet=True)

    from flows.command_line.comparison import print_comparison
    from flows.compare import compare_local

    with live_display():
        table = compare_local(runs, name, config, seeds, chosen)
    print_comparison(table, runs)


@main.command()
@click.argument("target")
@click.argument("versions", type=int, nargs=-1, metavar="[T]…")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help="open-llm-leaderboard, big-bench, bbh, instruct or mt-bench; a name with -quick behind it takes a part of the "
    "items; self-play asks about held-out prompts. May be repeated.",
)
@click.option("--recipe", default="", help="For a model's folder: whose settings, prompts and chat template it has.")
@click.option("--lineage", default="", help="For a model's folder: its name on the leaderboard.")
@config_options
@runs_option
def evaluate(
    target: str,
    versions: tuple[int, ...],
    suites: tuple[str, ...],
    recipe: str,
    lineage: str,
    file: Path | None,
    sets: tuple[str, ...],
    runs: Path,
) -> None:
    """Score a lineage's versions and controls, or θ_T alone, or the model in a folder; what is known is reused."""
    from flows.server import local
    from spin_core.config.resolve import changes
    from spin_core.leaderboard import scoring

    game = scoring.prepare(runs, target, suites, changes(file, sets), recipe, lineage)
    scoring.versions(game, versions)
    local.prepare(runs, quiet=True)

    from flows.command_line.standings import print_leaderboards
    from flows.evaluate import evaluate_local

    with live_display():
        board = evaluate_local(game, versions)
    print_leaderboards([(board, game.config)])


@main.command()
@click.argument("lineages", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Show every score, not only the headline.")
@click.option("--differences", is_flag=True, help="Show paired differences against the version before and θ_0.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@runs_option
def leaderboard(
    lineages: tuple[str, ...], everything: bool, differences: bool, as_csv: bool, as_json: bool, runs: Path
) -> None:
    """Show the scores of every version of some lineages side by side, or of all."""
    from flows.command_line import standings
    from flows.server.status import unreadable_told
    from spin_core.errors import DamagedArtifact
    from spin_core.leaderboard import board
    from spin_core.lineage import lineage as chains

    games, boards = [], []
    for name in lineages or chains.names(runs):
        try:
            game = chains.find(runs, name)
            boards.append(board.leaderboard(game))
            games.append(game)
        except DamagedArtifact:
            if lineages:
                raise
            click.echo(unreadable_told(name), err=True)
    if as_json:
        values = [one.model_dump(mode="json") for one in boards]
        click.echo(json.dumps(values[0] if len(lineages) == 1 else values, indent=2, ensure_ascii=False))
    elif as_csv:
        click.echo(standings.csv_text(boards), nl=False)
    elif not boards:
        click.echo(f"no lineages in {runs} yet: start one with spin run demo")
    else:
        show_them = standings.print_differences if differences else standings.print_leaderboards
        show_them([(one, game.config) for game, one in zip(games, boards, strict=True)], everything=everything)


@main.command()
@click.argument("lineage")
@click.argument("t", type=int, required=False)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the whole lineage's report for a browser."
)
@json_option
@runs_option
def show(lineage: str, t: int | None, html: Path | None, as_json: bool, runs: Path) -> None:
    """Show what a lineage, or its iteration T, was made from, and what it cost."""
    from flows.command_line import terminal
    from spin_core.lineage import lineage as lineages
    from spin_core.reports import html as reports_html

    game = lineages.find(runs, lineage)
    if html:
        click.echo(reports_html.write(game, html))
        return
    records = game.records() if t is None else [terminal.record_at(game, t)]
    if as_json:
        values = [record.model_dump(mode="json") for record in records]
        click.echo(json.dumps(values if t is None else values[0], indent=2, ensure_ascii=False))
    else:
        terminal.print_records(game, records)


@main.command()
@click.argument("lineage")
@click.argument("t", type=int, required=False)
@click.option("--held-out", "part", flag_value="held-out", default="held-out", help="Held-out prompts: the default.")
@click.option("--train", "part", flag_value="train", help="Training prompts, with the answers that were trained on.")
@click.option("--find", default="", metavar="TEXT", help="Only prompts in which, or in whose responses, TEXT occurs.")
@click.option(
    "--sort",
    type=click.Choice(["length", "margin", "random"]),
    help="Longest answers first, lowest reward margins first, or shuffled.",
)
@click.option("-n", "--limit", type=click.IntRange(1), help="How many prompts; all if left out.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write one page to filter and search in a browser."
)
@json_option
@runs_option
def samples(
    lineage: str,
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
    from flows.command_line import browse
    from spin_core.lineage import lineage as lineages
    from spin_core.reports.samples import read
    from spin_core.reports.samples_page import write

    found = read(lineages.find(runs, lineage), part, t)
    places = found.select(find=find, sort=sort, limit=limit)
    if html:
        click.echo(write(html, found, places, limit))
    elif as_json:
        click.echo(json.dumps([found.sample(place).as_json() for place in places], indent=2, ensure_ascii=False))
    else:
        click.echo_via_pager(browse.pages(found, places, find))


@main.command()
@click.argument("recipe")
@config_options
@json_option
@runs_option
def check(recipe: str, file: Path | None, sets: tuple[str, ...], as_json: bool, runs: Path) -> None:
    """Find out what can be known before compute: config, data, tokenizer, memory, disk, rough time."""
    from flows.command_line import terminal
    from spin_core.config.resolve import resolve
    from spin_core.preflight.check import check_run

    findings = check_run(resolve(recipe, file=file, sets=sets), runs)
    if as_json:
        click.echo(findings.model_dump_json(indent=2))
    else:
        terminal.print_findings(findings)
    sys.exit(0 if findings.ok else 2)


@main.command()
@click.argument("lineage")
@runs_option
def verify(lineage: str, runs: Path) -> None:
    """Check every published file against the digest its manifest names."""
    from spin_core.lineage import lineage as lineages
    from spin_core.lineage.verify import verify as verify_lineage

    problems, count = verify_lineage(lineages.find(runs, lineage))
    for problem in problems:
        click.echo(f"{click.style('damaged', fg='red')}  {problem}", err=True)
    if problems:
        sys.exit(1)
    click.echo(f"{count} published folders of {lineage} are whole, and its records agree with them")


@main.command()
@click.argument("lineage")
@click.argument("url", required=False)
@click.option("--again", is_flag=True, help="Read back what was pushed before, and mend it.")
@click.option("--replace", is_flag=True, help="Also where the copy is of another lineage, or has more than this one.")
@runs_option
def push(lineage: str, url: str | None, again: bool, replace: bool, runs: Path) -> None:
    """Copy a lineage into a store, or what its copy lacks: to s3://bucket/folder, or to the lineage's push.url."""
    from flows.command_line import transfer

    click.echo(transfer.push(runs, lineage, url, again=again, replace=replace))


@main.command()
@click.argument("lineage")
@click.argument("url")
@runs_option
def pull(lineage: str, url: str, runs: Path) -> None:
    """Bring back a lineage that was pushed to a store, to go on with it here."""
    from flows.command_line import transfer

    click.echo(transfer.pull(runs, lineage, url))


@main.command()
@click.argument("lineage")
@click.argument("t", type=int)
@click.option(
    "--format",
    "form",
    type=click.Choice(["dpo", "spin", "merged", "adapter"]),
    required=True,
    help="Pairs: preferences for DPO, or conversations as SPIN's. The model: plain weights, or one adapter for peft.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="For pairs a .jsonl or .parquet file, else a new folder."
)
@runs_option
def export(
    lineage: str, t: int, form: Literal["dpo", "spin", "merged", "adapter"], output: Path | None, runs: Path
) -> None:
    """Write what iteration T made for other programs: its pairs, or the model that it trained."""
    from flows.command_line.terminal import record_at
    from spin_core.lineage import lineage as lineages
    from spin_core.lineage.export import export_model, export_pairs

    record = record_at(lineages.find(runs, lineage), t)
    match form:
        case "merged" | "adapter":
            path = output or Path(f"{lineage}-theta-{t + 1}-{form}")
            export_model(record.player.path, path, form, record.config.model)
            click.echo(f"θ_{t + 1} in {path}")
        case "dpo" | "spin":
            path = output or Path(f"{lineage}-iteration-{t:02d}-{form}.jsonl")
            rows = export_pairs(record.pairs.path, path, form)
            click.echo(f"{rows} pairs in {path}")


@main.command()
@click.option("--settings", is_flag=True, help="List every setting with its default and what it does.")
@click.argument("recipe", required=False)
def recipes(settings: bool, recipe: str | None) -> None:
    """List the recipes, or show what one of them resolves to."""
    from flows.command_line import terminal

    if settings:
        terminal.print_settings()
    elif recipe:
        from spin_core.config.resolve import resolve

        click.echo(terminal.as_yaml(resolve(recipe)), nl=False)
    else:
        terminal.print_recipes()


@main.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=4200, show_default=True, help="Port of the server and its UI."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. Beyond this machine a password is asked for: see the runs folder's .prefect/password.",
)
@click.option(
    "--reruns",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often a run that crashed is started again by itself.",
)
@runs_option
def up(port: int, host: str, reruns: int, runs: Path) -> None:
    """Serve the UI: a server, the deployments and a worker, until Ctrl-C or `spin down`."""
    from flows.server import local

    local.prepare(runs, quiet=False, to_serve=True)
    from flows.server.serve import serve

    serve(runs, host, port, reruns)


@main.command()
@json_option
@runs_option
def status(as_json: bool, runs: Path) -> None:
    """Show what is up, what runs and how far it is, and where each lineage stands."""
    from flows.server import status as statuses

    found = statuses.status(runs)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        statuses.show(found, runs)


@main.command()
@runs_option
def down(runs: Path) -> None:
    """End what `spin up` has started, and wait for it. Runs save their work and go on at the next `spin up`."""
    from flows.server import status as statuses

    statuses.down(runs)


if __name__ == "__main__":
    main()
