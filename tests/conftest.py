"""Fixtures that every test may ask for, and the order in which files are shared out."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import tiny_model  # noqa: F401
from tests.support.servers import shared_server as prefect_server
from tests.support.servers.shared_server import server_url, shared_server  # noqa: F401

# Commands are shown as `spin …` where the shell finds it, as in an environment that is activated.
os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)
# Prefect's own test server asks its maker's service otherwise.
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
# Each process of tests has its own folder, so that its runs wait neither for other runs of this machine nor for those
# of the other processes.
os.environ["SPIN_TURNS"] = tempfile.mkdtemp(prefix="spin-turns-")
atexit.register(shutil.rmtree, os.environ["SPIN_TURNS"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that the processes that share the files out end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests out by file, as `--dist loadfile` does, with the files of one server as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "shared server" if file in prefect_server.FILES else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None
