"""The command `spin nightly`: a lineage's schedule on the server of `spin up`."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.command_line.options import (
    lineage_argument,
    runs_argument,
    runs_option,
)

if TYPE_CHECKING:
    from flows.server.api import Server


@click.command()
@lineage_argument("name", metavar="LINEAGE")
@click.option("--at", metavar="HH:MM", help="When; default: as it is, or 02:00 for a new schedule.")
@click.option(
    "--timezone",
    default="",
    metavar="ZONE",
    help="As Europe/Berlin; default: as it is, or this machine's for a new one.",
)
@click.option(
    "--recipe", default="", help="For a lineage that does not exist yet: the recipe that its first run starts it with."
)
@click.option("--off", is_flag=True, help="Switch the schedule off. It keeps its time.")
@runs_option
def nightly(name: str, at: str | None, timezone: str, recipe: str, off: bool, runs: Path) -> None:
    """Add one iteration to a lineage every night, while `spin up` runs."""
    from flows.server import schedules

    time = _hour_and_minute(at) if at is not None else None
    _check_timezone(timezone)
    if recipe or not off:
        _check_recipe(runs, name, recipe)
    server = _server(runs)
    if not off and not recipe:
        _check_lineage(runs, name, server)
    own = schedules.set_schedule(server, name, at=time, timezone=timezone, active=not off, recipe=recipe)
    again = f"spin nightly {name}{runs_argument(runs)}"
    if not own:
        click.echo(f"{name} has no schedule")
    elif off:
        click.echo(f"{name}: {'; '.join(map(schedules.state_line, own))}; {again} switches it on again")
    else:
        for schedule in own:
            due = schedules.next_due(schedule, datetime.now(UTC))
            when = ("every night " if schedule.is_daily else "") + schedules.state_line(schedule)
            click.echo(f"{name}: one more iteration {when}{due and f', next {due}'}")
        click.echo(f"to switch it off: {again} --off")


def _hour_and_minute(text: str) -> tuple[int, int]:
    """The time that `--at` names. Raises `ConfigError` if it is none."""
    from spin_core.errors import ConfigError

    match = re.fullmatch(r"(\d{1,2}):(\d\d)", text)
    if not match or int(match[1]) > 23 or int(match[2]) > 59:
        raise ConfigError(f"--at {text!r} is not a time of day: write hours and minutes, as 02:00 or 23:30")
    return int(match[1]), int(match[2])


def _check_timezone(name: str) -> None:
    """Raise `ConfigError` if there is no such time zone."""
    from flows.server.schedules import time_zones
    from spin_core.config.resolve import suggestion
    from spin_core.errors import ConfigError

    zones = time_zones()
    if name and name not in zones:
        raise ConfigError(
            f"--timezone {name!r} is not a time zone{suggestion(name, zones)}: write it as Europe/Berlin or UTC"
        )


def _check_recipe(runs: Path, name: str, recipe: str) -> None:
    """Raise `ConfigError` if there is no such recipe, or if the lineage has another."""
    from spin_core.config.resolve import resolve
    from spin_core.errors import ConfigError
    from spin_core.lineage.find import find_lineage, lineage_exists

    if not lineage_exists(runs, name):
        if recipe:
            resolve(recipe)
    elif recipe not in ("", own := find_lineage(runs, name).config.recipe):
        raise ConfigError(f"lineage {name} was started with recipe {own}, not {recipe}: leave out --recipe")


def _check_lineage(runs: Path, name: str, server: "Server") -> None:
    """Raise `ConfigError` if there is neither such a lineage nor a schedule with a recipe to start it with."""
    from flows.server import schedules
    from spin_core.config.resolve import suggestion
    from spin_core.errors import ConfigError
    from spin_core.lineage.find import lineage_exists, lineage_names

    if not lineage_exists(runs, name) and not schedules.starting_recipe(server, name):
        hint = suggestion(name, lineage_names(runs))
        raise ConfigError(
            f"there is no lineage {name!r}{hint} in {runs}: correct the name, or give the recipe to start it with, "
            f"as spin nightly {name} --recipe demo"
        )


def _server(runs: Path) -> "Server":
    """The server of the folder's `spin up`. Raises `ConfigError` if there is none on this machine."""
    from flows.server import api, local, state
    from spin_core.errors import ConfigError

    local.reject_other_machine(local.find_up(runs), runs)
    up = local.wait_for_answer(runs)
    if not up:
        raise ConfigError(
            f"nothing is up for {runs}, and a schedule needs it: start spin up{runs_argument(runs)} first"
        )
    return api.Server(up.url, state.read_password(state.state_folder(runs)))
