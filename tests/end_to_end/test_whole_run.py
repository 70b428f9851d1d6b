"""One whole run in minutes, with a real server, worker and phases: started, killed in a phase, and continued.

`spin up` serves a folder. The command line makes a run there without interruption. It begins a second one, which is
killed while it generates and continued through the worker. Both must have the same digests.
"""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers.served import Up, as_in_form, board, free_port, holder, stamps, wait_for

ITERATIONS = ["--iterations", "1"]
SETTINGS = ["--set=controls={}", "--set=prompts.sample=48", "--set=generate.shard_size=2"]
"""Shards of two prompts, so that there is time to kill between the first and the last."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A `spin up` with an empty folder."""
    with Up(tmp_path_factory.mktemp("up") / "runs", free_port()) as started:
        yield started


@pytest.fixture(scope="module")
def player(up: Up, player_in: Any) -> Any:
    """The command line for the same folder: it finds the server that is up."""
    return player_in(up.runs)


@pytest.fixture(scope="module")
def undisturbed(player: Any) -> Path:
    """A run from start to end, with all phases in one process."""
    player.spin(*player.arguments("undisturbed", *ITERATIONS, *SETTINGS), one_process=True)
    return player.runs / "undisturbed"


@pytest.fixture(scope="module")
def killed(player: Any, undisturbed: Path) -> Path:  # noqa: ARG001 (it trains the first version for both)
    """The same run, whose process was killed as soon as the first answers existed."""
    root = player.runs / "killed"
    process = subprocess.Popen(
        player.play("killed", *ITERATIONS, *SETTINGS), env=player.environment(), stdout=subprocess.DEVNULL
    )
    work = root / "iter_00"
    wait_for(lambda: list(work.glob(".generations.partial/shard-*.parquet")) or process.poll() is not None)
    assert process.poll() is None
    assert holder(root) == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    return root


@pytest.fixture(scope="module")
def continued(up: Up, killed: Path) -> tuple[Any, dict[str, int]]:
    """The run through the worker that continued it, once it has ended; and what was published before."""
    assert not (killed / "iter_00" / "generations").exists()
    before = stamps(killed)
    assert set(before) == {"iter_00/prompts/manifest.json", "base/eval/self-play/manifest.json"}
    return up.finish(up.trigger("spin", as_in_form(killed))), before


def test_a_run_through_the_worker_completes_a_run_that_was_killed_in_a_phase(up, killed, continued):
    run, before = continued
    assert run["state_name"] == "Completed", run["state"]["message"]
    assert (run["name"], run["run_count"]) == ("demo-killed", 1)
    now = stamps(killed)
    assert {name: now[name] for name in before} == before, "nothing that was finished is made again"
    tasks = up.tasks(run)
    assert tasks["train sft"] == tasks["prepare prompts"] == tasks["evaluate θ_0 self-play"] == "Reused"
    assert tasks["generate t=0"] == tasks["train t=0"] == "Completed"


@pytest.mark.usefixtures("continued")
def test_it_ends_with_the_digests_and_the_scores_of_an_undisturbed_run(player, killed, undisturbed):
    assert player.digests("killed") == player.digests("undisturbed")
    ended, whole = (
        [(row["t"], row["digest"], row["scores"]) for row in board(root)["rows"]] for root in (killed, undisturbed)
    )
    assert [t for t, *_ in ended] == [0, 1]
    assert ended == whole


@pytest.mark.usefixtures("continued")
def test_spin_down_ends_server_worker_and_all_that_they_started(up):
    assert up.alive("worker", "start")
    assert up.spin("down").stdout == "down\n"
    assert up.end() == 0
    assert not up.alive()
    assert not (up.runs / ".prefect" / "server.url").read_text()
