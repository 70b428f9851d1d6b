"""The pages of a comparison, on disk and in the UI."""

from pathlib import Path

from spin_core.comparison import compare
from spin_core.comparison import page as comparison_page
from spin_core.comparison.compare import Table
from spin_core.lineage.lineage import Lineage
from spin_core.reports.links import comparison_links
from tasks.publish import is_new, show


def publish_comparison(runs: Path, table: Table, first: Lineage) -> None:
    """Write `compare.json` and `report.html`, and a new version of the artifact `comparison-<name>`.

    `first` is the lineage of the first seed.
    """
    compare.save(runs, table)
    comparison_page.write(runs / table.name / "report.html", table, first.records()[0].environment["spin"])
    spin, name, page = table.of("spin")[-1], f"comparison-{table.name}", comparison_page.markdown(table)
    page = f"{comparison_links(table.name, table.lineages)}\n\n{page}"
    if is_new(name, page):
        result = f"{spin.name}: {table.main_metric} {comparison_page.score(spin.scores.get(table.main_metric))}"
        show(name, page, f"{table.name}: {result}")
