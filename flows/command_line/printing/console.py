"""The terminal that all commands print to."""

from typing import NoReturn

from rich.console import Console


class _Console(Console):
    """A console that leaves it to the command what happens when its reader has gone; rich's own ends the process."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def make_console() -> Console:
    """A console on standard output."""
    return _Console(highlight=False)


console = make_console()
