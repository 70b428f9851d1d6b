"""Commands that compute: `spin run`, `next`, `compare` and `evaluate`."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.command_line.options import (
    config_options,
    lineage_argument,
    no_verify_option,
    no_wait_option,
    recipe_argument,
    runs_option,
    warn,
)
from flows.command_line.signals import stop_on_signals

if TYPE_CHECKING:
    from flows.server.temporary import Server
    from spin_core.config.run import RunConfig


@click.command()
@recipe_argument()
@click.option("--lineage", "name", help="Name of the chain of model versions; default: the recipe's name.")
@click.option("--iterations", type=int, help="How many iterations the lineage has at the end, in total.")
@config_options
@no_verify_option
@no_wait_option
@runs_option
def run(
    recipe: str,
    name: str | None,
    iterations: int | None,
    file: Path | None,
    sets: tuple[str, ...],
    no_verify: bool,
    no_wait: bool,
    runs: Path,
) -> None:
    """Run a recipe, or continue a lineage."""
    stop_on_signals()
    from spin_core.config.resolve import resolve

    config = resolve(recipe, file=file, sets=sets, iterations=iterations)
    _run(runs, recipe if name is None else name, config, verify=not no_verify, wait=not no_wait)


@click.command()
@lineage_argument("name", metavar="LINEAGE")
@click.option("--anyway", is_flag=True, help="Also when the lineage has converged.")
@config_options
@no_verify_option
@no_wait_option
@runs_option
def next(
    name: str,
    anyway: bool,
    file: Path | None,
    sets: tuple[str, ...],
    no_verify: bool,
    no_wait: bool,
    runs: Path,
) -> None:
    """Run one more iteration of a lineage, with its settings or with changed ones."""
    stop_on_signals()
    from spin_core.config.resolve import read_changes
    from spin_core.leaderboard import convergence
    from spin_core.lineage.changes import one_more_iteration, with_settings
    from spin_core.lineage.find import find_lineage
    from spin_core.lineage.start import restored_on_failure

    existing = find_lineage(runs, name)
    lineage = with_settings(existing, read_changes(file, sets))
    config = one_more_iteration(lineage)
    if not anyway:
        convergence.check(lineage)
    with restored_on_failure(existing, config):
        _run(runs, name, config, verify=not no_verify, wait=not no_wait)


@click.command()
@recipe_argument()
@click.option("--name", help="Name of the comparison; default: compare-RECIPE. Its lineages are NAME-seed-1, …")
@click.option("--seeds", default=3, show_default=True, help="How many runs, from the same model on the same data.")
@click.option("--iterations", type=int, help="How many iterations each run has.")
@click.option(
    "--methods",
    default="",
    metavar="A,B,…",
    help="What to compare with: sft-steps, sft-tokens, dpo, spin-dpo, longer, sizes, temperature; default: all.",
)
@config_options
@no_wait_option
@runs_option
def compare(
    recipe: str,
    name: str | None,
    seeds: int,
    iterations: int | None,
    methods: str,
    file: Path | None,
    sets: tuple[str, ...],
    no_wait: bool,
    runs: Path,
) -> None:
    """Compare SPIN over several seeds with continued SFT, DPO, longer and smaller trainings, in one table."""
    stop_on_signals()
    from spin_core.comparison import compare as comparisons
    from spin_core.config.resolve import resolve

    config = resolve(recipe, file=file, sets=sets, iterations=iterations)
    chosen = [method.strip() for method in methods.split(",") if method.strip()]
    name = f"compare-{recipe}" if name is None else name
    lineages = comparisons.prepare_comparison(runs, name, config, seeds, chosen, warn=warn)
    with _turn(name, wait=not no_wait):
        server = _start_server(runs)

        from flows.command_line.printing.comparison import print_comparison
        from flows.compare import compare_local

        with _running(server, runs):
            table = compare_local(runs, name, lineages, comparisons.missing_methods(config, chosen))
    print_comparison(table, runs)


@click.command()
@lineage_argument("target")
@click.argument("versions", type=int, nargs=-1, metavar="[T]…")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help="open-llm-leaderboard, big-bench, bbh, instruct or mt-bench; with -quick at the end of its name, a part of "
    "the items; self-play asks about held-out prompts. May be repeated.",
)
@click.option("--recipe", default="", help="For a model's folder: whose settings, prompts and chat template to use.")
@click.option("--lineage", "name", default="", help="For a model's folder: its name on the leaderboard.")
@config_options
@no_wait_option
@runs_option
def evaluate(
    target: str,
    versions: tuple[int, ...],
    suites: tuple[str, ...],
    recipe: str,
    name: str,
    file: Path | None,
    sets: tuple[str, ...],
    no_wait: bool,
    runs: Path,
) -> None:
    """Score all versions and controls of a lineage, θ_T alone, or the model in a folder; existing scores are reused."""
    stop_on_signals()
    from spin_core.config.resolve import read_changes
    from spin_core.leaderboard import scoring

    lineage = scoring.prepare(runs, target, suites, read_changes(file, sets), recipe, name)
    scoring.versions(lineage, versions)
    with _turn(lineage.name, wait=not no_wait):
        server = _start_server(runs)

        from flows.command_line.printing.leaderboards import print_leaderboards
        from flows.evaluate import evaluate_local

        with _running(server, runs):
            board = evaluate_local(lineage, versions)
    print_leaderboards([(board, lineage.config)], runs)


def _run(runs: Path, name: str, config: "RunConfig", *, verify: bool, wait: bool) -> None:
    """Run the flow in this process, with a live display, and print the leaderboard at the end."""
    from spin_core.preflight.prepare import prepare_run

    if not verify:
        os.environ["SPIN_VERIFY"] = "0"  # phases read it
    lineage = prepare_run(config, runs, name, warn=warn)
    with _turn(name, wait=wait):
        # Prefect reads its environment when it is imported, which the flows do.
        server = _start_server(runs)

        from flows.command_line.printing.leaderboards import print_leaderboards
        from flows.command_line.printing.run_summary import print_summary
        from flows.spin import run_local

        with _running(server, runs):
            board = run_local(lineage)
    print_leaderboards([(board, config)], runs)
    print_summary(runs, name, board)


@contextlib.contextmanager
def _turn(name: str, *, wait: bool) -> Iterator[None]:
    """Wait until no other run computes on this machine, and say so."""
    from spin_core.runtime import turns

    def report(ahead: Sequence[str]) -> None:
        click.echo(
            f"waiting for {', '.join(ahead)} on this machine, then this run starts; Ctrl-C ends it, --no-wait runs it "
            "at once",
            err=True,
        )

    with turns.turn(f"run of {name}", turns.at_once() if wait else 0, report):
        yield


def _start_server(runs: Path) -> "Server | None":
    """Prepare Prefect's environment, and start a temporary server if none is up; Prefect is imported meanwhile."""
    from flows.server import local, temporary

    local.wait_for_answer(runs)
    if not local.prepare(runs, quiet=True):
        click.echo("loading Prefect …", err=True)
        return None
    server = temporary.Server(local.prefect_home(runs))
    click.echo("starting Prefect's temporary server for this run …", err=True)
    return server


@contextlib.contextmanager
def _running(server: "Server | None", runs: Path) -> Iterator[None]:
    """Wait for the server, and show in the terminal the progress of what runs meanwhile."""
    from flows.server import local, temporary
    from tasks import display

    with contextlib.ExitStack() as stack:
        stack.enter_context(temporary.server_errors(local.prefect_home(runs)))
        if server:
            server.wait()
            server.hand_over()
        display.current = display.Terminal()
        stack.callback(display.current.close)
        yield
