"""Servers that others wrote, by which a version answers in OpenAI's protocol: vLLM's, or `transformers serve`.

`python -m spin_core.inference.openai_server FOLDER PORT DEVICE DTYPE` is the latter with a token, which it does not
have itself. Both servers take the token from the environment, since anyone may read command lines.
"""

import hmac
import os
import sys
from pathlib import Path
from typing import Any

from spin_core.config.generate import VllmConfig
from spin_core.config.model import ModelConfig

TOKEN = "SPIN_SERVE_TOKEN"
"""The environment variable with the token of `transformers serve`."""

VLLM_TOKEN = "VLLM_API_KEY"

HOST = "127.0.0.1"

_OPEN = "/health"
"""The path that needs no token: it says only that the server is up. vLLM does the same."""


def transformers_command(folder: Path, port: int, model: ModelConfig) -> list[str]:
    """The command that serves a model's folder with transformers. Run it in the folder's parent.

    Clients call a model by the path that the server was given, so that is the folder's name alone.
    """
    return [sys.executable, "-m", __spec__.name, folder.name, str(port), model.device, model.dtype]


def vllm_command(python: Path, folder: Path, name: str, port: int, model: ModelConfig, vllm: VllmConfig) -> list[str]:
    """The command that serves a model's folder with vLLM, under a name, with the settings of generations."""
    from spin_core.inference.vllm_engine import vllm_settings
    from spin_core.runtime.interpreter import sees_gpu

    on_cpu = model.device == "cpu" or not sees_gpu()
    settings = vllm_settings(model, vllm, on_cpu=on_cpu) | {"generation_config": "auto"}
    # What `vllm serve` runs. The command itself does not start in the build for CPUs.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", name, "--host", HOST, "--port", str(port)]
    for setting, value in settings.items():
        flag = setting.replace("_", "-")
        if value is True or value is False:
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            command += [f"--{flag}", str(value)]
    return command


class TokenRequired:
    """An ASGI application that answers 401 to requests without the token, and passes the others on."""

    def __init__(self, app: Any, token: str) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] == "http" and scope["path"] != _OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b'{"error": {"message": "wrong or missing token"}}'})
                return
        await self.app(scope, receive, send)


def main() -> None:
    """Serve a folder with transformers' own server, behind the token."""
    folder, port, device, dtype = sys.argv[1:]
    token = os.environ.pop(TOKEN)
    from transformers.cli.serve import Serve
    from transformers.cli.serving import server

    build_server = server.build_server

    def build_with_token(model_manager: Any, *arguments: Any, **settings: Any) -> Any:
        # Its own list has the models in the hub's cache, and fails without a cache.
        model_manager.get_gen_models = lambda: [{"id": folder, "object": "model", "created": 0, "owned_by": "spin"}]
        app = build_server(model_manager, *arguments, **settings)
        app.add_middleware(TokenRequired, token=token)
        return app

    server.build_server = build_with_token
    Serve(force_model=folder, host=HOST, port=int(port), device=device, dtype=dtype)


if __name__ == "__main__":
    main()
