"""The pages at `/lineages/`: what they show, of hundreds of lineages too."""

import fcntl
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from flows.server import catalogue
from flows.server.pages import Pages, sparkline
from tests.support.lineages.page_files import build_comparison, build_pages
from tests.support.lineages.small_lineage import NLLS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("pages") / "runs"
    build_pages(runs, "mine")
    build_pages(runs, "falls", (*NLLS[:2], NLLS[0]), ["gate.rule=stop"])
    build_pages(runs, "trial-seed-1", NLLS[:2])
    build_comparison(runs, "trial")
    return runs


@pytest.fixture(scope="module")
def client(runs: Path) -> TestClient:
    return client_of(runs)


def client_of(runs: Path) -> TestClient:
    """A client with the password."""
    client = TestClient(Pages(runs, "spin:secret"))
    client.auth = ("spin", "secret")
    return client


def row(page: str, name: str) -> str:
    """The texts of a lineage's row in the index."""
    (found,) = re.findall(rf'<tr>\s*<th scope="row"><a href="/lineages/{name}/">.*?</tr>', page, re.DOTALL)
    return " ".join(re.sub(r"<title>.*?</title>|<[^>]+>", " ", found).replace("&nbsp;", " ").split())


def test_the_index_has_versions_score_state_and_change_of_each_lineage(client):
    page = client.get("/lineages/").text
    assert re.fullmatch(r"mine demo 3 θ_2 2.90 ± 0.41 heldout nll ↓ 20\d\d-\d\d-\d\d \d\d:\d\d", row(page, "mine"))
    assert "3 θ_1 3.00 ± 0.43 heldout nll ↓ ended by the gate 20" in row(page, "falls")
    assert page.count("<polyline") == 3
    assert page.index("/lineages/trial-seed-1/") < page.index("/lineages/falls/") < page.index("/lineages/mine/")
    assert '<a href="/lineages/trial/report.html">' in page


def test_a_lineages_page_leads_to_all_that_it_has(client):
    page = client.get("/lineages/mine/").text
    for path in ("report.html", "samples.html", "iteration/0", "iteration/1"):
        assert f'href="/lineages/mine/{path}"' in page
        assert client.get(f"/lineages/mine/{path}").status_code == 200
    assert 'href="/v2/artifacts/key/leaderboard-mine"' in page
    assert "θ_2 ◂" in page
    assert 'href="/lineages/trial/report.html"' in client.get("/lineages/trial-seed-1/").text


def test_the_files_are_sent_as_they_are_below_links_to_the_other_pages(client, runs):
    for path in ("mine/report.html", "mine/samples.html", "trial/report.html"):
        sent = client.get(f"/lineages/{path}").text
        bar = re.search("<p>&emsp;.*?</p>", sent, re.DOTALL)[0]
        assert sent.replace(bar, "") == (runs / path).read_text()
        links = re.findall('href="([^"]+)"', bar)
        pages = ["./", "report.html", "samples.html"] if path.startswith("mine") else ["report.html"]
        assert links == ["/lineages/", *pages]


def test_an_iterations_page_has_its_tables_pictures_and_samples(client):
    page = client.get("/lineages/mine/iteration/1").text
    assert "<h1>mine: θ_1 → θ_2</h1>" in page
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "<b>bold</b>" not in page, "a prompt's own markup is text"
    assert "&lt;b&gt;bold&lt;/b&gt; | *stars*<br" in page


def test_what_is_missing_is_said_on_a_page(client):
    for path in (
        "nothing/",
        "nothing/report.html",
        "mine/iteration/7",
        f"mine/iteration/{9:05000}",
        "mine/x.html",
        "mine",
    ):
        answer = client.get(f"/lineages/{path}", follow_redirects=path == "mine")
        assert (answer.status_code, "All lineages" in answer.text) == ((200, False) if path == "mine" else (404, True))


def test_the_index_without_lineages_says_how_to_start(tmp_path):
    assert "spin run demo" in client_of(tmp_path).get("/lineages/").text


