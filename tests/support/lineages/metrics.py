"""Training steps of a small lineage, and the process that sends its points to sinks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from spin_core.config.metrics import MetricsConfig
from spin_core.lineage.lineage import Lineage
from spin_core.runtime.phase import scratch_of
from spin_core.store import files as store_files
from spin_core.tracking.sinks import last_events
from tests.support.lineages.small_lineage import json_lines

OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": ""}


def begin_training(lineage: Lineage, steps: int) -> Path:
    """Write an unfinished training of iteration 2 with this many finished steps."""
    folder = scratch_of(lineage.iteration(2) / "train")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "loss": 0.7 - step / 100, "grad_norm": None} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_bytes(json_lines(rows) + b'{"step": ')
    return folder


def follow(lineage: Lineage, *sinks: str, kill_after: float | None = None) -> str:
    """Send the lineage's points to sinks in the process that runs use. Returns its messages."""
    config = lineage.config.model_copy(update={"metrics": MetricsConfig(sinks=sinks)})
    store_files.write_json(lineage.root / "lineage.json", {"lineage": "tale", "config": config.model_dump(mode="json")})
    command = [sys.executable, "-m", "spin_core.tracking.follow", str(lineage.runs), "tale"]
    with subprocess.Popen(
        command, env={**os.environ, **OFFLINE}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if kill_after is not None:
            deadline = time.monotonic() + 60
            while last_events(lineage.root / "metrics" / "tensorboard").step < kill_after:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        messages, _ = process.communicate(timeout=120)
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
        return messages
