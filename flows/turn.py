"""The turn of a deployment's run: it waits while other runs compute on this machine, and its state says for which."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Running

from flows.server.watch import WAITING, WAITS_LABEL
from spin_core.errors import LineageBusy
from spin_core.runtime import turns
from spin_core.store import lock


@contextlib.contextmanager
def turn(lineage: Path) -> Iterator[None]:
    """Wait until fewer than `spin up --at-once` runs compute on this machine, and until the lineage is free."""
    waited: list[str] = []

    own = f"run of {lineage.name}"

    def report(ahead: Sequence[str]) -> None:
        if same := next((other for other in ahead if other.startswith(f"{own} (")), None):
            waited.append(_say_waiting(f"another {same} computes; this one continues after it"))
        else:
            verb = "computes" if len(ahead) == 1 else "compute"
            names = ", ".join(f"a {other}" for other in ahead)
            waited.append(_say_waiting(f"{names} {verb}; spin up --at-once allows more"))

    with turns.turn(own, turns.at_once(), report):
        try:
            with lock.locked(lineage) if lineage.exists() else contextlib.nullcontext():
                pass
        except LineageBusy as busy:
            holder = str(busy).partition(":")[0].partition(" is in use by ")[2]
            waited.append(
                _say_waiting(f"another run of {lineage.name} ({holder}) computes; this one continues after it")
            )
            with lock.locked(lineage, wait=True):
                pass
        if waited:
            _set_state(Running(), waits=1)
        yield


def _say_waiting(reason: str) -> str:
    """Show in the run's state and log why it waits."""
    message = f"waits: {reason}"
    get_run_logger().info("%s", message)
    _set_state(State(type=StateType.PENDING, name=WAITING, message=message))
    return message


def _set_state(state: State[None], waits: int = 0) -> None:
    """Set the current run's state, and count in a label how often it has waited. Errors are ignored."""
    if not flow_run.id:
        return
    with (
        contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError),
        get_client(sync_client=True) as client,
    ):
        run = client.read_flow_run(UUID(flow_run.id))
        if waits:
            client.update_flow_run_labels(run.id, {WAITS_LABEL: int(run.labels.get(WAITS_LABEL, 0)) + waits})
        client.set_flow_run_state(run.id, state, force=True)
