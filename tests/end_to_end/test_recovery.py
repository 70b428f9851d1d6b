"""Runs that die are detected and continued: kill -9 of what runs them, during a run, with a real server and worker.

Each run is the second iteration of one of the command line, without the results of its training and what follows it.
It must end with the same leaderboard.
"""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.server import watch
from tests.support.servers.served import Up, as_in_form, board, free_port, holder, stamps, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def up(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Serves no lineage at first; its database is the command line's."""
    started = Up(tmp_path_factory.mktemp("recovery") / "runs", free_port())
    shutil.copytree(finished.runs / ".prefect", started.runs / ".prefect")
    with started:
        yield started


def begun(up: Up, finished: Any, name: str) -> tuple[Path, Any]:
    """A run whose last training has just begun, and its lineage."""
    runs = up.runs / name
    for folder in ("whole", ".sft"):
        shutil.copytree(finished.runs / folder, runs / folder)
    root = runs / "whole"
    for made in ("train", "model", "eval", "jobs"):
        shutil.rmtree(root / "iter_01" / made)
    (root / "iter_01" / "record.json").unlink()
    run = up.trigger("spin", {**as_in_form(root), "runs": str(runs)})
    wait_for((root / "iter_01" / "jobs" / "train.pid").exists)
    return root, run


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_flow(up: Up, root: Path) -> None:  # noqa: ARG001
    kill([holder(root)])


def kill_worker(up: Up, root: Path) -> None:  # noqa: ARG001
    kill(up.alive("worker", "start"))


def kill_both(up: Up, root: Path) -> None:
    kill([*up.alive("worker", "start"), holder(root)])


def kill_server(up: Up, root: Path) -> None:  # noqa: ARG001
    kill(up.alive("flows.server.app"))


def down_and_up(up: Up, root: Path) -> None:  # noqa: ARG001
    output = up.spin("down").stdout
    assert output == "down; demo-whole will continue at the next spin up\n"
    assert up.end() == 0
    assert not up.alive()
    up.start()


def nothing(up: Up, root: Path) -> None:
    pass


LONGER = [
    pytest.param(nothing, strike, marks=pytest.mark.slow)
    for strike in (kill_flow, kill_worker, kill_both, kill_server, down_and_up)
]


@pytest.mark.parametrize(("in_training", "strike"), [(kill_server, kill_worker), *LONGER])
def test_a_run_that_is_struck_ends_with_the_same_leaderboard(
    up, finished, in_training: Callable[[Up, Path], None], strike: Callable[[Up, Path], None]
):
    """The kill comes when the evaluation of the last version has just begun; some had one in training before."""
    root, run = begun(up, finished, f"{in_training.__name__}-{strike.__name__}")
    in_training(up, root)
    wait_for((root / "iter_01" / "eval" / "jobs" / "self-play.pid").exists)
    before = stamps(root)
    strike(up, root)
    ended = up.finish(run)
    assert ended["state_name"] == "Completed", ended["state"]["message"]
    assert watch.starts(ended) == (1 if strike is kill_server else 2)
    now = stamps(root)
    assert {name: now[name] for name in before} == before, "nothing that was finished is made again"
    if strike is not kill_server:
        assert up.tasks(run)["train t=1"] == "Reused"
    assert board(root) == board(finished.runs / "whole")
    wait_for(lambda: set(up.task_states(run)) <= {"Completed", "Reused", "Crashed"})
    assert (watch.LATER in up.messages(run)) == (strike is down_and_up)


def test_other_machines_are_not_served_by_default(up):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", up.port), timeout=10)
    assert up.auth is not None, "other users of this machine are"


def test_the_end_of_its_terminal_is_the_end_of_all_that_it_has_started(up):
    assert up.end(signal.SIGHUP) == 0
    assert not up.alive()
