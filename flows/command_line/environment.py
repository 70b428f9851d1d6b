"""Commands about the environment: `spin doctor` and `spin completion`."""

import sys
from pathlib import Path

import click

from flows.command_line.options import json_option, json_text, runs_option


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=4200, show_default=True, help="The port that spin up would use."
)
@json_option
@runs_option
def doctor(port: int, as_json: bool, runs: Path) -> None:
    """Check this machine and installation: packages, GPUs, vLLM, hub, disk, port, proxies; a cure for each problem."""
    from flows.server import local
    from spin_core.preflight.environment import inspect_environment

    findings = inspect_environment(runs, port, local.serving(runs))
    if as_json:
        click.echo(json_text(findings.model_dump(mode="json")))
    else:
        from flows.command_line.printing.findings import print_findings

        print_findings(findings)
    sys.exit(0 if findings.ok else 2)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, options, recipes and lineages: `eval "$(spin completion bash)"`."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(click.get_current_context().find_root().command, {}, "spin", "_SPIN_COMPLETE").source())
