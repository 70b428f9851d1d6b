"""The pages at `/lineages/` of the server of `spin up`: an index of lineages, and the files that runs have written.

They are read-only and require the server's password, by HTTP's Basic authentication, which browsers keep for one
address and port until they end. The sign-in page gives it to them again, from where Prefect's UI keeps it.

Files of a lineage may come from elsewhere, so none is trusted: every answer is sandboxed, which takes it out of the
origin of Prefect's UI, and loads nothing; only the samples' page runs a script, which reaches nothing either.
"""

import base64
import hmac
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.server.catalogue import REPORT, SAMPLES, Catalogue, Entry, page_of
from flows.server.state import SIGN_IN
from spin_core.reports.links import LINEAGES
from spin_core.reports.markup import styles

_CLOSED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
_POLICY = _CLOSED + "frame-ancestors 'none'; sandbox"
_POLICY_OF_SAMPLES = _CLOSED + "script-src 'unsafe-inline'; frame-ancestors 'none'; sandbox allow-scripts"

_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "private, no-cache",
}

_MOST_BYTES = 2 * 2**20
"""A larger page of an iteration is not rendered: it could take the server half a minute. Usual ones have 0.1 MB."""

_ASKED = "asked"
"""The query of a page to which the sign-in page has sent a browser. If the password is unknown, a person types it."""

_CHALLENGE = {"www-authenticate": 'Basic realm="spin", charset="UTF-8"'}


class Pages:
    """The ASGI application. It answers GET and HEAD under `/lineages`, to clients with the password."""

    def __init__(self, runs: Path, password: str) -> None:
        """
        Args:
            runs: The folder that holds lineages.
            password: The server's, as name:password.
        """
        self._credentials = password.encode()
        self._app: ASGIApp = _application(Catalogue(runs))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(item for item in extra if item[0] not in given)]
            await send(message)

        request = Request(scope)
        was_asked = request.url.query == _ASKED
        if self._is_authorized(request.headers.get("authorization", "")):
            answer = RedirectResponse(request.url.path, 303) if was_asked else self._app
            await answer(scope, receive, send_safely)
        elif "text/html" in request.headers.get("accept", "") and not was_asked:  # a browser opens a page
            address = f"{SIGN_IN}?to={quote(request.url.path)}"
            await RedirectResponse(address, 303)(scope, receive, send_safely)
        else:
            await Response("a password is needed", 401, _CHALLENGE, "text/plain")(scope, receive, send_safely)

    def _is_authorized(self, authorization: str) -> bool:
        """Whether an Authorization header has the password."""
        kind, _, code = authorization.partition(" ")
        try:
            given = base64.b64decode(code.strip(), validate=True)
        except ValueError:
            return False
        return bool(self._credentials) and kind.lower() == "basic" and hmac.compare_digest(given, self._credentials)


def _application(catalogue: Catalogue) -> Starlette:
    """The routes. Endpoints are plain functions, which run in threads while the server goes on."""

    def index(_request: Request) -> Response:
        return _page("index.html", lineages=catalogue.lineages(), comparisons=catalogue.comparisons())

    def lineage(request: Request) -> Response:
        entry = catalogue.lineage(request.path_params["name"]) or _missing()
        return _page("lineage.html", entry=entry, compared=_comparisons_of(catalogue, entry))

    def iteration(request: Request) -> Response:
        name, number = request.path_params["name"], request.path_params["t"]
        t = int(number) if re.fullmatch("[0-9]{1,6}", number) else _missing()
        path = catalogue.file(name, page_of(t)) or _missing()
        entry = catalogue.lineage(name) or _missing()
        return _page("iteration.html", entry=entry, t=t, page=_iteration_page(path))

    def report(request: Request) -> Response:
        name = request.path_params["name"]
        return _with_bar(catalogue.file(name, REPORT) or _missing(), catalogue, name)

    def samples(request: Request) -> Response:
        name = request.path_params["name"]
        page = _with_bar(catalogue.file(name, SAMPLES) or _missing(), catalogue, name)
        page.headers["content-security-policy"] = _POLICY_OF_SAMPLES
        return page

    def to_index(_request: Request) -> Response:
        return RedirectResponse(LINEAGES)

    return Starlette(
        routes=[
            Route("/lineages", to_index),
            Route(LINEAGES, index),
            Route(LINEAGES + "{name}/", lineage),
            Route(LINEAGES + "{name}/iteration/{t}", iteration),
            Route(LINEAGES + "{name}/report.html", report),
            Route(LINEAGES + "{name}/samples.html", samples),
        ],
        exception_handlers={HTTPException: _refuse},
    )


