"""Schedules of the deployment `nightly`, each of which names its lineage.

The switch of a schedule in Prefect's UI sends only that it is on or off, and Prefect's server then empties the
schedule's parameters. So the lineage is also in the schedule's slug, as `lineage-mine`, which the server keeps, and
which the flow `nightly` reads. `spin up` gives each schedule its slug, and puts lost parameters back.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from flows.server.api import Server
from spin_core.config.base import Frozen
from spin_core.config.recipes import RECIPES
from spin_core.errors import TryAgain
from spin_core.store.files import write_json

DEPLOYMENT = "nightly"

_PREFIX = "lineage-"

_LIST = "\n\nSchedules:\n"
"""What the list of schedules in the deployment's description begins with."""

_UNITS = {"day": 86400, "hour": 3600, "minute": 60}
"""The seconds of units in which intervals are shown."""

EARLIER_DEFAULTS: Mapping[str, Any] = {"lineage": "nightly", "recipe": "demo"}
"""Parameters that earlier versions gave to the deployment. A schedule that had lost its own ran with them."""


class Schedule(Frozen):
    """When one more iteration of a lineage is due."""

    lineage: str
    """Empty if the schedule names none: its runs fail."""
    time: str
    """`02:00` for a daily schedule; else `cron 0 2 * * 1`, `every 12 hours` or `RRULE FREQ=DAILY`."""
    timezone: str
    active: bool
    next: datetime | None
    """When the next run is due; None if it is off, or if the server has not planned it yet."""

    @property
    def is_daily(self) -> bool:
        """Whether it is due once a day, at `time`."""
        return bool(re.fullmatch(r"\d\d:\d\d", self.time))


def named_lineage(schedule: Mapping[str, Any]) -> str:
    """The lineage that a schedule's parameters or its slug name; empty if neither does."""
    return str(schedule["parameters"].get("lineage") or lineage_in(schedule.get("slug")))


def lineage_in(slug: str | None) -> str:
    """The lineage that a slug names; empty if it names none."""
    return slug.removeprefix(_PREFIX).partition(".")[0] if slug and slug.startswith(_PREFIX) else ""


def new_slug(lineage: str, taken: Sequence[str | None]) -> str:
    """A slug for the lineage that no other schedule has: `lineage-mine`, `lineage-mine.2`."""
    number, slug = 1, f"{_PREFIX}{lineage}"
    while slug in taken:
        number += 1
        slug = f"{_PREFIX}{lineage}.{number}"
    return slug


def read_deployment(server: Server) -> Any:
    """The deployment with its schedules."""
    return server.get(f"/deployments/name/{DEPLOYMENT}/{DEPLOYMENT}")


def list_schedules(server: Server) -> list[Schedule]:
    """The schedules, sorted by lineage."""
    deployment = read_deployment(server)
    due = {run["created_by"]["id"]: run["expected_start_time"] for run in reversed(_planned_runs(server, deployment))}
    return sorted((_schedule(each, due) for each in deployment["schedules"]), key=lambda each: each.lineage)


def _schedule(values: Mapping[str, Any], due: Mapping[str, str]) -> Schedule:
    rule = values["schedule"]
    return Schedule(
        lineage=named_lineage(values),
        time=_time(rule),
        timezone=rule.get("timezone") or "UTC",
        active=values["active"],
        next=datetime.fromisoformat(due[values["id"]]) if values["id"] in due and values["active"] else None,
    )


def _time(rule: Mapping[str, Any]) -> str:
    """When a rule of Prefect's is due, in words: see `Schedule.time`."""
    if seconds := rule.get("interval"):
        return _every(float(seconds))
    if "rrule" in rule:
        return f"RRULE {' '.join(rule['rrule'].split())}"
    cron = " ".join(rule["cron"].split())
    daily = re.fullmatch(r"([0-9]{1,2}) ([0-9]{1,2}) \* \* \*", cron)
    return f"{int(daily[2]):02d}:{int(daily[1]):02d}" if daily else f"cron {cron}"


def _every(seconds: float) -> str:
    """`every 12 hours` or `every day`, in the largest unit of which the interval is a multiple."""
    unit = next((unit for unit, length in _UNITS.items() if seconds % length == 0), "second")
    number = seconds / _UNITS.get(unit, 1)
    return f"every {unit}" if number == 1 else f"every {number:g} {unit}s"


