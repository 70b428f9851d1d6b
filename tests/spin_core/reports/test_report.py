"""The pages that a person reads: whole, with their pictures inside, and proof against what models say."""

import base64
import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from spin_core.errors import ConfigError
from spin_core.leaderboard.board import leaderboard
from spin_core.reports import formatting, markdown, plots
from spin_core.reports import html as reports_html
from spin_core.store.records import Comparison, Event
from tests.support.lineages.small_lineage import build_lineage, suite_report
from tests.support.lineages.small_lineage import report as publish_report

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    made = build_lineage(tmp_path_factory.mktemp("runs"))
    publish_report(made.control("sft-lr-0.001") / "eval" / "self-play", "c" * 64, (1.9, 2.9, 3.9, 4.9) * 2)
    return made


@pytest.fixture(scope="module")
def page(lineage):
    return written(lineage, 1)


def written(lineage, t: int, **train) -> str:
    """The page of iteration t with its spaces as spaces. `train` changes the record of the training."""
    record = lineage.records()[t]
    record = record.model_copy(update={"train": record.train.model_copy(update=train)})
    return markdown.iteration_page(lineage, record).replace("\u00a0", " ")


def pictures(text: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r"!\[[^]]*\]\(data:image/png;base64,([^)]*)\)", text)]


def test_a_page_begins_with_the_decision_and_its_reason(page):
    beginning, _ = page.split("## ", maxsplit=1)
    assert beginning.startswith("# tale")
    for part in ("θ_1 → θ_2", "**Gate: promote.**", "heldout_nll 2.9 against 3 of θ_1"):
        assert part in beginning


def test_a_page_has_all_its_parts(page):
    assert re.findall(r"^## (\w+)", page, re.MULTILINE)[:5] == ["Scores", "Training", "Data", "Answers", "Samples"]
    assert "\n## Cost" in page


def test_pictures_are_inside_the_page(page):
    shown = pictures(page)
    assert len(shown) == 3
    assert all(picture.startswith(PNG) and len(picture) > 5000 for picture in shown)
    assert "http" not in page


def test_scores_are_next_to_their_change_against_the_version_before_and_the_first(page):
    assert "| task | θ_2 | against θ_1 | against θ_0 | items |" in page
    assert re.search(r"\| heldout.nll ↓ \| 2.90 ± 0.41 \| -0.1 ± 0.027 \* \| -0.6 ± 0.027 \* \| 8 \|", page)
    assert re.search(r"\| reward.accuracy \| 0.750 ± 0.020 \| – \| – \| 4 \|", page)


def test_notes_of_the_version_are_below_its_scores(page, tmp_path):
    made = build_lineage(tmp_path)
    for t in range(3):
        suite_report(made.eval_folder(t) / "instruct", f"{t}" * 64, {"ifeval": [0, 1]}, notes=[f"{t}*_cut"])
    head, _ = written(made, 0).split("## Training")
    assert "\n\n- θ\\_1, instruct: 1\\*\\_cut\n\n" in head
    assert head.count("\\_cut") == 1, "those of other versions are on their own pages"
    assert "\n- " not in page.split("## Training")[0]


def test_the_first_iteration_is_compared_once(lineage):
    assert "| task | θ_1 | against θ_0 | items |" in written(lineage, 0)


@pytest.mark.parametrize(
    "text",
    [
        "1 of 2 (1 from iteration 1)",
        "| 1 empty |",
        "2 (1 stop, 1 length; 20 tokens)",
        "| train | 1.5 | 0.000417 | 100 | 14 |",
        "`CPU x86_64`",
        "2 steps",
        "0.69310",
        "log 2 is 0.69315",
    ],
)
def test_counts_and_costs_are_shown(page, text):
    assert text in page


def test_published_weights_of_an_earlier_step_are_shown_with_their_held_out_metrics(lineage):
    page = written(lineage, 0, published=1, metrics={"loss": 0.693}, held_out={"step": 1.0, "loss": 0.65})
    assert "2 steps. The first loss is 0.69310; log 2 is 0.69315. The published weights are those of step 1." in page
    assert "| metric | first step | step 1 | held out |" in page
    assert "| loss | 0.693 | 0.693 | 0.65 |" in page


