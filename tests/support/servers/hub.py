"""A hub for tests: what `huggingface_hub` asks for when it uploads a folder, on this machine."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_writer"


@dataclass
class Hub:
    """The repositories of a hub."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    """Whether each repository is private, by `models/user/name`."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """The files of each repository."""
    commits: int = 0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        """Status and JSON of the answer to a request."""
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            user = wanted.get("organization") or "me"
            name = f"{wanted.get('type', 'model')}s/{user}/{wanted['name']}"
            self.private[name] = wanted.get("private", False) or wanted.get("visibility") == "private"
            self.files[name] = {}
            return 200, {"url": f"{self.url}/{name.removeprefix('models/')}"}
        name, _, rest = path.removeprefix("/api/").partition("/preupload/")
        if rest:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": files}
        name, _, rest = path.removeprefix("/api/").partition("/commit/")
        if rest:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.commits += 1
            return 200, {
                "commitUrl": f"{self.url}/{name}/commit/{self.commits:040x}",
                "commitOid": f"{self.commits:040x}",
            }
        name = "/".join(path.removeprefix("/api/").split("/")[:3])
        if method == "GET" and name in self.files:
            return 200, {"id": name.partition("/")[2], "sha": "0" * 40, "siblings": []}
        return 404, {"error": "Repository not found"}


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that knows one token, which may write everywhere."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, value = 401, {"error": "Invalid username or password."}
            else:
                status, value = hub.answer(self.command, self.path.partition("?")[0], body)
            text = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_HEAD = handle_request

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
