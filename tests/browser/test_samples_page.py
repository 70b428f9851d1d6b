"""The exported page of samples in a real browser: it filters and searches, and runs nothing that it shows."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from spin_core.reports.samples import Column, Samples, Turn, Version
from spin_core.reports.samples_page import page as written

pytestmark = pytest.mark.slow

HOSTILE = [
    "<script>window.ran = 1</script>",
    '</script><script>window.ran = 1</script><img src=x onerror="window.ran = 1">',
    "\"quotes\" 'and' `backticks` ${window.ran = 1} &lt;b&gt; <!-- <script>",
    "</div><style>* { display: none }</style>",
]


def column(texts: list[str], lengths: list[int], cut: set[int] = frozenset()) -> Column:
    """Responses with these numbers of tokens, none of which loops."""
    ids = [np.arange(length, dtype=np.int32) + row for row, length in enumerate(lengths)]
    return Column(texts, ids, ["length" if row in cut else "stop" for row in range(len(texts))])


def samples(rows: int, *columns: Column, turns: tuple[Turn, ...] | None = None) -> Samples:
    """Prompts with one column of answers for each version."""
    versions = [
        Version(
            t, f"θ_{t}", answers, [f"θ_{t}"] * rows, [float(row - 1) if t == 0 else None for row in range(rows)], places
        )
        for places in [[[row] for row in range(rows)]]
        for t, answers in enumerate(columns)
    ]
    prompts = [turns or (Turn("", f"question {row}"),) for row in range(rows)]
    human = column([f"human {row}" for row in range(rows)], [10] * rows)
    return Samples("tale", "held-out", [str(row) for row in range(rows)], prompts, human, versions)


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a page of samples; fails if it writes to the console, opens a dialog, or loads something."""
    messages: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def visit(shown: Samples, address: str = "", width: int = 1280) -> Page:
        path: Path = tmp_path / "samples.html"
        path.write_text(written(shown, range(len(shown))), "utf-8")
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 800})
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: messages.append(request.url) if request.url.split("#")[0] != path.as_uri() else 0
        )
        page.goto(f"{path.as_uri()}{address}")
        return page

    yield visit
    context.close()
    assert messages == []


@pytest.fixture
def page(visit) -> Page:
    """Four prompts, two versions: one answer is cut, one empty, one the same on both sides."""
    first = column(["a red fox", "", "same words", "the Fox again"], [3, 1, 2, 40], cut={3})
    second = column(["a dog", "a cat", "same words", "long talk"], [2, 2, 2, 300])
    return visit(samples(4, first, second))


def numbers(page: Page) -> list[str]:
    return page.locator(".sample .number").all_inner_texts()


def test_the_page_shows_every_prompt_with_all_sides(page):
    expect(page.locator("#count")).to_have_text("4 of 4 prompts")
    card = page.locator(".sample").first
    expect(card.locator(".ask .text")).to_have_text("question 0")
    assert card.locator(".name").all_inner_texts() == ["human", "θ_0", "θ_1"]
    assert card.locator(".side .text").all_inner_texts() == ["human 0", "a red fox", "a dog"]
    expect(card.locator(".below")).to_have_text("margin −1.00")


def test_searching_counts_and_marks(page):
    page.keyboard.press("/")
    page.keyboard.type("fox")
    expect(page.locator("#count")).to_have_text("2 of 4 prompts")
    expect(page.locator("mark")).to_have_text(["fox", "Fox"])
    assert page.url.endswith("#find=fox")
    page.locator("#clear").click()
    expect(page.locator("#count")).to_have_text("4 of 4 prompts")
    page.locator("#find").fill("nowhere")
    expect(page.locator("#none")).to_be_visible()
    expect(page.locator("#count")).to_have_text("0 of 4 prompts")


@pytest.mark.parametrize(
    ("field", "value", "left"),
    [
        ("end", "length", ["#4"]),
        ("end", "stop", ["#1", "#2", "#3", "#4"]),
        ("only", "empty", ["#2"]),
        ("only", "differ", ["#1", "#2", "#4"]),
        ("only", "looping", []),
        ("least", "100", ["#4"]),
        ("most", "1", ["#2"]),
        ("sort", "longest", ["#4", "#1", "#2", "#3"]),
        ("sort", "margin", ["#1", "#2", "#3", "#4"]),
    ],
)
def test_filters_keep_the_matching_prompts(page, field, value, left):
    control = page.locator(f"#{field}")
    control.select_option(value) if field in ("end", "only", "sort") else control.fill(value)
    expect(page.locator("#count")).to_have_text(f"{len(left)} of 4 prompts")
    assert numbers(page) == left


