"""Serve a version in OpenAI's protocol, by vLLM's server or that of transformers, until Ctrl-C."""

import contextlib
import os
import secrets
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from flows.server import state
from flows.server.serve import check_address
from spin_core.errors import ConfigError, TryAgain
from spin_core.inference import openai_server
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.model_folder import write_model_folder
from spin_core.runtime import interpreter, process
from spin_core.store.files import storage_errors
from spin_core.store.records import ModelVersion

START_SECONDS = 900.0
"""How long a server may take to load a model. Large ones on slow disks take minutes."""

Engine = Literal["auto", "vllm", "transformers"]


def choose_engine(lineage: Lineage, engine: Engine) -> str:
    """`vllm` where there is a GPU and vLLM's environment, or where it is asked for; otherwise `transformers`."""
    config = lineage.config
    chosen = interpreter.choose_engine(config.generate.model_copy(update={"engine": engine}), config.model)
    if chosen == "vllm":
        interpreter.required_python(config.generate.vllm, "--engine")
    return chosen


def token_file(runs: Path) -> Path:
    """The file with the token of all endpoints of a runs folder."""
    return state.state_folder(runs) / "serve-token"


def serve_version(
    lineage: Lineage, version: ModelVersion, name: str, port: int, engine: str, report: Callable[[str], None]
) -> None:
    """Serve a version on this machine's loopback address until this process is interrupted.

    Args:
        lineage: Its lineage.
        version: The version.
        name: What clients call it.
        port: The port to listen on.
        engine: `vllm` or `transformers`.
        report: Called with warnings, and with the address when the server is ready.

    Raises:
        ConfigError: The port is taken.
        TryAgain: The server does not start, or ends by itself.
    """
    check_address(openai_server.HOST, port, "spin serve")
    config = lineage.config
    token = _read_token(lineage.runs)
    log_file = state.state_folder(lineage.runs) / "serve.log"
    with _served_folder(lineage, version, name, report) as folder:
        if engine == "vllm":
            python = interpreter.vllm_python(config.generate.vllm)
            command = openai_server.vllm_command(python, folder, name, port, config.model, config.generate.vllm)
            secret = {openai_server.VLLM_TOKEN: token, "VLLM_NO_USAGE_STATS": "1"}
        else:
            command = openai_server.transformers_command(folder, port, config.model)
            secret = {openai_server.TOKEN: token}
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **secret}
        with (
            state.open_private(log_file) as log,
            process.guarded(
                command, env=environment, cwd=folder.parent, stdout=log, stderr=subprocess.STDOUT
            ) as server,
        ):
            try:
                url = f"http://{openai_server.HOST}:{port}"
                _wait_until_ready(server, url, log_file)
                report(f"θ_{version.t} of {lineage.name} answers at {url}/v1 as {name}, by {engine}")
                server.wait()
            finally:
                process.end_group(server)
        raise TryAgain(f"the server ended by itself (status {server.returncode}): see the end of {log_file}")


@contextlib.contextmanager
def _served_folder(lineage: Lineage, version: ModelVersion, name: str, report: Callable[[str], None]) -> Iterator[Path]:
    """A temporary folder of this name with the version. Its weights are linked, or adapters are merged into a copy."""
    scratch = Path(tempfile.gettempdir())
    with storage_errors(scratch), tempfile.TemporaryDirectory(prefix="spin-served-") as parent:
        folder = Path(parent) / name
        for warning in write_model_folder(version, lineage.config, folder, link=True):
            report(warning)
        yield folder


def _read_token(runs: Path) -> str:
    """The token in the file for clients, which is made by the first command."""
    file = token_file(runs)
    state.prepare_state(file.parent)
    if not file.exists():
        with state.open_private(file) as new:
            new.write(f"{secrets.token_urlsafe(24)}\n".encode())
    token = file.read_text("utf-8").strip()
    if not token:
        raise ConfigError(f"{file} is empty: remove it, and a new token is made")
    return token


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log_file: Path) -> None:
    """Wait until the server answers. Raises `TryAgain` if it ends, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TryAgain(f"the server did not start (status {server.returncode}): see the end of {log_file}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.2)
    raise TryAgain(f"the server was not ready within {START_SECONDS:.0f} s: see the end of {log_file}")
