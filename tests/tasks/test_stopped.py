"""What a run shows of a phase that ends without a result, and output that nobody reads."""

import logging
import os

import pytest
from prefect.exceptions import TerminationSignal

from spin_core.errors import STOPPED, DataError, Stopped
from spin_core.store.records import ScoredPairs
from tasks import display, phase_task
from tests.support.lineages.toy_phase import ToyJob


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (KeyboardInterrupt(), "stopped"),
        (TerminationSignal(signal=15), "stopped"),
        (Stopped(STOPPED), "stopped"),
        (DataError("wrong"), "failed"),
        (ValueError("a bug"), "failed"),
    ],
)
def test_a_phase_that_is_asked_to_end_is_stopped_and_not_failed(tmp_path, monkeypatch, capsys, error, shown):
    def run_phase(*_: object) -> None:
        raise error

    monkeypatch.setattr(phase_task.launch, "run_phase", run_phase)
    monkeypatch.setattr(phase_task, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(display, "current", display.Terminal())
    job = ToyJob(output=tmp_path / "iter_00" / "toy")
    with pytest.raises(type(error)):
        phase_task.run(job, ScoredPairs)
    display.current.close()
    assert capsys.readouterr().out.split() == [shown, *job.title.split()]


@pytest.mark.parametrize("reader_is_gone", [True, False], ids=["no reader", "full disk"])
def test_a_run_does_not_end_because_its_lines_cannot_be_written(monkeypatch, reader_is_gone):
    if reader_is_gone:
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr("sys.stdout", stream)
    terminal = display.Terminal()
    terminal.started("a phase")
    terminal.finished("a phase", 1.0)
    terminal.reused("a phase")
    terminal.noted("a note")
    terminal.close()
    with pytest.raises(OSError, match=r"Broken pipe|No space left"):
        stream.close()
