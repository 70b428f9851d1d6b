"""Samples as one HTML page that contains its data, style and script, and loads nothing.

Texts of models and people are in the page as JSON without any `<`, so that no text can close its element; the script
shows them as text. The page's content security policy names the script's digest, so a browser runs no other script.
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
from spin_core.lineage.lineage import Lineage
from spin_core.reports.samples import PROMPTS, Response, Samples, answered, read
from spin_core.store import files

MOST_IN_LINEAGE = 500
"""The largest number of prompts on the page that every run writes."""

_PARTS = Path(__file__).parent / "assets"

MOST = 5000
"""The largest number of prompts on a page unless `--limit` sets another, since a browser keeps all in memory."""


def write(path: Path, samples: Samples, indices: Sequence[int], limit: int | None = None) -> str:
    """Write a page of these prompts, at most `limit`, and return one line that describes it."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"{path} cannot be written, since the folder {path.absolute().parent} does not exist: create it first"
        )
    chosen = indices[: limit or MOST]
    with files.storage_errors(path.parent):
        path.write_text(page(samples, chosen), "utf-8")
    part = f"{len(chosen):,} of" if len(chosen) < len(samples) else "all"
    more = f"; --limit {len(indices)} takes all" if len(chosen) < len(indices) and limit is None else ""
    return f"{path}: {part} {len(samples):,} {PROMPTS[samples.part]}s{more}, {path.stat().st_size / 1e6:.1f} MB"


def write_latest(lineage: Lineage) -> None:
    """Write `samples.html` next to the report: held-out prompts with the answers of all versions, if there are any."""
    if answered(lineage, "held-out"):
        samples = read(lineage, "held-out")
        chosen = range(min(len(samples), MOST_IN_LINEAGE))
        files.write_text(lineage.root / "samples.html", page(samples, chosen))


def page(samples: Samples, indices: Sequence[int]) -> str:
    """The page as text."""
    style, script, frame = ((_PARTS / f"samples.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    names = ", ".join(version.name for version in samples.versions)
    return Template(frame).substitute(
        title=html.escape(f"{samples.lineage}: {PROMPTS[samples.part]}s"),
        about=html.escape(f"The human response to each, next to the answers of {names}."),
        policy=f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'",
        style=style,
        script=script,
        data=_embedded(data_of(samples, indices)),
    )


def data_of(samples: Samples, indices: Sequence[int]) -> dict[str, Any]:
    """The data that the page's script reads."""
    numbers = {version.t: number for number, version in enumerate(samples.versions)}
    names = [version.name for version in samples.versions]
    rows = []
    for index in indices:
        sample = samples.sample(index)
        rows.append(
            {
                "number": sample.number,
                "turns": [turn._asdict() for turn in sample.turns],
                "real": _values_of(sample.real),
                "answers": [
                    {"version": numbers[answer.t], "name": answer.name, **_values_of(answer)}
                    for answer in sample.answers
                    if answer.t is not None
                ],
            }
        )
    return {"versions": names, "samples": rows}


def _values_of(response: Response) -> dict[str, Any]:
    """A response as the script's data."""
    values: dict[str, Any] = {"text": response.text, "tokens": response.tokens, "marks": response.marks}
    return values if response.margin is None else {**values, "margin": round(response.margin, 3)}


def _embedded(values: Any) -> str:
    """JSON without any `<`."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def digest(text: str) -> str:
    """A text's SHA-256 in the form of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
