"""One Prefect server for all test files of a process: starting one takes longer than most tests that use it.

`tests/conftest.py` makes these fixtures known to all tests, and gives the files that use them to the same process.
"""

from collections.abc import Iterator

import pytest

FILES = (
    "tests/end_to_end/test_lost_runs.py",
    "tests/end_to_end/test_nightly_runs.py",
    "tests/end_to_end/test_regression.py",
    "tests/infra/test_automations.py",
    "tests/tasks/test_progress_artifact.py",
    "tests/tasks/test_publish.py",
    "tests/tasks/test_run_logs.py",
)
"""Test files that use `shared_server` in their own process, and take less than a minute each."""


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a server with an empty database, for flows and for commands."""
    from prefect.logging.handlers import APILogWorker
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

    from tests.support.servers.served import free_port

    database = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('server')}/prefect.db"
    server = SubprocessASGIServer(port=free_port())
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: database}):
        server.start(timeout=120)
    yield server.api_url
    APILogWorker.drain_all()  # what is not sent before the server ends is printed as an error
    server.stop()


@pytest.fixture(scope="module")
def shared_server(server_url: str) -> Iterator[str]:
    """That address, while it is also the one that flows of this process report to."""
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: server_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        # Prefect's own threads, such as the one that sends events, take the settings from here.
        _temporary_global_settings_context(get_settings_context()),
    ):
        yield server_url
