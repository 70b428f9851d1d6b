"""Links and anchors lead somewhere, the README keeps its promises, and the site builds and loads nothing foreign."""

import re
import subprocess
import sys

import pytest

from tests.support.pages import DOCS, ROOT, TEXTS, anchors_of, links_of, prose

LONGEST_README = 150


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_and_picture_leads_somewhere(page):
    folder, wrong = (ROOT / page).parent, []
    for target, anchor in links_of(TEXTS[page]):
        path = folder / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors_of(path.read_text("utf-8"))):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []


@pytest.mark.parametrize("page", [page for page in TEXTS if page.startswith("docs/")])
def test_links_of_the_site_stay_inside_it(page):
    """Files outside of the docs are not pages of the site, so such a link would be dead there."""
    targets = {(ROOT / page).parent.joinpath(target).resolve() for target, _ in links_of(TEXTS[page]) if target}
    assert [str(target) for target in targets if not target.is_relative_to(DOCS)] == []


def test_links_are_found_with_their_anchors():
    text = "[a](b.md#c), ![d](e.png), [f](#g), [h](https://i)\n```\n[no](link)\n```\n"
    assert links_of(text) == [("b.md", "c"), ("e.png", ""), ("", "g")]
    assert anchors_of("# A b, c\n```\n# not one\n```\n## `d` e: f\n") == {"a-b-c", "d-e-f"}


def test_every_picture_and_example_is_shown_on_a_page():
    linked = {(ROOT / page).parent.joinpath(target).resolve() for page in TEXTS for target, _ in links_of(TEXTS[page])}
    files = [path for folder in ("images", "examples") for path in (DOCS / folder).iterdir()]
    assert sorted(path.name for path in files if path.resolve() not in linked) == []


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= LONGEST_README


def test_every_figure_of_the_readme_is_in_the_benchmarks():
    figures = re.findall(r"(?<![\w./])\d+\.\d+(?![\w/]|\.\d)", TEXTS["README.md"])
    others = {"2401.01335", "3.11", "2.0"}  # the paper, Python, and this version
    assert len(figures) > 20
    assert sorted(set(figures) - others - set(re.findall(r"\d+\.\d+", TEXTS["docs/benchmarks.md"]))) == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_page_has_one_title(page):
    assert len(re.findall(r"^# ", prose(TEXTS[page]), re.MULTILINE)) == 1


def test_the_site_builds_strictly_and_loads_nothing_from_outside(tmp_path):
    pytest.importorskip("mkdocs", reason="make docs installs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {page.relative_to(tmp_path / "site").with_suffix(".md").as_posix() for page in pages} >= {
        name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")
    }
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\"\s>]+)|<link[^>]*\shref=\"?([^\"\s>]+)", text)
        assert [source for pair in loaded for source in pair if re.match(r"(https?:)?//", source)] == [], page.name
