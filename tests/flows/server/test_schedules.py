"""Schedules name their lineage by their slug, and those of earlier versions get one."""

from datetime import UTC, datetime
from typing import Any

import pytest

from flows.server.schedules import (
    EARLIER_DEFAULTS,
    Schedule,
    lineage_in,
    machine_timezone,
    named_lineage,
    new_slug,
    next_due,
    with_own_lineages,
)

NOON = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


def schedule(**more: Any) -> dict[str, Any]:
    return {"schedule": {"cron": "0 2 * * *"}, "active": True, "parameters": {}, "slug": None, **more}


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
    own = schedule(parameters={"lineage": "own"}, active=False)
    settings = {"parameters": {"lineage": "mine", "recipe": "demo", "until_converged": False}, "tags": ["spin"]}
    after = with_own_lineages({**settings, "schedules": [schedule(), own]})
    assert after["parameters"] == {"until_converged": False}
    assert after["tags"] == ["spin"]
    assert after["schedules"] == [schedule(parameters=settings["parameters"], slug="lineage-mine"), own]
    assert with_own_lineages(after) == after


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
    monkeypatch.setenv("TZ", ":/nowhere")
    assert machine_timezone() == "UTC"
