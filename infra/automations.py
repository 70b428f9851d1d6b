"""Automations of a Prefect server: detect dead runs, start them again, notify people.

They act only on runs of deployments with the tag `spin`. They are installed by name: a second install updates them, and
one that was switched off in the UI stays off. `spin up` has no automations for dead runs (see `flows/server/watch.py`).
"""

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.server.local import HEARTBEAT_SECONDS, RERUNS

TAG = "spin"
"""The tag of this project's deployments, which their runs inherit."""

DEADLINE_SECONDS = 3.0 * HEARTBEAT_SECONDS
"""How long a run may send no heartbeat before it counts as dead."""

PENDING_MINUTES = 30.0
"""How long a run may be pending. Its worker may have to wait for a machine."""

RERUN_AFTER_SECONDS = 20.0
"""How long after its crash a run is started again."""

_OF_OUR_DEPLOYMENTS = [
    {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
    {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"},
]
_ANY_RUN = {"prefect.resource.id": "prefect.flow-run.*"}
_ANY_LINEAGE = {"prefect.resource.id": "spin.lineage.*"}

_RENAMED = {
    "spin: tell how runs end": "spin: notify when a run ends badly or converges",
    "spin: tell what the gate decided": "spin: notify when the gate decides",
}
"""Names that automations had in earlier versions, and their names today."""


def recovery(deadline: float = DEADLINE_SECONDS) -> list[AutomationCore]:
    """Automations that detect dead runs, and that start crashed runs again.

    A run that failed is not started again, since it would fail again.

    Args:
        deadline: How many seconds a run may send no heartbeat.
    """
    return [
        _crash_if_silent("spin: a run fell silent", "prefect.flow-run.heartbeat", timedelta(seconds=deadline)),
        _crash_if_silent("spin: a run never began", "prefect.flow-run.Pending", timedelta(minutes=PENDING_MINUTES)),
        AutomationCore(
            name="spin: start a crashed run again",
            description=f"The same run, {RERUNS} times at most. What it has finished is reused.",
            enabled=True,
            trigger=EventTrigger(
                # Not at once: a worker reports a crash again some seconds later, and that report would hit the run
                # that has been started since.
                after={"prefect.flow-run.Crashed"},
                expect={f"prefect.flow-run.{state}" for state in ("AwaitingRetry", "Scheduled", "Pending", "Running")},
                # A run count of 0 is not in the list: the run never began, and what prevented that would do so again.
                match=_ANY_RUN | {"prefect.run-count": [str(count) for count in range(1, RERUNS + 1)]},
                match_related=_OF_OUR_DEPLOYMENTS,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=RERUN_AFTER_SECONDS),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name="AwaitingRetry",
                    message="It crashed, and continues by itself. What is finished is reused.",
                )
            ],
        ),
    ]


def _crash_if_silent(name: str, after: str, within: timedelta) -> AutomationCore:
    """An automation that sets a run to crashed if it sends no event within a time after the event `after`."""
    return AutomationCore(
        name=name,
        description=f"Silent for {within.total_seconds():.0f} s after {after}: it counts as crashed.",
        enabled=True,
        trigger=EventTrigger(
            after={after},
            expect={"prefect.flow-run.*"},
            match=_ANY_RUN,
            match_related=_OF_OUR_DEPLOYMENTS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"Silent for {within.total_seconds():.0f} s: its process, or its machine, is gone.",
            )
        ],
    )


def notifications(of_runs: ActionTypes, of_gate: ActionTypes) -> list[AutomationCore]:
    """Automations that notify people of the end of runs, and of the gate's decisions."""
    return [
        _at_event(
            "spin: notify when a run ends badly or converges",
            {f"prefect.flow-run.{state}" for state in ("Crashed", "Failed", "Converged", "Stopped")},
            _ANY_RUN,
            of_runs,
        ),
        _at_event("spin: notify when the gate decides", {"spin.gate.*"}, _ANY_LINEAGE, of_gate),
    ]


def _at_event(name: str, events: set[str], of: dict[str, str], action: ActionTypes) -> AutomationCore:
    """An automation that does something at each of these events of runs with the tag."""
    return AutomationCore(
        name=name,
        description="Installed by python -m infra.install.",
        enabled=True,
        trigger=EventTrigger(
            expect=events,
            match=of,
            match_related=_OF_OUR_DEPLOYMENTS,
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[action],
    )


def install(client: SyncPrefectClient, automations: Iterable[AutomationCore]) -> list[UUID]:
    """Create each automation, or update the one that has its name or an earlier one; returns their ids."""
    ids = []
    for wanted in automations:
        names = [wanted.name, *(old for old, new in _RENAMED.items() if new == wanted.name)]
        existing = [automation for name in names for automation in client.read_automations_by_name(name)]
        for duplicate in existing[1:]:
            client.delete_automation(duplicate.id)
        if existing:
            wanted = wanted.model_copy(update={"enabled": existing[0].enabled})
            client.update_automation(existing[0].id, wanted)
            ids.append(existing[0].id)
        else:
            ids.append(client.create_automation(wanted))
    return ids
