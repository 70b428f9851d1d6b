"""HTML by function calls. Text is escaped where it enters an element, so that nothing a model wrote becomes markup."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

PARTS = Path(__file__).parent / "assets"


def styles(page: str) -> str:
    """A page's style sheet, after the colours that pages share."""
    return "".join((PARTS / f"{name}.css").read_text("utf-8") for name in ("colours", page))


class Html(str):
    """Markup. Any other text is escaped where it enters."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """An element. Attributes lose a last `_`, which `class_` needs."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Html:
    """Elements and texts, one after the other."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], **attributes: str) -> Html:
    """A table that scrolls in a box of its own; a row's first cell names it. A cell may be an element already."""
    titles = (is_cell(name) or tag("th", name, scope="col") for name in header)
    head = tag("thead", tag("tr", *titles))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(is_cell(cell) or tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return tag(
        "div", tag("table", head, tag("tbody", *body), **attributes), class_="scroll", tabindex="0", role="region"
    )


def is_cell(text: str) -> Html | None:
    """The text, if it is a table's cell already."""
    return text if isinstance(text, Html) and text.startswith(("<td", "<th")) else None


def wide(text: str, name: str = "td") -> Html:
    """A cell of running text: it breaks into lines, and begins at the left."""
    return tag(name, text, class_="text")


def folded(title: str, *children: str) -> Html:
    """What opens when its title is clicked."""
    return tag("details", tag("summary", title), *children)
