"""Commands that copy files: `spin push`, `pull` and `export`."""

from pathlib import Path
from typing import Literal

import click

from flows.command_line.options import (
    lineage_argument,
    runs_option,
)


@click.command()
@lineage_argument()
@click.argument("url", required=False)
@click.option("--again", is_flag=True, help="Read back what was pushed before, and replace what is damaged.")
@click.option("--replace", is_flag=True, help="Also when the copy is another lineage's, or has more than this one.")
@runs_option
def push(lineage: str, url: str | None, again: bool, replace: bool, runs: Path) -> None:
    """Upload a lineage, or what its copy lacks: to s3://bucket/folder, or to the lineage's push.url."""
    from flows.command_line.printing import transfers

    click.echo(transfers.push(runs, lineage, url, again=again, replace=replace))


@click.command()
@click.argument("lineage")
@click.argument("url")
@click.option("--trust", is_flag=True, help="Also if its settings run code, send keys or reach other machines.")
@runs_option
def pull(lineage: str, url: str, trust: bool, runs: Path) -> None:
    """Download a lineage that was pushed to a store, to continue it here."""
    from flows.command_line.printing import transfers

    click.echo(transfers.pull(runs, lineage, url, trust=trust))


@click.command()
@lineage_argument()
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
    from flows.command_line.printing.records import record_at
    from spin_core.errors import count
    from spin_core.lineage.export import export_model, export_pairs
    from spin_core.lineage.find import find_lineage

    record = record_at(find_lineage(runs, lineage), t)
    match form:
        case "merged" | "adapter":
            path = output or Path(f"{lineage}-theta-{t + 1}-{form}")
            export_model(record.player.path, path, form, record.config.model)
            click.echo(f"θ_{t + 1} in {path}")
        case "dpo" | "spin":
            path = output or Path(f"{lineage}-iteration-{t:02d}-{form}.jsonl")
            rows = export_pairs(record.pairs.path, path, form)
            click.echo(f"{count(rows, 'pair')} in {path}")