def test_events_of_the_monitors_are_listed(lineage):
    event = Event(kind="exploded", step=2, message="margins explode", action="stop")
    assert "- **stop** at step 2: margins explode\n" in written(lineage, 0, events=(event,))
    assert "- the monitors reported nothing unusual\n" in written(lineage, 0)


def test_samples_hold_every_versions_answer(lineage, page):
    samples = markdown.samples(lineage, upto=2)
    assert len(samples) == 4
    for answer in ("early 0", "late 0 0", "late 1 0", "human"):
        assert f"| {answer} |" in page
    assert {len(sample.answers) for sample in markdown.samples(lineage, upto=0)} == {1}


def test_answers_are_counted_next_to_the_human_responses(page):
    assert "| tokens, median (5 to 95 %) | 2 (2 to 2) | 1 (1 to 19) |" in page
    assert "| cut | 0 | 1 (50.0 %) |" in page
    assert "| repeated, to any prompt | 1 (50.0 %) | 0 |" in page


def test_a_batch_without_statistics_has_no_such_section(lineage):
    batch = lineage.records()[1].generations.model_copy(update={"statistics": None})
    assert markdown.answers(batch) == []


def test_a_batch_halved_for_lack_of_memory_is_shown(lineage, page):
    record = lineage.records()[1]
    cramped = record.generations.model_copy(update={"smallest_batch": 8})
    line = "| smallest batch of prompts | 8, since memory ran out |"
    assert line in markdown.data_table(record.model_copy(update={"generations": cramped}))
    assert "smallest batch" not in page


def test_markdown_and_html_in_a_sample_are_escaped(page):
    prompt = "| **prompt** | &lt;b&gt;bold&lt;/b&gt; \\| \\*stars\\*<br>and a new line |"
    assert prompt in page


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a | b\n| --- | --- |\r\n| c |\rd",
        "# no heading\n- no list\n```no code```",
        "**bold** _under_ ~~struck~~ ![x](y) [link](http://a.b) $x$ \\n",
        "&lt;already&gt; &amp;",
    ],
)
def test_text_of_a_model_stays_one_cell_of_plain_text(text):
    cell = markdown.literal(text)
    assert not re.search(r"[\r\n]", cell)
    assert set(re.findall(r"<[^>]*>", cell)) <= {"<br>"}
    assert not re.search(r"(?<!\\)(?:\\\\)*[*_~`|\[\]#]", cell), "every sign is escaped"
    plain = html.unescape(re.sub(r"\\([\\`*_~\[\]|#])", r"\1", cell.replace("<br>", "\n")))
    assert plain == re.sub(r"\r\n?", "\n", text)


def test_long_text_is_cut():
    assert markdown.literal("x" * 700) == "x" * 600 + " …"


def test_the_leaderboard_holds_versions_controls_and_stars(lineage):
    page = markdown.leaderboard_page(leaderboard(lineage), lineage.config).replace("\u00a0", " ")
    assert page.startswith("# Leaderboard of tale\n")
    assert "| θ_0 | 3.50 ± 0.42 | – | – |" in page
    assert "| θ_1 | 3.00 ± 0.43 * | 0.750 ± 0.020 | promote |" in page
    assert "| θ_2 ◂ | 2.90 ± 0.41 * | 0.750 ± 0.020 | promote |" in page
    assert "| sft-lr-0.001 | 3.40 ± 0.42 * |" in page
    assert [picture.startswith(PNG) for picture in pictures(page)] == [True]


def test_a_suite_has_a_table_of_its_own_with_the_papers_rows(lineage, tmp_path):
    made = build_lineage(tmp_path)
    suite, tasks = "open-llm-leaderboard", {"arc_challenge": [1, 0, 1, 1], "gsm8k": [0, 0, 1, 0]}
    for t in range(3):
        suite_report(made.eval_folder(t) / suite, f"{t}" * 64, tasks, {suite: tuple(tasks)})
    page = markdown.leaderboard_page(leaderboard(made), made.config).replace("\u00a0", " ")
    _, table = page.split(f"## {suite}\n")
    assert "|  | open-llm-leaderboard ↑ | arc challenge ↑ | gsm8k ↑ |" in table
    assert "| θ_1 | 0.50 ± 0.18 | 0.75 ± 0.25 | 0.25 ± 0.25 |" in table
    assert "| paper θ_4 | 0.6316 | 0.6587 | 0.3897 |" in table
    assert "not measured here" in page
    assert "paper" not in markdown.leaderboard_page(leaderboard(lineage), lineage.config)