def _planned_runs(server: Server, deployment: Mapping[str, Any]) -> list[Any]:
    """The runs that the server has planned by schedules, the next one first."""
    selection = {"deployment_id": {"any_": [deployment["id"]]}, "state": {"name": {"any_": ["Scheduled"]}}}
    runs = server.post("/flow_runs/filter", {"flow_runs": selection, "sort": "EXPECTED_START_TIME_ASC"})
    return [run for run in runs if (run["created_by"] or {}).get("type") == "SCHEDULE"]


def keep_lineages(server: Server, memory: Path) -> None:
    """Give each schedule the slug of its lineage, and put back parameters that a switch in the UI has emptied.

    The deployment's description and the names of planned runs say which lineage each is for.

    Args:
        server: The server of `spin up`.
        memory: A file with the parameters of each schedule, by its slug.
    """
    deployment = read_deployment(server)
    remembered = _remembered(memory)
    parameters_by_slug: dict[str, Any] = {}
    lineages: dict[str, str] = {}
    slugs = [schedule["slug"] for schedule in deployment["schedules"]]
    for schedule in deployment["schedules"]:
        if not (lineage := lineages.setdefault(schedule["id"], named_lineage(schedule))):
            continue
        own, slug = schedule["parameters"], schedule["slug"]
        if lineage_in(slug) != lineage:
            slug = new_slug(lineage, slugs)
            slugs.append(slug)
        parameters = own if own.get("lineage") else {**remembered.get(slug, {}), **own, "lineage": lineage}
        if (own, schedule["slug"]) != (parameters, slug):
            with contextlib.suppress(TryAgain):  # one that the server rejects does not keep the others from theirs
                server.patch(f"/deployments/{deployment['id']}/schedules/{schedule['id']}",
                             {"parameters": parameters, "slug": slug})  # fmt: skip
        parameters_by_slug[slug] = parameters
    if parameters_by_slug != remembered:
        write_json(memory, parameters_by_slug)
        memory.chmod(0o600)
    _describe(server, deployment)
    for run in _planned_runs(server, deployment) if deployment["schedules"] else ():
        lineage = lineages.get(run["created_by"]["id"], "")
        if lineage and run["name"] != f"{DEPLOYMENT}-{lineage}":
            server.patch(f"/flow_runs/{run['id']}", {"name": f"{DEPLOYMENT}-{lineage}"})


