"""Runs the `spin` command in this process."""

from collections.abc import Callable

from click.testing import CliRunner, Result

from flows.command_line.main import main

Spin = Callable[..., Result]


def run_spin(*arguments: object, status: int = 0) -> Result:
    """The result of a command that must end with this status."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def refusal(result: Result) -> str:
    """The one line that a user's mistake prints, without its first word."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error  ")
    assert result.stdout == ""
    return line.removeprefix("error  ")