def test_a_plots_name_may_hold_anything():
    name = r'mt-bench/"><script>alert(1)</script> \1 \g<0> $x^$'
    figure, _ = plots.panel(plots.PAGE, (3, 2))
    drawn = plots.svg(figure, name)
    elements: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: elements.append((tag, dict(attributes)))
    parser.feed(drawn)
    assert elements[0][1]["aria-label"] == name
    assert "script" not in [tag for tag, _ in elements]


def test_a_score_without_a_direction_has_neither_arrow_nor_colour(tmp_path):
    made = build_lineage(tmp_path)
    for name, better in (("up", True), ("neither", None)):
        for t in range(3):
            suite_report(made.eval_folder(t) / name, f"{t}" * 64, {name: np.arange(8.0) + t}, higher_is_better=better)
    board = leaderboard(made)
    assert [formatting.heading(board, name) for name in ("up", "neither", "heldout_nll")] == [
        "up ↑",
        "neither",
        "heldout_nll ↓",
    ]
    up, neither = (reports_html.score_cell(board.rows[2], name) for name in ("up", "neither"))
    assert 'class="better"' in up
    assert "class=" not in neither
    assert " *" in neither, "that it differs is told all the same"


def test_a_difference_whose_interval_excludes_0_is_starred():
    sure = Comparison(against=0, delta=0.21, stderr=0.1, low=0.02, high=0.4)
    assert markdown.difference(sure) == "+0.21 ± 0.1 *"
    assert markdown.difference(sure.model_copy(update={"low": -0.01})) == "+0.21 ± 0.1"
    assert markdown.difference(None) == "–"


def test_the_same_page_is_written_twice(lineage):
    assert written(lineage, 1) == written(lineage, 1)


def test_the_report_is_the_same_when_it_is_written_again(lineage):
    first = reports_html.write(lineage).read_text("utf-8")
    assert first == reports_html.write(lineage).read_text("utf-8")
    assert "<h2>Gate</h2>" in first
    assert "src=" not in first
    assert re.sub("<[^>]*>", " ", first).count("rule: stop; θ_") == 1


def test_the_report_has_a_legend_for_the_controls_lines(lineage):
    page = reports_html.page(lineage, leaderboard(lineage))
    (legend,) = re.findall(r'<p class="legend">Controls:(.*?)</p>', page)
    assert re.sub("<[^>]*>", "", legend) == "sft-lr-0.001"
    (dashes,) = re.findall(r"stroke-dasharray: ([\d .]+)", legend)
    drawn = re.findall(r"<figcaption>heldout nll.*?</figure>", page, re.DOTALL)[0]
    assert f"stroke-dasharray: {dashes.replace(' ', ',')}" in drawn.replace(", ", ",")


def test_a_lineage_of_which_only_the_first_version_is_scored_has_a_report(tmp_path):
    made = build_lineage(tmp_path, nlls=[(2.0, 3.0, 4.0, 5.0)])
    page = reports_html.write(made, tmp_path / "report.html").read_text("utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["Leaderboard", "Samples"]
    assert "3.50" in page


def test_a_report_for_a_missing_folder_is_rejected(lineage, tmp_path):
    with pytest.raises(ConfigError, match="does not exist: create it first"):
        reports_html.write(lineage, tmp_path / "none" / "report.html")


def test_the_report_has_scores_by_source_where_there_are_several(tmp_path, lineage):
    mixed = build_lineage(tmp_path, nlls=(range(8), range(1, 9)), sources=("chat",) * 4 + ("<sums>",) * 4)
    text = reports_html.page(mixed, leaderboard(mixed))
    assert "Scores by source" in text
    assert "<h4>&lt;sums&gt;</h4>" in text
    assert "Scores by source" not in reports_html.page(lineage, leaderboard(lineage))
