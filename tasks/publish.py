"""What the UI shows of an iteration, and the gate."""

import re
from collections.abc import Coroutine

from prefect import task
from prefect.artifacts import Artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from spin_core import board, report
from spin_core.lineage import Lineage
from spin_core.records import IterationRecord


@task(name="publish", task_run_name="publish t={record.t}", cache_policy=NO_CACHE, persist_result=False)
def publish_iteration(game: Lineage, record: IterationRecord) -> None:
    """The iteration's page, the leaderboard's next version, and the gate's event.

    The page also lies beside the record, last of all: where it does, all this has been done.
    """
    path = game.page(record.t)
    if path.exists():
        return
    publish_leaderboard(game)
    page = report.iteration_page(game, record)
    is_new = show(
        f"{game.name}-iteration-{record.t:02d}",
        page,
        f"{game.name}: θ_{record.t} → θ_{record.t + 1}; {record.gate.reason}",
    )
    get_run_logger().info("gate: %s (%s)", record.gate.outcome, record.gate.reason)
    if is_new:
        emit_event(
            event=f"spin.gate.{record.gate.outcome}",
            resource={"prefect.resource.id": f"spin.lineage.{game.name}", "prefect.resource.name": game.name},
            payload={"t": record.t + 1, "reason": record.gate.reason, "next_opponent": record.gate.next_opponent},
        )
    path.write_text(page, "utf-8")


def publish_leaderboard(game: Lineage) -> board.Board:
    """Write `leaderboard.json`, and a new version of the artifact `leaderboard-<lineage>`."""
    standing = board.save(game)
    shown = game.config.evaluate
    page = report.leaderboard_page(standing, (*shown.headline, *shown.lm_eval.tasks))
    show(f"leaderboard-{game.name}", page, f"{game.name}: {report.leader(standing)}")
    return standing


def show(name: str, page: str, description: str) -> bool:
    """Make a new version of an artifact, unless the last one says the same: whether it is new."""
    key = artifact_key(name)
    last = Artifact.get(key)
    assert not isinstance(last, Coroutine), "called from a sync task"
    if last is not None and last.data == page:
        return False
    create_markdown_artifact(page, key=key, description=description)
    return True


def artifact_key(text: str) -> str:
    """Prefect's keys hold lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower())
