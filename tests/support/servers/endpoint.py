"""A small endpoint that speaks OpenAI's protocol over HTTP, and fails as real ones do, on request."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What is sent back."""

    status: int = 200
    text: str = "It is fair. [[7]]"
    """The judge's words; with another status than 200, the error's."""
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None
    raw: str | None = None
    """A body that is none of the protocol."""
    finish: str = "stop"
    """Why the judge's words end; `length` where they were cut."""
    seconds: float = 0.0


@dataclass
class Endpoint:
    """The server, and the requests that it got."""

    url: str
    reply: Callable[[dict[str, Any], int], Reply]
    """Of a request's body, and how often this very conversation came before."""
    models: list[str] | None = field(default_factory=lambda: ["tiny-judge", "other"])
    key: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    """Conversations that were answered with 200, and read to the end by the client."""
    keys: set[str] = field(default_factory=set)
    in_flight: int = 0
    most_in_flight: int = 0


@contextlib.contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply] | None = None, port: int = 0) -> Iterator[Endpoint]:
    """An endpoint on a free port of this machine."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.refused():
                return
            if endpoint.models is None or self.path != "/v1/models":
                self.send(404, {"error": {"message": "Not Found"}})
                return
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in endpoint.models]
            self.send(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.refused():
                return
            if self.path != "/v1/chat/completions":
                self.send(404, {"error": {"message": "Not Found"}})
                return
            conversation = json.dumps(body["messages"])
            with lock:
                before = sum(request["messages"] == body["messages"] for request in endpoint.requests)
                endpoint.requests.append(body)
                endpoint.keys.add(self.headers["authorization"])
                endpoint.in_flight += 1
                endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
            answer = endpoint.reply(body, before)
            time.sleep(answer.seconds)
            with lock:
                endpoint.in_flight -= 1
            if answer.raw is not None:
                self.send(answer.status, answer.raw, answer.headers)
            elif answer.status != 200:
                self.send(answer.status, {"error": {"message": answer.text, "code": answer.code}}, answer.headers)
            else:
                self.send(200, completion(body, answer))
                with lock:
                    endpoint.answered.append(conversation)

        def refused(self) -> bool:
            given = self.headers["authorization"]
            if endpoint.key is None or given == f"Bearer {endpoint.key}":
                return False
            self.send(401, {"error": {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}})
            return True

        def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignore errors of clients that were killed."""

    with Server(("127.0.0.1", port), Handler) as server:
        endpoint = Endpoint(
            f"http://127.0.0.1:{server.server_address[1]}/v1", reply or (lambda _body, _before: Reply())
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


def completion(body: dict[str, Any], answer: Reply) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": answer.finish, "message": message}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
    }
