"""A lineage's report in a real browser: wide, narrow, dark and printed; it loads nothing and runs nothing it shows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from spin_core.reports import html
from tests.support.lineages.small_lineage import build_lineage, suite_report
from tests.support.lineages.small_lineage import report as publish_report

HOSTILE = [
    '</td></table><script>window.ran = 1</script><img src=x onerror="window.ran = 1">',
    "<style>* { display: none }</style> <!-- <b>",
    "http://127.0.0.1:9/x.png " + "w" * 400,
    "&lt;b&gt; \"quotes\" 'and' $title",
]
SUITE = "open-llm-leaderboard"
PAPER = [*(f"paper θ_{t}" for t in range(5)), "paper SFT +1 epoch", "paper DPO", "paper θ_4 + DPO"]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The report of three versions with a suite, a control, and answers that would be markup."""
    lineage = build_lineage(tmp_path_factory.mktemp("runs"), sets=[f"evaluate.suites=[{SUITE}]"])
    publish_report(lineage.control("sft-lr-0.001") / "eval" / "self-play", "c" * 64, (1.9, 2.9, 3.9, 4.9))
    for t in range(3):
        values = {f"task_number_{n}": [0, 1, n % 2, float(t > 0)] for n in range(9)} | {"gsm8k": [0, 1, 1, 0]}
        suite_report(lineage.eval_folder(t) / SUITE, f"{t}" * 64, values, {SUITE: tuple(values)})
        answers_file = lineage.eval_folder(t) / "self-play" / "held_out.parquet"
        table = pq.read_table(answers_file)
        place = table.column_names.index("generated")
        pq.write_table(table.set_column(place, "generated", pa.array(HOSTILE)), answers_file)
    return html.write(lineage)


@pytest.fixture
def visit(browser, path):
    """Opens the report; fails if it writes to the console, or requests anything but itself."""
    messages: list[str] = []
    context = browser.new_context()

    def visit(width: int = 1280, scheme: str = "light") -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: messages.append(request.url) if request.url != path.as_uri() else 0)
        page.goto(path.as_uri())
        return page

    yield visit
    context.close()
    assert messages == []


def sideways(page: Page) -> int:
    """By how much the page is wider than what one sees of it."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_the_report_has_all_its_parts(visit):
    page = visit()
    parts = ["Leaderboard", "Gate", "Training", "Answers", "Samples", "Cost", "Records"]
    assert page.locator("nav a").all_inner_texts() == page.locator("h2").all_inner_texts() == parts
    first = page.locator("table").first
    assert first.locator("tbody th").all_inner_texts() == ["θ_0", "θ_1", "θ_2 ◂", "sft-lr-0.001"]
    suite = page.locator("table", has=page.get_by_text("paper DPO")).first
    assert suite.locator("tbody th").all_inner_texts()[3:] == PAPER
    row = first.locator("tr", has_text="θ_1").first
    expect(row.locator("td").first).to_have_text("3.00 ± 0.43 *")
    assert row.locator("td").first.get_attribute("class") == "better", "a likelihood that falls is better"
    assert "against θ_0: -0.500 [-0.56" in row.locator("td").first.get_attribute("title")
    expect(page.locator("#gate")).to_contain_text("heldout_nll 2.9 against 3 of θ_1")
    expect(page.locator("#cost tbody tr").last).to_contain_text("16.5")
    expect(page.locator("#cost tr", has_text="train").first).to_contain_text("14")


def test_every_plot_is_drawn_in_the_pages_own_colours(visit):
    page = visit()
    drawn = page.locator("figure svg")
    # A score, an average and nine tasks that change, two training metrics, the lengths and the seconds.
    assert drawn.count() == 1 + 10 + 2 + 1 + 1
    sizes = drawn.evaluate_all("all => all.map(one => [one.getBoundingClientRect().width, one.innerHTML.length])")
    assert all(width > 200 and length > 1000 for width, length in sizes)
    assert "#0101" not in page.content()
    colour = "() => getComputedStyle(document.querySelector('#leaderboard svg text')).fill"
    bright = page.evaluate(colour)
    assert visit(scheme="dark").evaluate(colour) != bright


@pytest.mark.parametrize("width", [1280, 390])
def test_tables_scroll_in_their_own_box_and_the_page_never_sideways(visit, width):
    page = visit(width)
    page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
    assert sideways(page) == 0
    wide = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    assert page.locator(".scroll").evaluate_all(wide) > 0, "the suite's table is wider than the page"
    assert page.locator("nav").evaluate("one => getComputedStyle(one).position") == "sticky"


def test_on_paper_nothing_is_cut_off_at_the_side(visit):
    page = visit(760)
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert sideways(page) == 0
    cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText.slice(0, 40))"
    assert page.locator("#gate .scroll, #cost .scroll, #records .scroll").evaluate_all(cut) == []


def test_hostile_text_is_shown_as_text_and_runs_nothing(visit):
    page = visit()
    shown = page.locator("#samples .side:not(.human) .text").all_inner_texts()
    assert shown == [text for text in HOSTILE for _version in range(3)]
    assert page.locator("script, img, link, #samples style, iframe").count() == 0
    assert page.evaluate("window.ran") is None


def test_the_page_itself_forbids_scripts(browser, path):
    with browser.new_page() as page:
        page.goto(path.as_uri())
        blocked = page.evaluate(
            """() => new Promise((done) => {
                document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
                document.body.append(Object.assign(document.createElement("script"), {text: "window.ran = 1"}));
            })"""
        )
        assert blocked.startswith("script-src")
        assert page.evaluate("window.ran") is None
