"""The pages of the documentation, and what is in them: code, links, headings."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in PAGES}
EXAMPLES = sorted((DOCS / "examples").glob("*.yaml"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a page, in these languages or in all."""
    return [body for language, body in FENCE.findall(text) if not languages or language in languages]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def code_of(text: str) -> str:
    """Everything that is shown as code: blocks, and what is between backticks."""
    return "\n".join([*blocks(text), *re.findall(r"`([^`\n]+)`", prose(text))])


def links_of(text: str) -> list[tuple[str, str]]:
    """Path and anchor of every relative link and picture."""
    return re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", prose(text))


def anchors_of(text: str) -> set[str]:
    """The anchors that a code host and the site give a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
