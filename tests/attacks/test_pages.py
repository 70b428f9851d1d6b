"""Attacks on the pages at `/lineages/`: other users, web pages, and lineages that came from elsewhere."""

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.server.app import HostCheck
from flows.server.pages import Pages, rendered
from tests.support.lineages.page_files import build_comparison

SCRIPT = "<script>alert(1)</script>"
PATHS = ("/lineages", "/lineages/", "/lineages/pulled/", "/lineages/pulled/report.html", "/lineages/none")


async def prefect(scope, _receive, send) -> None:
    """What is behind the pages."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"prefect " + scope["path"].encode()})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a lineage that was pulled, next to a secret."""
    (tmp_path / "secret.html").write_text("the secret")
    runs = tmp_path / "runs"
    build_comparison(runs, "pulled")
    (runs / "pulled" / "lineage.json").write_text(json.dumps({"config": {"recipe": SCRIPT, "iterations": SCRIPT}}))
    row = {"name": SCRIPT, "t": 0, "gate": SCRIPT, "scores": {SCRIPT: {"value": 1.0, "stderr": 0.1}}}
    board = {"main_metric": SCRIPT, "rows": [row, row | {"t": 1}], "controls": [row | {"t": None}], "choice": SCRIPT}
    (runs / "pulled" / "leaderboard.json").write_text(json.dumps(board))
    (runs / "pulled" / "iter_00").mkdir()
    (runs / "pulled" / "iter_00" / "report.md").write_text(f"# {SCRIPT}\n\n{SCRIPT}\n\n[x](javascript:alert(1))")
    (runs / ".prefect").mkdir()
    (runs / ".prefect" / "report.html").write_text("the secret")
    return runs


@pytest.fixture
def client(runs: Path) -> TestClient:
    client = TestClient(HostCheck(prefect, {"testserver"}, Pages(runs, "spin:secret")), follow_redirects=False)
    client.auth = ("spin", "secret")
    return client


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !",
        "Basic c3Bpbg==",
        "Basic c3Bpbjo=",
        "Basic c3BpbjpzZWNyZXQgIA==",
        "Bearer c3BpbjpzZWNyZXQ=",
    ],
)
def test_without_the_password_nothing_is_shown_not_even_which_lineages_there_are(client, path, authorization):
    client.auth = None
    answer = client.get(path, headers={"authorization": authorization} if authorization else {})
    assert (answer.status_code, answer.text) == (401, "a password is needed")
    assert answer.headers["www-authenticate"].startswith("Basic ")


def test_a_server_without_a_password_shows_no_pages(runs):
    for given in ("", "Basic ", "Basic Og=="):
        answer = TestClient(Pages(runs, "")).get("/lineages/", headers={"authorization": given})
        assert answer.status_code == 401


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(client, path, method):
    assert client.request(method, path).status_code in (307, 404, 405), "307 adds the slash at the end of a path"


@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_host_name_is_rejected(client, path):
    assert client.get(path, headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.html", "..%2fsecret.html", "%2e%2e/secret.html", "pulled/..%2f..%2fsecret.html", "..", "."),
        *("pulled/../../secret.html", "%2e%2e/report.html", "../report.html", ".prefect/report.html"),
        *("/etc/passwd", "pulled/lineage.json", "pulled/leaderboard.json", "pulled/compare.json"),
        *("pulled/iter_00/report.md", "pulled/report.html/..", "pulled/iteration/..%2f", "pulled/iteration/-1"),
        *("pulled\0/report.html", "pulled/report.html\0", "pulled%00/report.html", "PULLED/report.html", "pulled/%2e"),
    ],
)
def test_only_the_pages_of_lineages_are_served(runs, path):
    """The path is given to the application as it is: a client, unlike a browser, does not normalise it."""
    sent = []

    async def send(message) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": "http", "method": "GET", "path": f"/lineages/{path}".replace("%2f", "/").replace("%2e", ".")
        .replace("%00", "\0"), "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"testserver"), (b"authorization", b"Basic c3BpbjpzZWNyZXQ=")],
        "server": ("testserver", 80), "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1),
    }  # fmt: skip
    import asyncio

    asyncio.run(Pages(runs, "spin:secret")(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    assert sent[0]["status"] in (404, 307), body
    assert b"the secret" not in body


def test_a_path_that_only_begins_alike_is_prefects(client):
    assert client.get("/lineages-of-others").text == "prefect /lineages-of-others"


@pytest.mark.parametrize("kind", ["file", "folder", "lineage", "to another lineage"])
def test_a_symbolic_link_is_not_followed(client, runs, tmp_path, kind):
    report = runs / "pulled" / "report.html"
    if kind in ("file", "to another lineage"):
        report.unlink()
        report.symlink_to(tmp_path / "secret.html" if kind == "file" else runs / ".prefect" / "report.html")
    elif kind == "folder":
        page = runs / "pulled" / "iter_00"
        (page / "report.md").rename(tmp_path / "report.md")
        page.rmdir()
        page.symlink_to(tmp_path)
        assert client.get("/lineages/pulled/iteration/0").status_code == 404
        return
    else:
        (runs / "pulled").rename(tmp_path / "pulled")
        (runs / "pulled").symlink_to(tmp_path / "pulled")
        assert client.get("/lineages/pulled/").status_code == 404
        assert "/lineages/pulled/" not in client.get("/lineages/").text
    assert client.get("/lineages/pulled/report.html").status_code == 404


def test_names_and_values_from_a_lineages_files_are_text(client, runs):
    (runs / "<img src=x>").mkdir()
    (runs / "<img src=x>" / "lineage.json").write_text("{}")
    for path in ("", "pulled/", "pulled/iteration/0", "<script>/"):
        page = client.get(f"/lineages/{path}").text
        assert "<script" not in page
        assert "<img" not in page
        assert "javascript:" not in page.replace("(javascript:alert(1))", "")
    assert "&lt;script&gt;" in client.get("/lineages/").text


def test_markup_in_an_iterations_page_is_text():
    assert rendered("a <b>x</b> <br>") == "<p>a &lt;b&gt;x&lt;/b&gt; <br></p>\n"
    assert "<iframe" not in rendered("<iframe src=x></iframe>\n")


@pytest.mark.parametrize("path", [*PATHS, "/lineages/pulled/iteration/0"])
def test_every_answer_is_sandboxed_and_loads_nothing(client, path):
    for answer in (client.get(path), client.head(path), client.post(path)):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert policy.endswith("; sandbox")
        assert "script-src" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "private, no-cache"


def test_only_the_samples_page_may_run_a_script_and_in_an_origin_of_its_own(client, runs):
    (runs / "pulled" / "samples.html").write_text("samples")
    policy = client.get("/lineages/pulled/samples.html").headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'none'; sandbox allow-scripts")
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src" not in policy


def test_prefects_own_pages_may_connect_to_this_server_alone(client, runs, monkeypatch):
    policy = client.get("/v2/runs").headers["content-security-policy"]
    assert "connect-src 'self';" in policy
    monkeypatch.setenv("PREFECT_UI_API_URL", "https://spin.example.org/api")
    check = HostCheck(prefect, {"testserver"}, Pages(runs, "spin:secret"))
    policy = TestClient(check).get("/v2/runs").headers["content-security-policy"]
    assert "connect-src 'self' https://spin.example.org wss://spin.example.org;" in policy
    monkeypatch.setenv("PREFECT_UI_API_URL", "https://a.example; script-src *")
    assert "example" not in TestClient(HostCheck(prefect, {"testserver"})).get("/").headers["content-security-policy"]
