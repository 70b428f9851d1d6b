"""The pages of an iteration in the UI, and the gate's event."""

import uuid
from collections.abc import Coroutine

from prefect import task
from prefect.artifacts import Artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from spin_core.leaderboard import board
from spin_core.lineage.lineage import Lineage
from spin_core.reports import html, markdown, samples_page
from spin_core.reports.links import artifact_key, iteration_name, lineage_links
from spin_core.store import files
from spin_core.store.records import IterationRecord
from tasks.retry import with_retries


@task(name="publish", task_run_name="publish t={record.t}", cache_policy=NO_CACHE, persist_result=False)
def publish_iteration(lineage: Lineage, record: IterationRecord) -> None:
    """Publish the iteration's page, a new version of the leaderboard, the lineage's report, and the gate's event.

    The page is also kept on disk next to the record, and is written only once. Prefect is checked every time, because
    after a kill, or with another server, it may not have the page.
    """
    path = lineage.page(record.t)
    if not path.exists():
        publish_leaderboard(lineage)
        files.write_text(path, markdown.iteration_page(lineage, record))
    page = f"{lineage_links(lineage.name, record.t)}\n\n{path.read_text('utf-8')}"
    name = iteration_name(lineage.name, record.t)
    get_run_logger().info("gate: %s (%s)", record.gate.outcome, record.gate.reason)
    if is_new(name, page):
        emit_decision(lineage, record)
        show(name, page, f"θ_{record.t} → θ_{record.t + 1}; {record.gate.reason}")


def emit_decision(lineage: Lineage, record: IterationRecord) -> None:
    """Emit the gate's event. The same decision has the same id, so a server that already has it does not keep two."""
    gate = record.gate
    emit_event(
        event=f"spin.gate.{gate.outcome}",
        resource={"prefect.resource.id": f"spin.lineage.{lineage.name}", "prefect.resource.name": lineage.name},
        payload={"t": record.t + 1, **gate.model_dump(mode="json")},
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"spin:{lineage.name}:{record.player.digest}:{gate.model_dump_json()}"),
    )


def publish_leaderboard(lineage: Lineage) -> board.Board:
    """Write `leaderboard.json`, `report.html` and `samples.html`, and a new version of `leaderboard-<lineage>`."""
    leaderboard = board.save(lineage)
    html.write(lineage, board=leaderboard)
    samples_page.write_latest(lineage)
    last = max((row.t for row in leaderboard.rows if row.t is not None), default=0) - 1
    page = f"{lineage_links(lineage.name, last)}\n\n{markdown.leaderboard_page(leaderboard, lineage.config)}"
    name = f"leaderboard-{lineage.name}"
    if is_new(name, page):
        show(name, page, markdown.leader(leaderboard))
    return leaderboard


def is_new(name: str, page: str) -> bool:
    """Whether the artifact does not exist yet, or its last version has another text."""
    last = with_retries(lambda: Artifact.get(artifact_key(name)))
    assert not isinstance(last, Coroutine), "called from a sync task"
    return last is None or last.data != page


def show(name: str, page: str, description: str) -> None:
    """Create a new version of an artifact."""
    with_retries(lambda: create_markdown_artifact(page, key=artifact_key(name), description=description))
