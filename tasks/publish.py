"""What the UI shows of an iteration, and the gate."""

import re

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from spin_core import board, report
from spin_core.lineage import Lineage
from spin_core.records import IterationRecord


@task(name="publish", task_run_name="publish t={record.t}", cache_policy=NO_CACHE, persist_result=False)
def publish_iteration(game: Lineage, record: IterationRecord) -> None:
    """The iteration's page, the leaderboard's next version, and the gate's event."""
    publish_leaderboard(game)
    create_markdown_artifact(
        report.iteration_page(game, record),
        key=artifact_key(f"{game.name}-iteration-{record.t:02d}"),
        description=f"{game.name}: θ_{record.t} → θ_{record.t + 1}. {record.gate.reason}",
    )
    get_run_logger().info("gate: %s (%s)", record.gate.outcome, record.gate.reason)
    emit_event(
        event=f"spin.gate.{record.gate.outcome}",
        resource={"prefect.resource.id": f"spin.lineage.{game.name}", "prefect.resource.name": game.name},
        payload={"t": record.t + 1, "reason": record.gate.reason, "next_opponent": record.gate.next_opponent},
    )


def publish_leaderboard(game: Lineage) -> board.Board:
    """Write `leaderboard.json`, and a new version of the artifact `leaderboard-<lineage>`."""
    standing = board.save(game)
    create_markdown_artifact(
        report.leaderboard_page(standing, game.config.evaluate.headline),
        key=artifact_key(f"leaderboard-{game.name}"),
        description=f"{game.name}: {standing.main_metric} over {len(standing.rows)} versions",
    )
    return standing


def artifact_key(text: str) -> str:
    """Prefect's keys hold lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower())
