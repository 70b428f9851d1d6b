"""The command `spin`: its subcommands, and how it reports errors.

Each subcommand is in the module of its topic. These modules import nothing heavy at their top, so that `--help` is
instant: what a command needs is imported when it runs.
"""

import sys
from typing import Any

import click

from flows.command_line import check, files, run, serve, show


class _Commands(click.Group):
    """Lists commands in the order of a user's work, and prints an error that a user can fix as one line."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        from spin_core.errors import PhaseCrashed, SpinError
        from spin_core.runtime.proxies import bypass_for_loopback

        bypass_for_loopback()
        try:
            return super().invoke(context)
        except SpinError as error:
            click.echo(f"{click.style('error', fg='red', bold=True)}  {error}", err=True)
            sys.exit(error.exit_code)
        except PhaseCrashed as error:
            click.echo(f"{click.style('crash', fg='red', bold=True)}  {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("stopped; the same command continues from here", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spin-loop")
def main() -> None:
    """Self-play fine-tuning (SPIN): generate, build pairs, train, evaluate, and again with the trained model."""


for command in (
    *(run.run, run.next, run.compare, run.evaluate),
    *(show.leaderboard, show.show, show.samples),
    *(check.data, check.check, check.verify),
    *(files.push, files.pull, files.export),
    show.recipes,
    *(serve.up, serve.status, serve.down),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
