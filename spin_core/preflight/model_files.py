"""The check of a model's files before every run: `python -m spin_core.preflight.model_files` with settings on stdin.

It needs torch, which a process that starts runs does not load otherwise, and it reads files that anybody may have made.
So it runs in a process of its own, with a limit of time. Where torch is loaded already, it runs in this process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from spin_core import errors
from spin_core.config.base import may_be_hub_name
from spin_core.config.model import ChatConfig, ModelConfig
from spin_core.config.run import RunConfig
from spin_core.errors import ModelError, SpinError
from spin_core.runtime.process import DEFAULTS, die_with_parent
from spin_core.store.identity import MANIFEST

SECONDS = 300.0
"""The longest that the check may take. It reads at most a few GB, and needs about five seconds without them."""

_passed: set[tuple[object, ...]] = set()
"""What this process has checked: settings, and when each file was changed. A comparison prepares many runs."""


def check_model_files(config: RunConfig, base: Path) -> None:
    """Check weights, configuration, tokenizer and chat template, unless θ_0 is in the lineage already.

    A model on the hub is checked when it has been fetched, by phase `base`.

    Args:
        config: the run's settings.
        base: where θ_0 is published, or will be.

    Raises:
        SpinError: what is wrong, in one line.
    """
    source = Path(config.model.path).expanduser()
    if not config.model.path or (base / MANIFEST).exists():
        return
    if not source.is_dir():
        if not may_be_hub_name(config.model.path):
            raise ModelError(f"{config.model.path} is not a folder: set model.path to a model's folder or a hub name")
        return
    settings = json.dumps(
        {
            "source": str(source.resolve()),
            "model": config.model.model_dump(mode="json"),
            "chat": config.chat.model_dump(mode="json"),
        }
    )
    state = settings, tuple((file.name, file.stat().st_mtime_ns) for file in sorted(source.iterdir()) if file.exists())
    if state in _passed:
        return
    if "torch" in sys.modules:
        _check(settings)
    else:
        _check_in_a_process(source, settings)
    _passed.add(state)


def _check_in_a_process(source: Path, settings: str) -> None:
    """The check in a process that ends with this one."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spin_core.preflight.model_files"],
            input=settings, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
            env={**DEFAULTS, **os.environ, "SPIN_PARENT": str(os.getpid())},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{source} could not be checked within {SECONDS:.0f} s: run spin check, and see whether its disk is slow"
        ) from error
    lines = done.stdout.splitlines()
    if done.returncode == SpinError.exit_code and lines:
        kind, message = json.loads(lines[-1])
        raise getattr(errors, kind)(message)
    if done.returncode:
        raise ModelError(
            f"{source} could not be checked, because the process that reads it ended with status {done.returncode}: "
            "run spin check, and see whether memory is short"
        )


def main() -> None:
    """Check what stdin names, and print the error's type and message as JSON."""
    die_with_parent()
    try:
        _check(sys.stdin.read())
    except SpinError as error:
        print(json.dumps([type(error).__name__, str(error)]))
        sys.exit(error.exit_code)


def _check(settings: str) -> None:
    from spin_core.models.base_model import check_model

    values = json.loads(settings)
    model, chat = ModelConfig.model_validate(values["model"]), ChatConfig.model_validate(values["chat"])
    check_model(Path(values["source"]), model, chat)


if __name__ == "__main__":
    main()
