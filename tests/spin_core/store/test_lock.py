"""The lock of a lineage: one holder, free when its process ends."""

import os
import signal
import time

import pytest

from spin_core.errors import LineageBusy
from spin_core.store import lock
from tests.support.processes.children import python

HOLDER = """
    import sys, time
    from pathlib import Path
    from spin_core.store.lock import locked

    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_lineage_in_use_names_its_holder_and_is_free_after_kill_9(tmp_path):
    folder = tmp_path / "tale"
    holder = python(HOLDER, folder)
    assert holder.stdout.readline() == "held\n"
    busy = f"lineage tale is in use by process {holder.pid} on {os.uname().nodename}: wait for it to end"
    with pytest.raises(LineageBusy, match=busy), lock.locked(folder):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    with lock.locked(folder):
        pass


def test_a_waiting_process_gets_the_lock_when_its_holder_ends(tmp_path):
    holder = python(HOLDER.replace("60", "0.3"), tmp_path)
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    with lock.locked(tmp_path, wait=True):
        assert time.monotonic() - began > 0.1
    holder.communicate(timeout=10)


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock.locked(tmp_path):
        raise KeyError
    with lock.locked(tmp_path):
        pass
