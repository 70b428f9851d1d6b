"""Which runs the automations act on, by Prefect's own triggers without a server; and their installation."""

from typing import Any
from unittest.mock import MagicMock

import pytest
from prefect.client.orchestration import get_client
from prefect.events.actions import DoNothing
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import RelatedResource, Resource

from infra import automations

DEPLOYMENT = {"prefect.resource.id": "prefect.deployment.1", "prefect.resource.role": "deployment"}
TAG = {"prefect.resource.id": "prefect.tag.spin", "prefect.resource.role": "tag"}
OTHER_TAG = {"prefect.resource.id": "prefect.tag.theirs", "prefect.resource.role": "tag"}
EVERY = [automation.name for automation in automations.recovery()]


def acts(name: str, related: list[Any], event: str = "prefect.flow-run.Crashed", **labels: str) -> bool:
    """Whether an automation looks at what happened to a run."""
    (automation,) = [candidate for candidate in automations.recovery() if candidate.name == name]
    trigger = EventTrigger.model_validate(automation.trigger.model_dump(mode="json"))
    run = {"prefect.resource.id": "prefect.flow-run.1", "prefect.run-count": "1", **labels}
    covered = trigger.covers_resources(
        Resource.model_validate(run), [RelatedResource.model_validate(resource) for resource in related]
    )
    return covered and event in trigger.after


AGAIN = "spin: start a crashed run again"


@pytest.mark.parametrize(("starts", "again"), [("0", False), ("1", True), ("3", True), ("4", False), ("10", False)])
def test_a_crashed_run_is_started_again_three_times_at_most(starts, again):
    assert acts(AGAIN, [DEPLOYMENT, TAG], **{"prefect.run-count": starts}) == again


def test_a_run_that_failed_is_not_started_again():
    assert not acts(AGAIN, [DEPLOYMENT, TAG], "prefect.flow-run.Failed")


@pytest.mark.parametrize("name", EVERY)
def test_runs_of_the_command_line_and_of_others_are_not_touched(name):
    (event,) = next(automation.trigger.after for automation in automations.recovery() if automation.name == name)
    assert acts(name, [DEPLOYMENT, TAG], event)
    assert not acts(name, [DEPLOYMENT, OTHER_TAG], event)
    assert not acts(name, [TAG], event)


def test_a_run_may_miss_two_heartbeats():
    silent = automations.recovery()[0].trigger
    assert silent.within.total_seconds() == 3 * automations.HEARTBEAT_SECONDS


def test_an_automation_that_had_another_name_is_renamed_and_not_installed_twice():
    (wanted,) = [each for each in automations.notifications(DoNothing(), DoNothing()) if "gate" in each.name]
    client = MagicMock()
    earlier = wanted.model_copy(update={"id": "1", "name": "spin: tell what the gate decided", "enabled": False})
    client.read_automations_by_name.side_effect = lambda name: [earlier] if name == earlier.name else []
    assert automations.install(client, [wanted]) == ["1"]
    client.update_automation.assert_called_once_with("1", wanted.model_copy(update={"enabled": False}))
    client.create_automation.assert_not_called()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_server")
def test_installed_again_they_are_there_once_as_they_are_now_and_one_that_was_switched_off_stays_off():
    with get_client(sync_client=True) as client:
        first = automations.install(client, automations.recovery())
        client.pause_automation(first[0])
        again = automations.install(client, automations.recovery(deadline=200))
        installed = {
            automation["name"]: automation
            for automation in client.request("POST", "/automations/filter", json={}).json()
        }
        count = client.request("POST", "/automations/count").json()
        for number in first:
            client.delete_automation(number)  # they would act on the runs of other tests
    assert again == first
    assert count == len(installed) == len(EVERY) == 3
    assert [installed[name]["enabled"] for name in EVERY] == [False, True, True]
    assert installed[EVERY[0]]["trigger"]["within"] == 200
