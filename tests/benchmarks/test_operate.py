"""The pieces of the benchmark of operation that need no server."""

import asyncio
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import operate


def test_a_process_has_memory_and_time_and_its_children_belong_to_it():
    child = subprocess.Popen([sys.executable, "-c", "print(sum(range(10**6))); input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in operate.family(os.getpid())
        assert operate.family(child.pid) == [child.pid]
        assert 1 < operate.pss_mb([os.getpid()]) < operate.pss_mb([os.getpid(), child.pid])
        assert operate.cpu_seconds([os.getpid()]) > 0
    finally:
        child.communicate(b"\n")
    assert operate.pss_mb([child.pid]) == operate.cpu_seconds([child.pid]) == 0


def test_figures_are_a_median_with_its_range_and_a_ninth_decile():
    assert operate.middle([4.0, 1.0, 2.0]) == "2.00 s (1.00 to 4.00)"
    assert operate.tenth([float(number) for number in range(1, 11)]) == 10
    assert operate.tenth([float(number) for number in range(20)]) == 18
    assert operate.tenth([3.0]) == 3


def test_a_stage_that_does_not_exist_is_rejected(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["operate.py", "--only", "start,clikc"])
    with pytest.raises(SystemExit):
        operate.main()
    assert "there is no stage clikc: choose among start, click" in capsys.readouterr().err


def test_a_run_waits_from_when_it_was_due_until_it_is_taken(monkeypatch):
    import held_runs

    class Server:
        """Takes every second run at once, and the others never."""

        def __init__(self):
            self.due = {}

        async def create_flow_run_from_deployment(self, _deployment, state):
            run = SimpleNamespace(id=uuid4())
            self.due[run.id] = state.state_details.scheduled_time
            return run

        async def read_flow_run_states(self, run):
            taken = list(self.due).index(run) % 2 == 0
            return [SimpleNamespace(is_pending=lambda: taken, timestamp=self.due[run])]

    monkeypatch.setattr(held_runs, "DRAIN_SECONDS", 0.3)
    server = Server()
    delays = asyncio.run(held_runs.window(server, uuid4(), per_minute=600, seconds=0.4))
    assert delays[::2] == [0.0, 0.0]
    assert all(0.5 < delay < 5 for delay in delays[1::2])
    apart = [(after - before).total_seconds() for before, after in pairwise(server.due.values())]
    assert apart == pytest.approx([0.1] * 3)
