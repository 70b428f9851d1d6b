"""A run whose second training is ruined by its learning rate: what the gate decides, up to Prefect's event."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL

from flows.spin import continue_lineage
from spin_core.config.resolve import resolve
from spin_core.config.run import RunConfig
from spin_core.leaderboard.board import Board
from spin_core.lineage.lineage import Lineage
from spin_core.runtime import launch
from tests.support.processes.one_process import run_phase

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_server")]

METRIC = "heldout_nll"
RATES = [1e-3, 3.0, 1e-3]
"""Of the three trainings. The second destroys what the model has learnt."""


@pytest.fixture(autouse=True)
def phases_run_here(monkeypatch) -> None:
    monkeypatch.setattr(launch, "run_phase", run_phase)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One folder for all runs, which share θ_0."""
    return tmp_path_factory.mktemp("runs")


@flow(validate_parameters=False)
def run_iterations(runs: Path, name: str, config: RunConfig) -> Board:
    """The flow of the command line, without ending this process together with the server."""
    return continue_lineage(runs, name, config)


def run_lineage(player, runs: Path, rule: str) -> tuple[Lineage, dict]:
    """Run three iterations; returns the lineage, and the leaderboard that the flow returned."""
    tiny = [word.removeprefix("--set=") for word in player.arguments(rule) if word.startswith("--set=")]
    own = [f"gate.rule={rule}", f"gate.metric={METRIC}", "controls={}", f"train.learning_rate={RATES}"]
    sets = [*(word for word in tiny if not word.startswith("controls=")), *own]
    config = resolve("demo", sets=sets, iterations=3)
    board = run_iterations(runs, rule, config)
    return Lineage(runs, rule, config), board.model_dump(mode="json")


def events(lineage: str, least: int) -> list[dict]:
    """The gate's events that Prefect has, the oldest first, once there are `least` of them."""
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    wanted = {
        "occurred": {"since": since},
        "event": {"prefix": ["spin.gate."]},
        "resource": {"id": [f"spin.lineage.{lineage}"]},
        "order": "ASC",
    }
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json={"filter": wanted}, timeout=60)
        answer.raise_for_status()
        sent = answer.json()["events"]
        if len(sent) >= least or time.monotonic() > deadline:
            return sent
        time.sleep(0.2)


def check_reports_of_the_fall(lineage: Lineage, board: dict, outcome: str) -> None:
    """Record, page, leaderboard and event agree on θ_2: it fell, and θ_1 is the choice."""
    decision = lineage.record(1).gate
    assert (decision.outcome, decision.next_opponent, decision.metric) == (outcome, 1, METRIC)
    assert decision.delta > 2 * decision.stderr > 0
    first, second, third = (row["scores"][METRIC]["value"] for row in board["rows"][:3])
    assert second < first < third
    assert decision.delta == pytest.approx(third - second)
    assert f"{METRIC} {third:.4g} against {second:.4g} of θ_1" in decision.reason
    assert [row["gate"] for row in board["rows"][:3]] == [None, "promote", outcome]
    assert board == json.loads((lineage.root / "leaderboard.json").read_text("utf-8"))
    assert f"**Gate: {outcome}.** {decision.reason}" in lineage.page(1).read_text("utf-8")
    sent = events(lineage.name, len(lineage.records()))
    assert [event["event"] for event in sent[:2]] == ["spin.gate.promote", f"spin.gate.{outcome}"]
    assert sent[1]["payload"] == {"t": 2, **decision.model_dump(mode="json")}


def test_a_regression_ends_a_run_whose_gate_stops(runs, player_in):
    lineage, board = run_lineage(player_in, runs, "stop")
    check_reports_of_the_fall(lineage, board, "stop")
    assert len(lineage.records()) == 2
    assert not lineage.iteration(2).exists()
    assert (len(board["rows"]), board["choice"]) == (3, 1)
    assert len(events("stop", 2)) == 2
    assert lineage.ended_by_gate()
    # A second run for three iterations adds none, and sends no event again.
    before = {path: path.stat().st_mtime_ns for path in lineage.root.rglob("*.json")}
    _, again = run_lineage(player_in, runs, "stop")
    assert again == board
    assert not lineage.iteration(2).exists()
    assert {path: path.stat().st_mtime_ns for path in lineage.root.rglob("manifest.json")}.items() <= before.items()
    assert len(events("stop", 2)) == 2


def test_after_a_regression_a_gate_that_keeps_the_best_version_makes_it_the_opponent(runs, player_in):
    lineage, board = run_lineage(player_in, runs, "best")
    check_reports_of_the_fall(lineage, board, "keep-best")
    first, fallen, last = lineage.records()
    assert last.opponent == first.player
    assert last.opponent.digest != fallen.player.digest
    # θ_1 answers, is scored, and is what training starts from.
    assert last.generations.opponent == last.scores.opponent == first.player.digest
    assert last.player.parent == first.player.digest
    # What θ_3 is measured against is the best version before it, not the last one.
    assert "of θ_1" in last.gate.reason
    scores = [row["scores"][METRIC]["value"] for row in board["rows"]]
    assert len(scores) == 4
    assert scores[3] < scores[2]
    chosen = last.gate.next_opponent
    assert board["choice"] == chosen
    assert [row["t"] for row in board["rows"]] == [0, 1, 2, 3]
    assert [event["payload"]["t"] for event in events("best", 3)] == [1, 2, 3]
