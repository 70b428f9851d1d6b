"""Samples as one page for a browser: it holds its data, style and script, and loads nothing.

Texts of models and people reach the page as JSON in which no `<` stands, so that none can end the element it is in, and
the script shows them as text. A browser runs that script alone: the page's policy names its digest.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from spin_core.errors import ConfigError
from spin_core.reports.samples import PROMPTS, Response, Samples
from spin_core.store import files

PARTS = Path(__file__).parent / "assets"

MOST = 5000
"""Prompts on a page, unless so many others are asked for: a browser holds all of them."""


def write(path: Path, samples: Samples, places: Sequence[int], limit: int | None = None) -> str:
    """Write a page of these prompts, at most `limit`. Returns what is to be said of it."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written, since {path.absolute().parent} is not there: make it first")
    chosen = places[: limit or MOST]
    with files.storage_errors(path.parent):
        path.write_text(page(samples, chosen), "utf-8")
    some = f"{len(chosen):,} of" if len(chosen) < len(samples) else "all"
    more = f"; --limit {len(places)} takes all" if len(chosen) < len(places) and limit is None else ""
    return f"{path}: {some} {len(samples):,} {PROMPTS[samples.part]}s{more}, {path.stat().st_size / 1e6:.1f} MB"


def page(samples: Samples, places: Sequence[int]) -> str:
    """The page as text."""
    style, script, frame = ((PARTS / f"samples.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    names = ", ".join(version.name for version in samples.versions)
    return Template(frame).substitute(
        title=html.escape(f"{samples.lineage}: {PROMPTS[samples.part]}s"),
        about=html.escape(f"The human response to each, beside the answers of {names}."),
        policy=f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'",
        style=style,
        script=script,
        data=embedded(data_of(samples, places)),
    )


def data_of(samples: Samples, places: Sequence[int]) -> dict[str, Any]:
    """What the script reads."""
    numbers = {version.t: number for number, version in enumerate(samples.versions)}
    names = [version.name for version in samples.versions]
    rows = []
    for place in places:
        sample = samples.sample(place)
        rows.append(
            {
                "number": sample.number,
                "turns": [turn._asdict() for turn in sample.turns],
                "real": values_of(sample.real),
                "answers": [
                    {"version": numbers[answer.t], "name": answer.name, **values_of(answer)}
                    for answer in sample.answers
                    if answer.t is not None
                ],
            }
        )
    return {"versions": names, "samples": rows}


def values_of(response: Response) -> dict[str, Any]:
    """A response as the script reads it."""
    values: dict[str, Any] = {"text": response.text, "tokens": response.tokens, "marks": response.marks}
    return values if response.margin is None else {**values, "margin": round(response.margin, 3)}


def embedded(values: Any) -> str:
    """JSON that holds no sign of markup."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def digest(text: str) -> str:
    """A text's digest as a page's policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