def _remembered(memory: Path) -> dict[str, Any]:
    """The parameters of each schedule in the file; none if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(memory.read_text("utf-8"))
        return (
            {slug: own for slug, own in content.items() if isinstance(own, dict)} if isinstance(content, dict) else {}
        )
    return {}


def _describe(server: Server, deployment: Mapping[str, Any]) -> None:
    """List the schedules in the deployment's description, since the UI's own list shows their times only."""
    schedules = [_schedule(each, {}) for each in deployment["schedules"]]
    lines = sorted(f"- **{each.lineage or 'no lineage, fails'}** {state_line(each)}" for each in schedules)
    about = (deployment["description"] or "").partition(_LIST)[0]
    text = about + (_LIST + "\n" + "\n".join(lines) if lines else "")
    if deployment["description"] != text:
        server.patch(f"/deployments/{deployment['id']}", {"description": text})


def state_line(schedule: Schedule) -> str:
    """`at 02:00 Europe/Berlin`, `every 12 hours (UTC)` or `at 02:00 UTC, off`."""
    text = f"at {schedule.time} {schedule.timezone}" if schedule.is_daily else f"{schedule.time} ({schedule.timezone})"
    return text + ("" if schedule.active else ", off")


def set_schedule(
    server: Server,
    lineage: str,
    *,
    at: tuple[int, int] | None = None,
    timezone: str = "",
    active: bool = True,
    recipe: str = "",
) -> list[Schedule]:
    """Make the lineage's schedule or change it, and return all that the lineage has, the changed one first.

    A lineage may have several schedules, made in the UI. All are switched on or off. But where a time or a time zone
    is given, only the first one is changed and switched on.

    Args:
        server: The server of `spin up`.
        lineage: The lineage's name.
        at: Hour and minute; None leaves the schedule's own, or is two o'clock for a new one.
        timezone: An IANA name; empty leaves the schedule's own, or is this machine's for a new one.
        active: Whether it is on.
        recipe: What to start the lineage with, if it does not exist yet.

    Returns:
        The schedules; empty if the lineage is to be switched off and has none.
    """
    deployment = read_deployment(server)
    path = f"/deployments/{deployment['id']}/schedules"
    existing, *others = [each for each in deployment["schedules"] if named_lineage(each) == lineage] or [None]
    if existing is None and not active:
        return []
    rule = existing["schedule"] if existing else {"cron": "0 2 * * *", "timezone": machine_timezone()}
    if at:
        rule = {"cron": f"{at[1]} {at[0]} * * *", "timezone": rule.get("timezone") or "UTC"}
    if timezone:
        rule = {**rule, "timezone": timezone}
    own = existing["parameters"] if existing else {}
    parameters = {**own, "lineage": lineage, **({"recipe": recipe} if recipe else {})}
    slug = new_slug(lineage, [each["slug"] for each in deployment["schedules"] if each is not existing])
    wanted = {"active": active, "schedule": rule, "parameters": parameters, "slug": slug}
    if existing:
        server.patch(f"{path}/{existing['id']}", wanted)
    else:
        server.post(path, [wanted])
    if not active or not (at or timezone):
        for other in others:
            # The server empties the parameters of a schedule that is changed without naming them.
            other |= {"active": active, "parameters": {**parameters, **other["parameters"], "lineage": lineage}}
            changes = {name: other[name] for name in ("active", "parameters")}
            server.patch(f"{path}/{other['id']}", changes)
    return [_schedule({**each, "id": ""}, {}) for each in (wanted, *others)]


def starting_recipe(server: Server, lineage: str) -> str:
    """The recipe with which a schedule starts a lineage that does not exist yet; empty if no schedule has one."""
    own = [each["parameters"] for each in read_deployment(server)["schedules"] if named_lineage(each) == lineage]
    recipes = (parameters.get("recipe") for parameters in own)
    return next((recipe for recipe in recipes if recipe and recipe in RECIPES), "")


def next_due(schedule: Schedule, now: datetime) -> str:
    """When the next run is due, as `2026-12-02 02:00`; empty if it is off, or is not daily and not planned yet."""
    due, zone = schedule.next, ZoneInfo(schedule.timezone)
    if not schedule.active:
        return ""
    if due is None and schedule.is_daily:
        hour, minute = map(int, schedule.time.split(":"))
        due = now.astimezone(zone).replace(hour=hour, minute=minute, second=0)
        due += timedelta(days=due <= now)
    return f"{due.astimezone(zone):%Y-%m-%d %H:%M}" if due else ""


def machine_timezone() -> str:
    """This machine's time zone by its IANA name; UTC if it is not set."""
    name = os.environ.get("TZ", "") or str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2]
    return name if name in time_zones() else "UTC"


def time_zones() -> set[str]:
    """The names of all time zones that mean the same on every machine."""
    return available_timezones() - {"Factory", "localtime", "posixrules"}


def with_own_lineages(settings: dict[str, Any]) -> dict[str, Any]:
    """A deployment's settings with lineage and recipe in each schedule, and without a default for all.

    In earlier versions the deployment had a default lineage, which users replaced by theirs.
    """
    default = settings["parameters"]
    if "lineage" not in default:
        return settings
    recipe = {"recipe": default["recipe"]} if "recipe" in default else {}
    schedules: list[dict[str, Any]] = []
    for schedule in settings["schedules"]:
        if schedule["parameters"].get("lineage"):
            schedules.append({**schedule, "parameters": {**recipe, **schedule["parameters"]}})
        elif named_lineage(schedule):
            schedules.append(schedule)
        elif schedule["active"] or default != EARLIER_DEFAULTS:
            slug = new_slug(default["lineage"], [each.get("slug") for each in (*settings["schedules"], *schedules)])
            schedules.append({**schedule, "parameters": {**default, **schedule["parameters"]}, "slug": slug})
    kept = {name: value for name, value in default.items() if name not in EARLIER_DEFAULTS}
    return {**settings, "parameters": kept, "schedules": schedules}
