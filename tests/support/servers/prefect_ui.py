"""Prefect's pages as a person uses them: where things are, and how to do them."""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, TimeoutError, expect

from tests.support.servers.served import Up, wait_for

MILLISECONDS = 60_000
"""How long a page may take on a busy machine."""
RELOAD_MILLISECONDS = 4_000
FINISHED, RUNNING = (35, 158, 76), (8, 66, 155)
"""The graph's colours of task runs."""


def is_elsewhere(url: str) -> bool:
    return urlsplit(url).hostname != "127.0.0.1"


@dataclass
class Ui:
    """A page of the server of `spin up`, and actions on it."""

    up: Up
    page: Page
    folder: Path
    """The folder of pictures."""

    def go(self, path: str) -> None:
        self.page.goto(f"http://127.0.0.1:{self.up.port}/v2{path}")

    def sign_in(self) -> None:
        """Open the address that `spin up` has printed."""
        (line,) = [line for line in self.up.output if line.startswith("up: ")]
        self.page.goto(line.split()[1])
        expect(self.page.get_by_role("link", name="spin", exact=True).first).to_be_visible()

    def leave(self) -> None:
        """Leave the page: a run's page redraws its graph all the time, which takes a core where there is no GPU."""
        self.page.goto("about:blank")

    def wait_until_visible(self, locator: Locator) -> Locator:
        """The same locator, once it is visible. Reloads the page until then, since not all of it updates itself."""

        def is_there() -> bool:
            try:
                locator.wait_for(timeout=RELOAD_MILLISECONDS)
            except TimeoutError:
                self.page.reload()
                return False
            return True

        wait_for(is_there)
        return locator

    def picture(self, name: str, height: int = 900) -> None:
        """Take a picture of the page in a window of this height."""
        self.page.set_viewport_size({"width": 1280, "height": height})
        self.page.mouse.move(0, 0)
        self.page.screenshot(path=self.folder / f"{name}.png", animations="disabled")

    # The form

    def open_form(self) -> None:
        """Open the form of a run from the list of deployments."""
        self.go("/deployments")
        self.page.get_by_role("link", name="spin", exact=True).first.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        expect(self.field("recipe").locator("fieldset button").first).to_be_visible()

    def field(self, name: str) -> Locator:
        """A parameter, or a setting, with its name, its help and what it is filled in with."""
        return self.page.locator("div.group").filter(has=self.page.get_by_text(f"{name} (Optional)", exact=True)).last

    def choices(self, name: str) -> list[str]:
        """The options of a field's drop-down."""
        self.field(name).locator("fieldset button:not([role=tab])").first.click()
        options = self.page.get_by_role("option")
        expect(options.first).to_be_visible()
        texts = options.all_inner_texts()
        self.page.keyboard.press("Escape")
        expect(options).to_have_count(0)
        return texts

    def choose(self, name: str, choice: str) -> None:
        """Choose from a field's drop-down."""
        self.field(name).locator("fieldset button:not([role=tab])").first.click()
        # An event, not the mouse: the list moves while the page scrolls to it, and a click may find no resting place.
        self.page.get_by_role("option", name=choice, exact=True).dispatch_event("click")
        self.page.keyboard.press("Escape")

    def chosen(self, name: str) -> str:
        """The selected option of a field's drop-down."""
        return self.field(name).locator("fieldset button:not([role=tab])").first.inner_text()

    def fill(self, lineage: str, iterations: int) -> None:
        self.field("lineage").get_by_role("textbox").fill(lineage)
        self.field("iterations").get_by_role("spinbutton").fill(str(iterations))

    def fill_overrides(self, values: Mapping[str, Any]) -> None:
        """Fill in all other settings at once, as JSON."""
        self.show_overrides_as("JSON")
        editor = self.field("overrides").locator(".cm-content")
        expect(editor).to_be_visible()
        editor.click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(json.dumps(values))
        expect(editor).to_have_text(json.dumps(values))

    def show_overrides_as(self, kind: str) -> None:
        """Show them as a form, or as JSON. What was filled in stays."""
        self.field("overrides").get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name=f"Use {kind} input").click()

    def choose_suite(self, suite: str) -> None:
        """Choose a benchmark in the form of all settings."""
        self.field("evaluate").get_by_role("tab", name="change").first.click()
        self.choose("suites", suite)
        expect(self.field("suites").locator("fieldset").first).to_contain_text(suite)

    def submit(self) -> None:
        # By the keyboard: the button moves while the editor above it shrinks, and a click may miss it.
        self.page.get_by_role("button", name="Submit").press("Enter")

    def answered(self, path: str, act: Callable[[], None]) -> bool:
        """Whether the server has accepted the request of an action. It answers 503 if the database is busy."""
        with self.page.expect_response(lambda answer: answer.url.endswith(path)) as answer:
            act()
        assert answer.value.ok or answer.value.status == 503, answer.value.text()
        return answer.value.ok

    def start(self, name: str) -> Any:
        """Submit, and open the run; returns the run from the API."""
        wait_for(lambda: self.answered("/create_flow_run", self.submit))
        expect(self.page.get_by_role("tab", name="Upcoming")).to_be_visible()
        runs = self.page.get_by_role("tabpanel").get_by_role("listitem").filter(has_text="Running")
        self.wait_until_visible(runs.get_by_role("link", name=name)).first.click()
        expect(self.page.get_by_role("tab", name="Task Runs")).to_be_visible()
        return self.up.request("GET", f"/flow_runs/{urlsplit(self.page.url).path.rpartition('/')[2]}")

    # A run

    def open_run(self, run: Any, tab: str = "Task Runs") -> None:
        self.go(f"/runs/flow-run/{run['id']}")
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def state(self, name: str) -> Locator:
        """The run's state, below the run's name."""
        return self.page.get_by_role("main").get_by_text(name, exact=True).first

    def task(self, name: str, state: str) -> Locator:
        """A task run in a state, in the list of them."""
        rows = self.page.get_by_role("tabpanel").get_by_role("listitem")
        named = rows.filter(has=self.page.get_by_role("link", name=name, exact=True))
        return named.filter(has_text=state).first

    def act(self, item: str, button: str = "") -> None:
        """Choose from the run's menu, and confirm."""
        self.page.get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()
        if button:
            confirm = self.page.get_by_role("alertdialog").get_by_role("button", name=button, exact=True)
            wait_for(lambda: self.answered("/set_state", confirm.click))

    def graph_has(self, colour: tuple[int, int, int]) -> Callable[[], bool]:
        """Whether the run's graph has bars of that colour. It is a canvas, so only its pixels can be read."""

        def has() -> bool:
            drawn = Image.open(io.BytesIO(self.page.locator("canvas").first.screenshot())).convert("RGB")
            counts = drawn.getcolors(drawn.width * drawn.height) or []
            return (
                sum(n for n, pixel in counts if max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 16) > 100
            )

        return has

    # Artifacts

    def versions(self, key: str) -> Locator:
        """The versions of an artifact's timeline, the newest first, from the list of artifacts."""
        self.go("/artifacts")
        self.page.get_by_role("link", name=key).click()
        expect(self.page.get_by_text(f"Created {key}")).to_be_visible()
        return self.page.locator("main a[href*='/artifacts/artifact/']")

    def pictures(self) -> dict[str, int]:
        """The width of each picture of a page, by its alternative text; 0 if it has not loaded."""
        images = self.page.locator("main img[alt]:not([alt=''])").all()
        return {str(image.get_attribute("alt")): int(image.evaluate("one => one.naturalWidth")) for image in images}

    def sideways(self) -> int:
        """By how many pixels the page is wider than the window."""
        root = "document.documentElement"
        return int(self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))


def open_context(browser: Browser) -> BrowserContext:
    """A desktop window that can only connect to this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(MILLISECONDS)
    context.route(is_elsewhere, lambda route: route.abort())
    expect.set_options(timeout=MILLISECONDS)
    return context


@contextmanager
def signed_in(browser: Browser, up: Up, folder: Path) -> Iterator[Ui]:
    """A page that is signed in to a server. Its pictures go into `folder`, unless the environment names another."""
    context = open_context(browser)
    ui = Ui(up, context.new_page(), pictures_folder() or folder)
    ui.sign_in()
    yield ui
    context.close()


def pictures_folder() -> Path | None:
    """The folder for the README's pictures; None without SPIN_SCREENSHOTS."""
    return Path(os.environ["SPIN_SCREENSHOTS"]) if "SPIN_SCREENSHOTS" in os.environ else None