def _with_bar(path: Path, catalogue: Catalogue, name: str) -> Response:
    """A page that a run has written, below links to others; 404 if it was deleted since it was looked up."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return _missing()  # type: ignore[no-any-return]
    pages = [page for page in (REPORT, SAMPLES) if catalogue.file(name, page)]
    bar = _TEMPLATES.get_template("bar.html").render(
        name=name, pages=pages, has_page=catalogue.lineage(name) is not None
    )
    beginning = re.search("<body>|(?=<main>)", text)
    at = beginning.end() if beginning else 0
    return HTMLResponse(text[:at] + bar + text[at:])


def _missing() -> Any:
    """Answer 404."""
    raise HTTPException(404)


def _refuse(_request: Request, error: Exception) -> Response:
    """The page of an error."""
    assert isinstance(error, HTTPException), "registered for these"
    return _page("error.html", error.status_code, error.headers, detail=error.detail)


def _page(template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> Response:
    """A page made from a template."""
    text = _TEMPLATES.get_template(template).render(**values)
    return HTMLResponse(text, status, headers)


def _comparisons_of(catalogue: Catalogue, entry: Entry) -> list[Entry]:
    """The comparison that a lineage is a seed of: `trial` for `trial-seed-2`; a list of one, or empty."""
    name, _, seed = entry.name.rpartition("-seed-")
    comparison = catalogue.comparison(name) if name and seed.isdigit() else None
    return [comparison] if comparison else []


def _iteration_page(path: Path) -> Markup:
    """An iteration's page as HTML, or a line if it is too large to be made here; 404 if it was deleted meanwhile."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        return _missing()  # type: ignore[no-any-return]
    if len(content) > _MOST_BYTES:
        name = f"{path.parent.name}/{path.name}"
        return Markup("<p>{} is larger than {} MiB: read it in an editor.</p>").format(name, _MOST_BYTES // 2**20)
    return rendered(content.decode("utf-8", "replace"))


def rendered(text: str) -> Markup:
    """An iteration's page, which is Markdown, as HTML. HTML in it is shown as text, except line breaks in tables."""
    return Markup(_MARKDOWN.render(text))


def _as_text(_renderer: Any, tokens: Any, index: int, *_: Any) -> str:
    content = tokens[index].content
    return "<br>" if content.strip() == "<br>" else str(escape(content))


_MARKDOWN = MarkdownIt("commonmark").enable("table")
_MARKDOWN.add_render_rule("html_inline", _as_text)
_MARKDOWN.add_render_rule("html_block", _as_text)


def sparkline(values: list[float]) -> Markup:
    """A small line through values, the first at the left; nothing for less than two."""
    if len(values) < 2:
        return Markup("")
    width, height, edge = 96, 24, 3
    low, high = min(values), max(values)
    xs = [edge + (width - 2 * edge) * number / (len(values) - 1) for number in range(len(values))]
    ys = [edge + (height - 2 * edge) * (0.5 if high == low else (high - value) / (high - low)) for value in values]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    title = " → ".join(f"{value:.4g}" for value in values)
    return Markup(
        '<svg class="spark" role="img" viewBox="0 0 {w} {h}" width="{w}" height="{h}"><title>{title}</title>'
        '<polyline points="{points}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/></svg>'
    ).format(w=width, h=height, title=title, points=points, x=xs[-1], y=ys[-1])


def _local(time: datetime) -> str:
    """`2026-12-01 08:31`, in this machine's time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def _now() -> str:
    """`2026-12-01 08:31:05`, in this machine's time zone."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _zone() -> str:
    """This machine's time zone, as `UTC+0100`."""
    return f"UTC{datetime.now().astimezone():%z}"


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"sparkline": sparkline, "local": _local}
_TEMPLATES.globals |= {"style": Markup(styles("report")), "home": LINEAGES, "now": _now, "zone": _zone}