def test_filters_look_at_the_shown_versions(page):
    page.locator("#least").fill("100")
    expect(page.locator("#count")).to_have_text("1 of 4 prompts")
    page.locator("#least").blur()
    page.keyboard.press("2")
    expect(page.locator("#count")).to_have_text("0 of 4 prompts")
    page.locator("#again").click()
    expect(page.locator("#count")).to_have_text("4 of 4 prompts")


def test_one_answer_must_match_all_filters(page):
    page.locator("#end").select_option("length")
    page.locator("#least").fill("100")
    expect(page.locator("#count")).to_have_text("0 of 4 prompts")


def test_the_address_keeps_the_filters(visit):
    first = column(["yes", "no"], [1, 1])
    page = visit(samples(2, first, first), "#find=no&versions=1")
    expect(page.locator("#count")).to_have_text("1 of 2 prompts")
    assert page.locator(".name").all_inner_texts() == ["human", "θ_1"]


def test_statistics_follow_the_filters(page):
    row = page.locator("#summary tbody tr").nth(1)
    expect(row).to_contain_text("θ_0")
    assert row.locator("td").nth(0).inner_text() == "4"
    page.locator("#end").select_option("length")
    expect(row.locator("td").nth(0)).to_have_text("1")
    assert row.locator("td").nth(3).inner_text() == "1 (100 %)"


def test_keys_move_from_prompt_to_prompt(page):
    for key, number in (("j", "#1"), ("j", "#2"), ("k", "#1")):
        page.keyboard.press(key)
        expect(page.locator(".sample:focus .number")).to_have_text(number)
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()


def test_hostile_text_is_shown_as_text_and_runs_nothing(visit):
    shown = samples(len(HOSTILE), column(HOSTILE, [5] * len(HOSTILE)), turns=(Turn("user", HOSTILE[1]), Turn("x", "y")))
    page = visit(shown)
    expect(page.locator("#count")).to_have_text(f"{len(HOSTILE)} of {len(HOSTILE)} prompts")
    assert page.locator(".side:not(.human) .text").all_inner_texts() == HOSTILE
    assert page.locator(".ask .turn .text").first.inner_text() == HOSTILE[1]
    page.locator("#find").fill("<script>")
    # Once in each prompt, and in three of the four answers.
    expect(page.locator("#list mark")).to_have_count(len(HOSTILE) + 3)
    assert page.locator("#list mark").all_inner_texts() == ["<script>"] * (len(HOSTILE) + 3)
    assert page.locator("#list script, #list img, #list style").count() == 0
    assert page.evaluate("window.ran") is None


def test_the_page_itself_forbids_other_scripts(browser, tmp_path):
    path = tmp_path / "samples.html"
    path.write_text(written(samples(1, column(["yes"], [1])), [0]), "utf-8")
    with browser.new_page() as page:
        page.goto(path.as_uri())
        expect(page.locator("#count")).to_have_text("1 of 1 prompts")
        blocked = page.evaluate(
            """() => new Promise((done) => {
                document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
                document.body.append(Object.assign(document.createElement("script"), {text: "window.ran = 1"}));
            })"""
        )
        assert blocked.startswith("script-src")
        assert page.evaluate("window.ran") is None


def test_five_thousand_prompts_are_drawn_when_they_are_reached(visit):
    rows = 5000
    answers = column([f"answer {row} " + "word " * 40 for row in range(rows)], [50] * rows)
    page = visit(samples(rows, answers, answers))
    expect(page.locator("#count")).to_have_text("5,000 of 5,000 prompts")
    before = page.locator(".sample").count()
    assert 0 < before < 200
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".sample").nth(before)).to_be_attached()
    page.locator("#find").fill("answer 4999")
    expect(page.locator("#count")).to_have_text("1 of 5,000 prompts")
    assert numbers(page) == ["#5000"]


def test_a_phone_shows_everything_without_scrolling_sideways(visit):
    shown = samples(2, column(["word " * 300, "x" * 400], [300, 1]), column(["b", "c"], [1, 1]))
    page = visit(shown, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("#end")).to_be_hidden()
    page.locator("#toggle").click()
    expect(page.locator("#end")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    card = page.locator(".sample").first
    folded = card.bounding_box()["height"]
    card.locator(".unfold").click()
    assert card.bounding_box()["height"] > folded
