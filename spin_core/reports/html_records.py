"""The last sections of a lineage's report: costs of each phase, and origin of everything."""

from collections.abc import Sequence

import yaml

from spin_core.leaderboard.board import Board
from spin_core.lineage import costs as spending
from spin_core.lineage.lineage import Lineage
from spin_core.reports import plots
from spin_core.reports.markup import Html, folded, table, tag, wide
from spin_core.reports.plots import PAGE
from spin_core.store.files import json_values
from spin_core.store.records import Artifact, IterationRecord


def costs(records: Sequence[IterationRecord]) -> list[Html]:
    """Seconds, memory and tokens by phase."""
    phases = list(dict.fromkeys(phase for record in records for phase in record.seconds))
    marks = [
        tag("span", tag("i", style=f"background: {plots.VARIABLES[plots.colour_of(place, PAGE)]}"), phase)
        for place, phase in enumerate(phases)
    ]
    rows = []
    for record in records:
        tokens = spending.tokens(record)
        for phase, seconds in record.seconds.items():
            count = tokens.get(phase)
            rows.append(
                [
                    f"iteration {record.t}",
                    phase,
                    f"{seconds:,.1f}",
                    f"{spending.device_hours(record, phase):.3g}",
                    f"{record.peak_memory_mb.get(phase, 0):,.0f}",
                    "–" if count is None else f"{count:,}",
                    "–" if count is None else f"{count / max(seconds, 1e-3):,.0f}",
                ]
            )
    spent = spending.total(*records)
    rows.append(["total", "", f"{spent.seconds:,.1f}", f"{spent.device_hours:.3g}", "", "", ""])
    drawing = plots.svg(plots.seconds(records, PAGE), "seconds by phase")
    return [
        tag("p", *marks, class_="legend"),
        tag("div", tag("figure", tag("figcaption", "seconds by phase"), Html(drawing)), class_="wide"),
        table(["", "phase", "seconds", "device hours", "peak memory, MB", "tokens", "tokens a second"], rows),
        tag(
            "p",
            "Seconds are of the whole phase, start included; device hours are seconds times the devices that the phase "
            "used (a CPU without a GPU). Tokens are those generated, and those of the prompts and responses that "
            "training read. Controls are not included.",
            class_="note",
        ),
    ]


def origin(lineage: Lineage, board: Board, records: Sequence[IterationRecord]) -> list[Html]:
    """Digests, versions, notes of the harnesses, and the whole configuration."""
    models = [[row.name, tag("code", row.digest[:16]), wide(row.model)] for row in board.rows]
    made = [
        [f"iteration {record.t}", *(tag("code", artifact.digest[:16]) for artifact in _artifacts(record))]
        for record in records
    ]
    environments = [
        [
            f"iteration {record.t}",
            wide(", ".join(f"{k} {v}" for k, v in record.environment.items())),
        ]
        for record in records
    ]
    reports = [(row.name, report) for row in board.rows for report in lineage.reports(row.t or 0)]
    harnesses = {report.suite: report.harness for _, report in reports}
    notes = [[name, report.suite, wide(note)] for name, report in reports for note in report.notes]
    config = yaml.safe_dump(json_values(lineage.config), sort_keys=False, allow_unicode=True)
    return [
        table(["model", "digest", wide("folder", "th")], models),
        table(["", "prompts", "generations", "pairs", "scores", "training"], made),
        table(["", wide("made by", "th")], environments),
        table(["suite", wide("scored by", "th")], [[suite, wide(by)] for suite, by in harnesses.items()]),
        *([table(["model", "suite", wide("note", "th")], notes)] if notes else []),
        folded("Configuration", tag("pre", config)),
    ]


def _artifacts(record: IterationRecord) -> tuple[Artifact, ...]:
    """The artifacts of an iteration, in the order of its phases."""
    return (record.prompts, record.generations, record.pairs, record.scores, record.train)
