"""The process that sends points to sinks."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.lineages.metrics import OFFLINE, follow


@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_the_password_of_an_unreachable_server_is_not_reported(lineage, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setitem(OFFLINE, "MLFLOW_TRACKING_URI", "http://me:planted@127.0.0.1:9")
    message = follow(lineage, "mlflow")
    assert message.startswith("metrics: mlflow failed and gets no more points: ")
    assert "127.0.0.1" in message
    assert "planted" not in message


def test_the_process_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'wandb', 'mlflow'}"
    code = f"import sys, spin_core.tracking.follow; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
