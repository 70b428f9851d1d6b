"""A comparison's page in a real browser, wide and narrow: all its scores are there, and it loads nothing."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from spin_core.comparison import compare
from spin_core.comparison import page as comparison_page
from spin_core.comparison.compare import Arm, Table
from tests.support.lineages.small_lineage import suite_report

pytestmark = pytest.mark.slow

SUITES = ("open-llm-leaderboard", "big-bench")
METHODS = {
    "spin": ("θ_0", "θ_1", "θ_2"),
    "sft-steps": ("SFT, equal steps, lr 0.001",),
    "longer": ("iteration 0, 6 epochs",),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A comparison over three seeds, with two suites and twelve scores that are not of the headline."""
    root = tmp_path_factory.mktemp("compared")
    rng = np.random.default_rng(0)
    arms: dict[str, dict[int, Arm]] = {}
    for method, names in METHODS.items():
        for place, name in enumerate(names):
            for seed in (1, 2, 3):
                parts = {f"task_number_{n}": rng.random(12) + place / 2 for n in range(12)}
                tasks = {"heldout_nll": 3 - rng.random(12) / 9 - place / 2, **parts}
                tasks |= {suite: rng.random(12) / 9 + place / 4 for suite in SUITES}
                made = suite_report(root / f"{name}-{seed}" / "suite", name, tasks)
                x = place if method == "spin" else 6
                arms.setdefault(name, {})[seed] = Arm(method, name, x, [made], 10, 1000, 100)
    table = Table(
        name="trial",
        recipe="<b>demo</b>",
        main_metric="heldout_nll",
        headline=SUITES,
        lineages=("a", "b", "c"),
        epochs=(3, 6),
        prompts=96,
        lines=tuple(compare.line_of(by_seed, arms["θ_2"]) for by_seed in arms.values()),
        left_out={"dpo": compare.NO_PREFERENCES},
    )
    comparison_page.write(root / "report.html", table, "0.1.0")
    return root / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_all_scores_are_there_and_the_page_never_scrolls_sideways(browser, path, width):
    messages: list[str] = []
    with browser.new_page(viewport={"width": width, "height": 900}) as page:
        page.on("console", lambda message: messages.append(message.text))
        page.on("request", lambda request: messages.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        head, further = page.locator("table").all()
        for suite in SUITES:
            expect(head.locator("th", has_text=suite)).to_be_visible()
        expect(head.locator("tr", has_text="θ_0").locator("td").nth(4)).to_contain_text("*")
        assert further.locator("th", has_text="task number").count() == 12
        assert further.locator("th", has_text="minus SPIN").count() == 12
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert page.locator("script, img, link, iframe, b").count() == 0
        assert page.locator("figure svg").count() == 2
    assert messages == []
