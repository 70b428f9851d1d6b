"""Addresses of pages: Prefect's, and those that `spin up` serves next to them. Imports nothing heavy."""

import os
import re
from collections.abc import Sequence

LINEAGES = "/lineages/"
"""The path of the pages of `spin up`: an index of lineages, and for each its report, samples and iterations."""

OF_PAGES = "SPIN_PAGES"
"""The environment variable with that path, where the server that shows the artifacts has those pages."""

_MOST_ITERATIONS = 5
"""Links to iterations at most: the last ones. All are on the lineage's page."""


def artifact_key(text: str) -> str:
    """Turn a text into an artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower())


def artifact_path(name: str) -> str:
    """The path of an artifact in Prefect's UI."""
    return f"/v2/artifacts/key/{artifact_key(name)}"


def report_path(name: str) -> str:
    """The path of the report of a lineage or comparison; empty if the server does not have it."""
    pages = os.environ.get(OF_PAGES, "")
    return f"{pages}{name}/report.html" if pages else ""


def lineage_links(lineage: str, last: int) -> str:
    """A line of links from one page of a lineage to its others, in Markdown.

    Args:
        lineage: Its name.
        last: The last iteration that has a page.
    """
    paths = {"leaderboard": artifact_path(f"leaderboard-{lineage}")}
    first = max(0, last + 1 - _MOST_ITERATIONS)
    paths |= {f"iteration {t}": artifact_path(iteration_name(lineage, t)) for t in range(first, last + 1)}
    if pages := os.environ.get(OF_PAGES, ""):
        paths |= {
            "report": report_path(lineage),
            "samples": f"{pages}{lineage}/samples.html",
            lineage: f"{pages}{lineage}/",
            "all lineages": pages,
        }
    return _line(paths)


def comparison_links(comparison: str, lineages: Sequence[str]) -> str:
    """A line of links from the page of a comparison to its report and to its seeds' lineages, in Markdown."""
    paths = {name: artifact_path(f"leaderboard-{name}") for name in lineages}
    if report := report_path(comparison):
        paths |= {"report": report, "all lineages": os.environ[OF_PAGES]}
    return _line(paths)


def iteration_name(lineage: str, t: int) -> str:
    """The name of an iteration's artifact."""
    return f"{lineage}-iteration-{t:02d}"


def _line(paths: dict[str, str]) -> str:
    return " · ".join(f"[{title}]({path})" for title, path in paths.items())
