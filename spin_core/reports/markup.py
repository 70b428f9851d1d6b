"""HTML elements by function calls.

Text is escaped when it enters an element, so that a model's text never becomes markup.
"""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

PARTS = Path(__file__).parent / "assets"


def styles(page: str) -> str:
    """The shared colours and a page's own style sheet, as one text."""
    return "".join((PARTS / f"{name}.css").read_text("utf-8") for name in ("colours", page))


class Html(str):
    """Markup that needs no escaping. Any other string is escaped when it enters an element."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """An element. A trailing `_` of an attribute is dropped, so that `class_` can be passed."""
    listed = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{listed}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Html:
    """Elements and texts joined; texts are escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], **attributes: str) -> Html:
    """A table in a box that scrolls. A row's first cell is its header; a cell may be text or a finished element."""
    titles = (_as_cell(name) or tag("th", name, scope="col") for name in header)
    head = tag("thead", tag("tr", *titles))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(_as_cell(cell) or tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return tag(
        "div", tag("table", head, tag("tbody", *body), **attributes), class_="scroll", tabindex="0", role="region"
    )


def _as_cell(text: str) -> Html | None:
    """The text if it is a finished table cell, else None."""
    return text if isinstance(text, Html) and text.startswith(("<td", "<th")) else None


def wide(text: str, name: str = "td") -> Html:
    """A cell of running text: left-aligned, and broken into lines."""
    return tag(name, text, class_="text")


def folded(title: str, *children: str) -> Html:
    """Content that opens when its title is clicked."""
    return tag("details", tag("summary", title), *children)
