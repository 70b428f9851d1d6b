"""What a server does by itself about our runs: sees those that died, starts them again, tells people.

They act on runs of deployments with the tag `spin` alone. They are installed by name: again, and nothing is there
twice; one that was switched off in the UI stays off. `spin up` does without the first two (see
`flows/server/watch.py`).
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
"""Deployments bear it, and hand it on to their runs."""

DEADLINE_SECONDS = 3.0 * HEARTBEAT_SECONDS
"""How long a run may say nothing before it counts as dead."""

PENDING_MINUTES = 30.0
"""How long a run may take from its worker's call to its first word: a machine may have to be fetched for it."""

RERUN_AFTER_SECONDS = 20.0
"""How long after its crash."""

OURS = [
    {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
    {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"},
]
A_RUN = {"prefect.resource.id": "prefect.flow-run.*"}
A_LINEAGE = {"prefect.resource.id": "spin.lineage.*"}


def recovery(deadline: float = DEADLINE_SECONDS) -> list[AutomationCore]:
    """What sees dead runs, and what starts crashed ones again. A run that failed is left alone: it would fail again."""
    return [
        silence("spin: a run fell silent", "prefect.flow-run.heartbeat", timedelta(seconds=deadline)),
        silence("spin: a run never began", "prefect.flow-run.Pending", timedelta(minutes=PENDING_MINUTES)),
        AutomationCore(
            name="spin: start a crashed run again",
            description=f"The same run, {RERUNS} times at most. What it has finished is reused.",
            enabled=True,
            trigger=EventTrigger(
                # At once would be too soon: a worker says some seconds later again that the run has crashed, and would
                # mean the one that was started since.
                after={"prefect.flow-run.Crashed"},
                expect={f"prefect.flow-run.{state}" for state in ("AwaitingRetry", "Scheduled", "Pending", "Running")},
                # A run that never began has counted none: what keeps it from beginning would do so again.
                match=A_RUN | {"prefect.run-count": [str(count) for count in range(1, RERUNS + 1)]},
                match_related=OURS,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=RERUN_AFTER_SECONDS),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name="AwaitingRetry",
                    message="It crashed, and goes on by itself. What is finished is reused.",
                )
            ],
        ),
    ]


def silence(name: str, after: str, within: timedelta) -> AutomationCore:
    """Call a run crashed of which nothing is heard for so long after an event of its own."""
    return AutomationCore(
        name=name,
        description=f"Silent for {within.total_seconds():.0f} s after {after}: it counts as crashed.",
        enabled=True,
        trigger=EventTrigger(
            after={after},
            expect={"prefect.flow-run.*"},
            match=A_RUN,
            match_related=OURS,
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
    """What tells people how runs end, and how the gate decided."""
    return [
        telling(
            "spin: tell how runs end",
            {f"prefect.flow-run.{state}" for state in ("Crashed", "Failed", "Converged", "Stopped")},
            A_RUN,
            of_runs,
        ),
        telling("spin: tell what the gate decided", {"spin.gate.*"}, A_LINEAGE, of_gate),
    ]


def telling(name: str, events: set[str], of: dict[str, str], action: ActionTypes) -> AutomationCore:
    """Do something at each of these events of our runs."""
    return AutomationCore(
        name=name,
        description="Installed by python -m infra.install.",
        enabled=True,
        trigger=EventTrigger(
            expect=events, match=of, match_related=OURS, posture=Posture.Reactive, threshold=1, within=timedelta(0)
        ),
        actions=[action],
    )


def install(client: SyncPrefectClient, automations: Iterable[AutomationCore]) -> list[UUID]:
    """Create each automation, or bring the one of that name up to date."""
    found = []
    for wanted in automations:
        there = client.read_automations_by_name(wanted.name)
        for one in there[1:]:
            client.delete_automation(one.id)
        if there:
            wanted = wanted.model_copy(update={"enabled": there[0].enabled})
            client.update_automation(there[0].id, wanted)
            found.append(there[0].id)
        else:
            found.append(client.create_automation(wanted))
    return found
