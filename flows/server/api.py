"""A client of a Prefect server's API without Prefect, whose import takes seconds."""

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
import uuid
from typing import Any

from flows.server.state import OF_CLIENTS
from spin_core.errors import ConfigError, TryAgain


class Server:
    """A Prefect server."""

    def __init__(self, url: str, password: str = "") -> None:
        self.url = url
        self.headers = {"Content-Type": "application/json", "Prefect-Csrf-Client": str(uuid.uuid4())}
        if password:
            self.headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"

    def get(self, path: str) -> Any:
        """The server's answer to a GET request. Raises as `request` does."""
        return self.request("GET", path)

    def post(self, path: str, query: Any) -> Any:
        """The server's answer to a POST request. Raises as `request` does."""
        return self.request("POST", path, query)

    def patch(self, path: str, changes: Any) -> None:
        """Change something. Raises as `request` does."""
        self.request("PATCH", path, changes)

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The server's answer to a request; None if the answer is empty.

        Args:
            method: The HTTP method.
            path: Path of the API, as `/flow_runs/filter`.
            body: The JSON body; None for none.

        Raises:
            TryAgain: The server does not answer.
            ConfigError: It rejects the password.
        """
        try:
            try:
                return self._send(method, path, body)
            except urllib.error.HTTPError as error:
                if error.code != 403:
                    raise
            # CSRF protection: the server requires a token, which the client fetches and which expires.
            client = self.headers["Prefect-Csrf-Client"]
            self.headers["Prefect-Csrf-Token"] = self._send("GET", f"/csrf-token?client={client}")["token"]
            return self._send(method, path, body)
        # A server that is killed may send half an answer.
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 401:
                raise ConfigError(
                    f"the server at {self.url} rejects the password: set {OF_CLIENTS} to its name:password"
                ) from error
            raise TryAgain(f"the server at {self.url} does not answer ({error}): try again in a minute") from error

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api{path}", data, self.headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None


def healthy(url: str) -> bool:
    """Whether a Prefect server answers at `url`. No password is needed for that."""
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def is_reachable(address: str) -> bool:
    """Whether something answers at a PREFECT_API_URL, even with an error or with a certificate that is not trusted."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, http.client.HTTPException, ValueError):
        return False
