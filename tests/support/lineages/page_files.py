"""A runs folder with the files that the pages of `spin up` show, published without any model and without Prefect."""

from collections.abc import Sequence
from pathlib import Path

from spin_core.leaderboard import board
from spin_core.lineage.lineage import Lineage
from spin_core.reports import html, markdown, samples_page
from spin_core.store import files
from tests.support.lineages.small_lineage import NLLS, build_lineage


def build_pages(runs: Path, name: str, nlls: Sequence[Sequence[float]] = NLLS, sets: Sequence[str] = ()) -> Lineage:
    """A small lineage with its leaderboard, report, samples and iterations' pages."""
    lineage = build_lineage(runs, name, nlls=tuple(map(tuple, nlls)), sets=list(sets))
    html.write(lineage, board=board.save(lineage))
    samples_page.write_latest(lineage)
    for record in lineage.records():
        files.write_text(lineage.page(record.t), markdown.iteration_page(lineage, record))
    return lineage


def build_comparison(runs: Path, name: str) -> None:
    """A comparison's files."""
    (runs / name).mkdir(parents=True)
    files.write_text(runs / name / "compare.json", "{}")
    files.write_text(runs / name / "report.html", f"<h1>{name}</h1>")
