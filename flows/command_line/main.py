"""The command `spin`: its subcommands, and how it reports errors.

Each subcommand is in the module of its topic. These modules import nothing heavy at their top, so that `--help` is
instant: what a command needs is imported when it runs.
"""

import contextlib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from flows.command_line import chat, check, endpoint, environment, files, nightly, publish, run, serve, show
from flows.command_line.signals import exit_status


class _Commands(click.Group):
    """Lists commands in the order of a user's work, and prints an error that a user can fix as one line."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _usage_errors():
            return super().make_context(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _open_closed_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if not _is_of_output(error):
                if error.errno not in _FULL:
                    raise
                text = "the disk is full: free some space and run the same command again; what is finished is kept"
            else:
                _discard_output()
                text = f"standard output cannot be written ({error.strerror}): send it to another file or to a terminal"
            click.echo(f"{click.style('error', fg='red', bold=True)}  {text}", err=True)
            sys.exit(2)

    def invoke(self, context: click.Context) -> Any:
        from spin_core.errors import PhaseCrashed, SpinError
        from spin_core.runtime.proxies import bypass_for_loopback

        bypass_for_loopback()
        _escape_letters()
        if os.environ.get("COLUMNS") == "0":  # tables would have no column at all
            del os.environ["COLUMNS"]
        try:
            with _usage_errors():
                result = super().invoke(context)
            sys.stdout.flush()
        except SpinError as error:
            click.echo(f"{click.style('error', fg='red', bold=True)}  {error}", err=True)
            sys.exit(error.exit_code)
        except PhaseCrashed as error:
            click.echo(f"{click.style('crash', fg='red', bold=True)}  {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("stopped; the same command continues from here", err=True)
            sys.exit(exit_status())
        except BrokenPipeError:  # the reader, as in `spin leaderboard | head -1`, has seen enough
            _discard_output()
            sys.exit(0)
        else:
            return result


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Report arguments that a command does not take as one line. `spin` alone prints its help."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        names = error.ctx.command_path.split(" ", 1)[1:] if error.ctx and error.ctx.parent else []
        text = " ".join(error.format_message().split()).rstrip(".")
        text = re.sub(r"\. Did you mean ([^?]*)\?", r" (did you mean \1?)", text)
        help_command = " ".join(["spin", *names, "--help"])
        line = f"{text[0].lower()}{text[1:]}: see {help_command}"
        click.echo(f"{click.style('error', fg='red', bold=True)}  {line}", err=True)
        sys.exit(error.exit_code)


_FULL = (errno.ENOSPC, errno.EDQUOT)


def _is_of_output(error: OSError) -> bool:
    """Whether printing raised an error: it came from click or rich, or from the flush at the end of a command."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return error.filename is None and (last == __file__ or not {"click", "rich"}.isdisjoint(Path(last).parts))


def _open_closed_streams() -> None:
    """Connect standard streams that the caller has closed (`>&-`) with /dev/null.

    Otherwise the next file that is opened, such as a lineage's lock, would take their place.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                # The system gives the lowest number that is free, which is the one of this stream.
                os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _escape_letters() -> None:
    """Show letters by their codes where output cannot show them, as with PYTHONIOENCODING=ascii or LC_ALL=C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Drop what standard output still holds, which Python would try to write at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(context: click.Context, _parameter: click.Parameter, is_wanted: bool) -> None:
    """Print the version and end, as `--version` does."""
    if is_wanted and not context.resilient_parsing:
        from spin_core.runtime.version import spin_version

        click.echo(f"spin {spin_version()}")
        context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and its commit.",
)
def main() -> None:
    """Self-play fine-tuning (SPIN): generate, build pairs, train, evaluate, and again with the trained model."""


for command in (
    *(run.run, run.next, run.compare, run.evaluate),
    *(show.leaderboard, show.show, show.samples),
    *(check.data, check.check, check.verify),
    *(chat.chat, endpoint.serve, publish.publish, files.push, files.pull, files.export),
    show.recipes,
    *(serve.up, nightly.nightly, serve.status, serve.down),
    *(environment.doctor, environment.completion),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
