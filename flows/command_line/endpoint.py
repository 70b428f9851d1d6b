"""The command `spin serve`: a version as an endpoint in OpenAI's protocol."""

from pathlib import Path
from typing import Literal

import click

from flows.command_line.options import lineage_argument, runs_option
from flows.command_line.signals import stop_on_signals


@click.command()
@lineage_argument("name", metavar="LINEAGE")
@click.argument("t", type=int, required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "vllm", "transformers"]),
    default="auto",
    show_default=True,
    help="Whose server answers; auto takes vLLM's where there are a GPU and vLLM's environment.",
)
@runs_option
def serve(name: str, t: int | None, port: int, engine: Literal["auto", "vllm", "transformers"], runs: Path) -> None:
    """Serve θ_T, by default the gate's choice, in OpenAI's protocol on this machine, until Ctrl-C."""
    from flows import serving
    from spin_core.lineage.find import find_lineage, find_version

    stop_on_signals()
    lineage = find_lineage(runs, name)
    version = find_version(lineage, t)
    chosen = serving.choose_engine(lineage, engine)
    click.echo(f"loading θ_{version.t} of {name} …")
    click.echo(f"clients need the token in {serving.token_file(runs)}")
    try:
        serving.serve_version(lineage, version, f"{name}-{version.t}", port, chosen, click.echo)
    except KeyboardInterrupt:
        click.echo("ended")
