"""Schedules name their lineage by their slug, and those of earlier versions get one."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from flows.server import serve
from flows.server.api import Server
from flows.server.schedules import (
    EARLIER_DEFAULTS,
    Schedule,
    keep_lineages,
    lineage_in,
    list_schedules,
    machine_timezone,
    named_lineage,
    new_slug,
    next_due,
    set_schedule,
    starting_recipe,
    state_line,
    with_own_lineages,
)

NOON = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


def schedule(**more: Any) -> dict[str, Any]:
    return {"schedule": {"cron": "0 2 * * *"}, "active": True, "parameters": {}, "slug": None, **more}


class FakeServer:
    """A server with the deployment `nightly` and no planned runs."""

    def __init__(self, *schedules: dict[str, Any]) -> None:
        self.schedules = [{"id": str(number), **values} for number, values in enumerate(schedules)]
        self.description = ""

    def get(self, _path: str) -> Any:
        return {"id": "nightly", "description": self.description, "schedules": [dict(each) for each in self.schedules]}

    def post(self, _path: str, _query: Any) -> Any:
        return []

    def patch(self, path: str, changes: Any) -> None:
        if path.endswith("/nightly"):
            self.description = changes["description"]
        else:
            self.schedules[int(path.rpartition("/")[2])] |= changes


def server_with(*schedules: dict[str, Any]) -> tuple[FakeServer, Server]:
    """A fake server, also as the type that functions expect."""
    fake = FakeServer(*schedules)
    return fake, cast("Server", fake)


def test_a_slug_names_its_lineage():
    slugs: list[str | None] = []
    for _ in range(3):
        slugs.append(new_slug("a-b", slugs))
    assert slugs == ["lineage-a-b", "lineage-a-b.2", "lineage-a-b.3"]
    assert {lineage_in(slug) for slug in slugs} == {"a-b"}


@pytest.mark.parametrize("slug", [None, "", "two-oclock", "CronSchedule"])
def test_any_other_slug_names_none(slug):
    assert lineage_in(slug) == ""


def test_a_schedule_is_for_the_lineage_of_its_parameters_and_after_they_were_emptied_of_its_slug():
    assert named_lineage(schedule(parameters={"lineage": "new"}, slug="lineage-old")) == "new"
    assert named_lineage(schedule(slug="lineage-old")) == "old"
    assert named_lineage(schedule()) == ""


def test_a_default_lineage_of_an_earlier_version_becomes_that_of_the_schedules_without_one():
    own = schedule(parameters={"lineage": "own", "recipe": "small"}, active=False)
    settings = {"parameters": {"lineage": "mine", "recipe": "demo", "until_converged": False}, "tags": ["spin"]}
    after = with_own_lineages({**settings, "schedules": [schedule(), own]})
    assert after["parameters"] == {"until_converged": False}
    assert after["tags"] == ["spin"]
    assert after["schedules"] == [schedule(parameters=settings["parameters"], slug="lineage-mine"), own]
    assert with_own_lineages(after) == after


def test_schedules_with_their_own_lineage_keep_the_default_recipe_of_an_earlier_version():
    own = schedule(parameters={"lineage": "own"})
    after = with_own_lineages({"parameters": {"lineage": "mine", "recipe": "small"}, "schedules": [own]})
    assert after["schedules"] == [schedule(parameters={"lineage": "own", "recipe": "small"})]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"cron": "5  2 * * *"}, "at 02:05 {}"),
        ({"cron": "0 2 * * 1"}, "cron 0 2 * * 1 ({})"),
        ({"cron": "@daily"}, "cron @daily ({})"),
        ({"cron": "0 0 2 * * *"}, "cron 0 0 2 * * * ({})"),
        ({"interval": 43200.0, "anchor_date": "2026-12-01T00:00:00Z"}, "every 12 hours ({})"),
        ({"interval": 86400.0}, "every day ({})"),
        ({"interval": 5400.0}, "every 90 minutes ({})"),
        ({"interval": 61.5}, "every 61.5 seconds ({})"),
        ({"rrule": "FREQ=DAILY"}, "RRULE FREQ=DAILY ({})"),
    ],
)
def test_any_rule_that_the_ui_allows_is_listed_kept_and_changed(tmp_path, rule, line):
    fake, server = server_with(schedule(schedule=rule, parameters={"lineage": "mine"}))
    (listed,) = list_schedules(server)
    assert state_line(listed) == line.format("UTC")
    keep_lineages(server, tmp_path / "memory.json")
    assert f"- **mine** {line.format('UTC')}" in fake.description
    assert fake.schedules[0]["slug"] == "lineage-mine"
    (changed,) = set_schedule(server, "mine", timezone="Europe/Berlin")
    assert state_line(changed) == line.format("Europe/Berlin")


def test_all_schedules_of_a_lineage_are_switched_off_and_on_again():
    mine = [schedule(parameters={"lineage": "mine"}, slug=slug) for slug in ("lineage-mine", "lineage-mine.2")]
    emptied = schedule(slug="lineage-mine.3")
    fake, server = server_with(*mine, emptied, schedule(parameters={"lineage": "other"}, active=False))
    for active in (False, True):
        assert [each.active for each in set_schedule(server, "mine", active=active)] == [active] * 3
        assert [each["active"] for each in fake.schedules] == [active] * 3 + [False]
        assert [each["parameters"]["lineage"] for each in fake.schedules] == ["mine"] * 3 + ["other"]
        assert [each["slug"] for each in fake.schedules[1:3]] == ["lineage-mine.2", "lineage-mine.3"]


def test_a_new_time_changes_the_first_schedule_of_a_lineage_and_returns_the_others_as_they_are():
    mine = [schedule(parameters={"lineage": "mine"}, slug=slug) for slug in ("lineage-mine", "lineage-mine.2")]
    fake, server = server_with(*mine)
    set_schedule(server, "mine", active=False)
    lines = [state_line(each) for each in set_schedule(server, "mine", at=(4, 30))]
    assert lines == ["at 04:30 UTC", "at 02:00 UTC, off"]
    assert [each["active"] for each in fake.schedules] == [True, False]


def test_a_schedule_with_a_recipe_can_start_its_lineage():
    recipes: list[dict[str, Any]] = [{}, {"recipe": "as the lineage has it"}, {"recipe": "demo"}]
    _, server = server_with(*(schedule(parameters={"lineage": "mine", **each}) for each in recipes))
    assert starting_recipe(server, "mine") == "demo"
    _, server = server_with(*(schedule(parameters={"lineage": "mine", **each}) for each in recipes[:2]))
    assert starting_recipe(server, "mine") == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"lineage-mine": 3}'])
def test_a_damaged_memory_of_parameters_is_written_again(tmp_path, content):
    memory = tmp_path / "memory.json"
    memory.write_text(content)
    keep_lineages(server_with(schedule(slug="lineage-mine"))[1], memory)
    assert '"mine"' in memory.read_text("utf-8")


def test_a_schedule_with_unexpected_data_is_reported_once_and_ends_nothing(tmp_path, capsys):
    problems: set[str] = set()
    for _ in range(2):
        serve._keep_schedules(server_with(schedule(schedule=None))[1], tmp_path / "memory.json", problems)
    assert capsys.readouterr().err.count("the schedules of nightly could not be checked") == 1


def test_the_schedule_that_earlier_versions_installed_goes_unless_it_was_switched_on():
    before = {"parameters": dict(EARLIER_DEFAULTS), "schedules": [schedule(active=False)]}
    assert with_own_lineages(before) == {"parameters": {}, "schedules": []}
    before["schedules"] = [schedule()]
    (kept,) = with_own_lineages(before)["schedules"]
    assert named_lineage(kept) == "nightly"


def test_the_next_time_of_a_daily_schedule_is_known_before_the_server_has_planned_it():
    daily = Schedule(lineage="mine", time="02:00", timezone="Europe/Berlin", active=True, next=None)
    assert next_due(daily, NOON) == "2026-12-02 02:00"
    assert next_due(daily.model_copy(update={"time": "13:01"}), NOON) == "2026-12-01 13:01"
    assert next_due(daily.model_copy(update={"time": "13:00"}), NOON) == "2026-12-02 13:00"
    assert next_due(daily.model_copy(update={"active": False}), NOON) == ""
    assert next_due(daily.model_copy(update={"time": "0 2 * * 1"}), NOON) == ""
    planned = daily.model_copy(update={"time": "0 2 * * 1", "next": NOON})
    assert next_due(planned, NOON) == "2026-12-01 13:00"


def test_a_machine_without_a_known_time_zone_has_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert machine_timezone() == "Europe/Berlin"
    for name in (":/nowhere", "localtime", "Factory"):
        monkeypatch.setenv("TZ", name)
        assert machine_timezone() == "UTC"
