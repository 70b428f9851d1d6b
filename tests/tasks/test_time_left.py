"""What a run says of its progress while a phase runs and at its end: in a terminal, in a file, and in its log."""

import logging
import re
from pathlib import Path

import pytest

from spin_core.preflight.times.plan import Item, Plan
from spin_core.store.records import ScoredPairs
from tasks import display, phase_task, time_left
from tasks.time_left import OF_PHASE, OF_RUN, PhaseClock
from tests.support.lineages.toy_phase import ToyJob


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> PhaseClock:
    """The clock of a phase in a run that trains twice, with a time that goes on by 5 s whenever it is read."""
    seconds = iter(range(0, 1000, 5))
    monkeypatch.setattr(time_left.time, "monotonic", lambda: next(seconds))
    root = Path("/runs/mine")
    plan = Plan(root, {("iter_00", "train"): Item(100.0), ("iter_01", "train"): Item(200.0)})
    plan.measured["train"].append((100.0, 50.0))
    monkeypatch.setattr(time_left, "current", plan)
    return PhaseClock(root / "iter_00" / "train")


def message(done: int, **metrics: float) -> dict:
    return {"done": done, "total": 40, "unit": "step", "metrics": metrics}


def test_the_time_left_is_that_at_the_speed_since_the_first_message(clock):
    first, later = (clock.with_time_left(message(done, loss=0.5))["metrics"] for done in (20, 25))
    assert first == {"loss": 0.5, OF_RUN: 50 - 10 + 100}, "its speed is not known, so the plan counts"
    assert later == {"loss": 0.5, OF_PHASE: 30.0, OF_RUN: 30 + 100}
    assert display.time_left({"metrics": later}) == "0:00:30 left  run: about 2 min left"


def test_a_phase_that_knows_its_time_left_is_believed(clock):
    assert clock.with_time_left(message(20, **{OF_PHASE: 7.0}))["metrics"] == {OF_PHASE: 7.0, OF_RUN: 107.0}


def test_another_count_of_the_same_phase_has_its_own_speed(clock):
    clock.with_time_left(message(0))
    rows = {"done": 5, "total": 10, "unit": "row"}
    assert OF_PHASE not in clock.with_time_left(rows)["metrics"]
    assert clock.with_time_left(rows | {"done": 6})["metrics"][OF_PHASE] == 40.0


def test_a_training_of_one_step_has_one_loss():
    only = message(1, loss=0.6931)
    assert display.change(only, only) == "loss 0.6931"
    assert display.change(only, message(40, loss=7.259e-07)) == "loss 0.6931 → 7.259e-07"


def test_a_phase_logs_a_line_every_few_minutes_and_one_at_its_end_with_its_figures(
    tmp_path, monkeypatch, capsys, caplog
):
    def run_phase(_job, _kind, on_progress, _on_log):
        for step, loss in ((1, 0.6931), (96, 0.521)):
            on_progress({"done": step, "total": 96, "unit": "step", "metrics": {"loss": loss}})
        return "a record"

    monkeypatch.setattr(phase_task.launch, "run_phase", run_phase)
    monkeypatch.setattr(phase_task, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(phase_task, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(display, "current", display.Terminal())
    caplog.set_level(logging.INFO, "test")
    job = ToyJob(output=tmp_path / "iter_00" / "toy")
    phase_task.run(job, ScoredPairs)
    display.current.close()
    first, second, last = caplog.messages
    assert first == "iter 00 · toy: 1 of 96 steps  loss 0.6931"
    assert second == "iter 00 · toy: 96 of 96 steps  loss 0.521"
    assert re.fullmatch(r"iter 00 · toy: 96 steps in \d+ s, loss 0\.6931 → 0\.5210", last)
    shown = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in shown] == ["running", "running", "done"]
    assert shown[-1].endswith(" s 96 steps       loss 0.6931 → 0.5210"), "and it fits in 80 columns"
