"""The pages at `/lineages/` in a browser, next to Prefect's on a real server: signed in, linked, and shut off."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from spin_core.reports.links import lineage_links
from tests.support.lineages.page_files import build_pages
from tests.support.servers.prefect_ui import MILLISECONDS, Ui, is_elsewhere, pictures_folder
from tests.support.servers.served import Up, free_port

pytestmark = pytest.mark.slow

HOSTILE = """<!doctype html><title>unchanged</title><script>
const found = [];
const attempt = (name, act) => {
  try { found.push(`${name}: ${act()}`); } catch (error) { found.push(`${name}: refused`); }
};
attempt("password", () => localStorage.getItem("prefect-password"));
attempt("cookies", () => document.cookie);
const asked = ["/api/admin/settings", "/lineages/", "https://example.org/"].map(
  address => fetch(address).then(answer => `${address}: ${answer.status}`, () => `${address}: refused`));
Promise.all(asked).then(answers => { document.title = [...found, ...answers].join("; "); });
</script>"""
"""A page that tries to reach the server as the person who reads it, and says in its title what it got."""


@pytest.fixture(scope="module")
def up(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:  # noqa: ARG001 (or none is served)
    runs = tmp_path_factory.mktemp("pages") / "runs"
    build_pages(runs, "mine")
    for name in ("report", "samples"):
        build_pages(runs, f"pulled-{name}")
        (runs / f"pulled-{name}" / f"{name}.html").write_text(HOSTILE)
    with Up(runs, free_port()) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIN_PAGES", "/lineages/")
        page = f"{lineage_links('mine', 1)}\n\n# Leaderboard of mine"
        started.request("POST", "/artifacts/", {"key": "leaderboard-mine", "type": "markdown", "data": page})
        yield started


@pytest.fixture(scope="module")
def elsewhere() -> list[str]:
    """Addresses of other hosts that the browser asked for."""
    return []


@pytest.fixture(scope="module")
def ui(browser: Browser, up: Up, elsewhere: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(MILLISECONDS)
    context.route(is_elsewhere, lambda route: (elsewhere.append(route.request.url), route.abort()))
    expect.set_options(timeout=MILLISECONDS)
    ui = Ui(up, context.new_page(), pictures_folder() or tmp_path_factory.mktemp("pictures"))
    ui.sign_in()
    yield ui
    context.close()


def go(ui: Ui, path: str) -> int:
    """Open a path of the server, and return the status of the answer."""
    answer = ui.page.goto(f"http://127.0.0.1:{ui.up.port}{path}")
    assert answer is not None
    return answer.status


def test_the_printed_address_opens_the_pages_without_the_password_being_typed(ui):
    assert go(ui, "/lineages/") == 200
    ui.picture("lineages", 420)
    ui.page.get_by_role("link", name="mine", exact=True).click()
    expect(ui.page.get_by_role("heading", name="mine")).to_be_visible()
    ui.picture("lineage", 620)
    ui.page.get_by_role("link", name="iteration 1").click()
    expect(ui.page.get_by_role("heading", name="mine: θ_1 → θ_2")).to_be_visible()
    assert ui.pictures() == {} or min(ui.pictures().values()) > 300
    ui.page.get_by_role("link", name="Lineages").click()
    ui.page.get_by_role("link", name="mine", exact=True).click()
    ui.page.get_by_role("link", name="Report").click()
    expect(ui.page.get_by_role("heading", name="mine: self-play report")).to_be_visible()


def test_what_signs_in_to_the_pages_does_not_sign_in_to_the_api(ui):
    go(ui, "/lineages/")
    assert go(ui, "/api/admin/settings") == 401


def test_without_the_password_the_browser_gets_nothing(browser, up):
    context = browser.new_context()
    page = context.new_page()
    with page.expect_response(lambda answer: answer.url.endswith("/lineages/?asked")) as answer:
        page.goto(f"http://127.0.0.1:{up.port}/lineages/")
    assert answer.value.status == 401
    expect(page.get_by_text("mine")).to_have_count(0)
    context.close()


def test_a_browser_that_was_started_again_still_opens_the_pages(browser, ui, up):
    """Its store is kept, and the passwords for HTTP's authentication are not."""
    context = browser.new_context(storage_state=ui.page.context.storage_state())
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{up.port}/lineages/mine/")
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    assert page.url == f"http://127.0.0.1:{up.port}/lineages/mine/"
    context.close()


def title_of(page: Page) -> str:
    """The page's title, once it has had time to change it."""
    page.wait_for_timeout(2000)
    return page.title()


def test_a_script_in_a_report_does_not_run(ui):
    assert go(ui, "/lineages/pulled-report/report.html") == 200
    assert title_of(ui.page) == "unchanged"


def test_a_script_in_a_samples_page_reaches_neither_the_password_nor_the_api(ui):
    assert go(ui, "/lineages/pulled-samples/samples.html") == 200
    ui.page.wait_for_function("document.title !== 'unchanged'")
    assert ui.page.title() == (
        "password: refused; cookies: refused; "
        "/api/admin/settings: refused; /lineages/: refused; https://example.org/: refused"
    )


def test_the_samples_page_filters_within_its_sandbox(ui):
    assert go(ui, "/lineages/mine/samples.html") == 200
    expect(ui.page.get_by_text("4 of 4 prompts")).to_be_visible()
    ui.page.get_by_role("searchbox").fill("tell me")
    expect(ui.page.get_by_text("1 of 4 prompts")).to_be_visible()


def test_a_deployment_and_an_artifact_lead_to_the_pages(ui, up):
    ui.go(f"/deployments/deployment/{up.deployment('spin')['id']}")
    ui.page.get_by_role("tab", name="Description").click()
    link = ui.page.get_by_role("link", name="all lineages")
    expect(link).to_be_visible()
    assert link.get_attribute("href") == "/lineages/"
    ui.versions("leaderboard-mine").first.click()
    for name, path in (("iteration 1", "/v2/artifacts/key/mine-iteration-01"), ("mine", "/lineages/mine/")):
        links = ui.page.locator(f"main a[href='{path}']")
        expect(links.filter(has_text=name).first).to_be_visible()
    with ui.page.expect_response(lambda answer: answer.url.endswith("/lineages/mine/")) as answer:
        ui.page.locator("main a[href='/lineages/mine/']").first.click()
    assert answer.value.status == 200


def test_prefects_pages_ask_no_other_host(ui, elsewhere):
    """This is the last test: it also judges what the pages of the tests above have asked for."""
    for path in ("/v2/dashboard", "/v2/runs", "/v2/artifacts", "/v2/settings", "/dashboard", "/runs", "/deployments"):
        go(ui, path)
        ui.page.wait_for_load_state("networkidle")
    assert elsewhere == []


def test_the_server_reports_nothing_to_its_maker(up):
    settings = up.request("GET", "/admin/settings")["server"]
    assert settings["analytics_enabled"] is False
    assert settings["ui"]["show_promotional_content"] is False