def test_a_lineage_that_a_run_has_locked_is_running(client, runs):
    with (runs / "mine" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "running" in row(client.get("/lineages/").text, "mine")
    assert "running" not in row(client.get("/lineages/").text, "mine")


def test_an_iteration_that_no_run_continues_is_named(client, runs):
    (runs / "mine" / "iter_02").mkdir()
    assert "not running, in iteration 2" in row(client.get("/lineages/").text, "mine")
    (runs / "mine" / "iter_02").rmdir()


HUGE = "1" + "0" * 400

DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '{"rows": 3}',
    '{"rows": [{"scores": []}]}',
    "[" * 10_000,
    f'{{"main_metric": "m", "rows": [{{"t": 0, "scores": {{"m": {{"value": {HUGE}, "stderr": {HUGE}}}}}}}]}}',
    f'{{"choice": {HUGE}, "rows": [{{"t": {HUGE}}}, {{"t": true}}, {{"t": -1}}, {{"t": 1e9}}]}}',
    r'{"main_metric": "\ud800", "rows": [{"t": 0, "name": "\udfff"}]}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_leaderboard_leaves_the_index_readable(tmp_path, content):
    build_comparison(tmp_path, "damaged")
    (tmp_path / "damaged" / "lineage.json").write_text('{"config": {"recipe": "demo"}}')
    (tmp_path / "damaged" / "leaderboard.json").write_text(content)
    for path in ("", "damaged/"):
        assert client_of(tmp_path).get(f"/lineages/{path}").status_code == 200


def test_a_configuration_with_huge_numbers_and_times_leaves_the_index_readable(tmp_path):
    (tmp_path / "damaged").mkdir()
    file = tmp_path / "damaged" / "lineage.json"
    file.write_text(rf'{{"config": {{"recipe": "\ud800", "iterations": {HUGE}}}}}')
    os.utime(file, (2**40, 2**40))
    for path in ("", "damaged/"):
        assert client_of(tmp_path).get(f"/lineages/{path}").status_code == 200
    entry = catalogue.Catalogue(tmp_path).lineage("damaged")
    assert entry is not None
    assert entry.iterations is None


def test_an_iterations_page_that_is_too_large_is_named_and_not_rendered(tmp_path):
    build_comparison(tmp_path, "large")
    (tmp_path / "large" / "lineage.json").write_text('{"config": {"recipe": "demo"}}')
    (tmp_path / "large" / "iter_00").mkdir()
    (tmp_path / "large" / "iter_00" / "report.md").write_bytes(b"*a* " * 2**19 + b"b")
    answer = client_of(tmp_path).get("/lineages/large/iteration/0")
    assert answer.status_code == 200
    assert "iter_00/report.md is larger than 2 MiB: read it in an editor." in answer.text
    assert len(answer.text) < 20_000


@pytest.mark.parametrize("page", ["report.html", "samples.html", "iteration/0"])
def test_a_file_that_is_deleted_after_it_was_looked_up_is_missing(client, runs, monkeypatch, page):
    monkeypatch.setattr(catalogue.Catalogue, "file", lambda *_: runs / "mine" / "deleted")
    answer = client.get(f"/lineages/mine/{page}")
    assert answer.status_code == 404
    assert "All lineages" in answer.text


def test_hundreds_of_lineages_are_read_once_and_then_shown_at_once(runs, tmp_path, monkeypatch):
    board = json.loads((runs / "mine" / "leaderboard.json").read_text("utf-8"))
    for number in range(300):
        root = tmp_path / f"lineage-{number:03d}"
        root.mkdir()
        shutil.copy(runs / "mine" / "lineage.json", root)
        (root / "leaderboard.json").write_text(json.dumps(board))
    reads = []
    real = json.loads
    monkeypatch.setattr(catalogue.json, "loads", lambda text: (reads.append(text), real(text))[1])
    client = client_of(tmp_path)
    assert client.get("/lineages/").text.count("<polyline") == 300
    assert len(reads) == 600
    began = time.process_time()
    client.get("/lineages/")
    assert time.process_time() - began < 1
    assert len(reads) == 600
    changed = board | {"choice": 1}
    (tmp_path / "lineage-007" / "leaderboard.json").write_text(json.dumps(changed))
    assert "θ_1" in row(client.get("/lineages/").text, "lineage-007")
    assert len(reads) == 601


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.09441, 0.00301, "0.0944 ± 0.0030"),
        (12.345, 1.2, "12.3 ± 1.2"),
        (1234.5, 120.0, "1234 ± 120"),
        (0.5, None, "0.5"),
        (0.5, 0.0, "0.5"),
        (0.5, 1e-12, "0.500000 ± 0.000000"),
        (None, None, "–"),
    ],
)
def test_a_score_has_the_digits_that_its_error_justifies(value: Any, error: Any, text: str):
    assert catalogue.shown(value, error) == text


def test_a_spark_line_goes_through_the_values_from_left_to_right():
    line = sparkline([1.0, 3.0, 2.0])
    assert 'points="3.0,21.0 48.0,3.0 93.0,12.0"' in line
    assert "<title>1 → 3 → 2</title>" in line
    assert sparkline([1.0]) == sparkline([]) == ""
    assert 'points="3.0,12.0 93.0,12.0"' in sparkline([2.0, 2.0])


def test_a_browser_that_does_not_know_the_password_is_sent_to_where_it_is_kept(client, runs):
    browser = TestClient(Pages(runs, "spin:secret"), follow_redirects=False, headers={"Accept": "text/html,*/*"})
    answer = browser.get("/lineages/mine/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?to=/lineages/mine/")
    asked = browser.get("/lineages/mine/?asked")
    assert (asked.status_code, asked.headers["www-authenticate"][:5]) == (401, "Basic"), "no further redirect"
    again = client.get("/lineages/mine/?asked", follow_redirects=False)
    assert (again.status_code, again.headers["location"]) == (303, "/lineages/mine/")
    assert TestClient(Pages(runs, "spin:secret")).get("/lineages/").status_code == 401, "no browser"


def test_every_page_says_how_old_it_is_in_which_time_zone(client):
    for path in ("", "mine/", "mine/iteration/0"):
        page = client.get(f"/lineages/{path}").text
        assert re.search(r"As of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, times in UTC[+-]\d{4}\.", page)
    assert not re.search(r"<th[^>]*></th>", client.get("/lineages/").text), "each column has a heading"
