"""What the command line prints."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spin_core.config.recipes import ABOUT, RECIPES
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.lineage import costs
from spin_core.lineage.lineage import Lineage, find
from spin_core.preflight.findings import Findings, count
from spin_core.reports import html
from spin_core.reports.markdown import middle, share
from spin_core.store.records import GenerationBatch, IterationRecord, ResponseStatistics

console = Console(highlight=False)


def print_where(runs: Path, name: str) -> None:
    """Whether the gate ended the game, where the artifacts lie, and how to see them."""
    from prefect.settings import PREFECT_UI_URL

    from flows.labels import address_of

    records = find(runs, name).records()
    if records and records[-1].gate.outcome == "stop":
        console.print(f"\n[yellow]gate[/]       {records[-1].gate.reason}")
    console.print(f"\nartifacts  {runs / name}")
    console.print(f"samples    spin samples {name}        records    spin show {name}")
    console.print(f"report     {html.path_of(find(runs, name))}")
    up = "" if PREFECT_UI_URL.value() else "spin up, then open "
    console.print(f"in the UI  {up}{address_of('leaderboard', name)}", soft_wrap=True)


def record_at(game: Lineage, t: int) -> IterationRecord:
    """The record of iteration t; `ConfigError` if the lineage has none."""
    records = game.records()
    if not 0 <= t < len(records):
        there = f"0 to {len(records) - 1}" if records else "none yet"
        raise ConfigError(f"lineage {game.name} has no finished iteration {t} (there: {there})")
    return records[t]


def print_records(game: Lineage, records: Sequence[IterationRecord]) -> None:
    """One block an iteration: data, training, gate, cost."""
    if not records:
        console.print(f"{game.name} has no finished iteration yet")
    for record in records:
        drops = ", ".join(f"{count} {reason}" for reason, count in record.pairs.drops.items() if count) or "none"
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in record.train.metrics.items())
        seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in record.seconds.items())
        memory = max(record.peak_memory_mb.items(), key=lambda item: item[1])
        spent = costs.of(record)
        rows = [
            ("model", f"{record.player.path}  {record.player.digest[:12]}"),
            ("opponent", f"θ_{record.opponent.t}  {record.opponent.digest[:12]}"),
            *answer_rows(record.generations),
            ("pairs", f"{record.pairs.rows:,} of {record.pairs.rows_in:,}; dropped: {drops}"),
            ("training", f"{steps_of(record)}, first loss {record.train.first_loss:.5f}; {metrics}"),
            ("gate", f"{record.gate.outcome}: {record.gate.reason}"),
            ("seconds", f"{seconds}; in all {spent.seconds:.1f}, {spent.device_hours:.3g} device hours"),
            ("memory", f"{memory[1]:,.0f} MB at most, in {memory[0]}"),
            ("made by", ", ".join(f"{name} {value}" for name, value in record.environment.items())),
        ]
        table = Table(box=None, show_header=False, title=f"iteration {record.t}: θ_{record.t} → θ_{record.t + 1}")
        table.title_justify, table.title_style = "left", "bold"
        for name, value in rows:
            table.add_row(f"[dim]{name}[/]", escape(value))
        for event in record.train.events:
            table.add_row(f"[yellow]{event.action}[/]", escape(event.message))
        console.print(table)


def answer_rows(batch: GenerationBatch) -> list[tuple[str, str]]:
    """The answers' faults; how long and how diverse both sides are."""
    found = batch.statistics
    if found is None:
        return []
    mine = found.generated
    faults = {
        "cut": mine.finish_reasons.get("length", 0),
        "empty": mine.empty,
        "looping": mine.looping,
        "same as the human": found.same_as_real,
        "said before": mine.repeated,
    }
    counts = ", ".join(f"{share(number, mine.responses)} {fault}" for fault, number in faults.items() if number)
    least = batch.smallest_batch
    return [
        ("answers", f"{mine.responses:,} of {batch.tokens:,} tokens" + (f"; {counts}" if counts else "")),
        *([("  memory", f"ran out; went on with {least:,} prompts at a time at the least")] if least else []),
        ("lengths", f"{sparkline(mine.histogram)} {middle(mine)}"),
        ("  human", f"{sparkline(found.real.histogram)} {middle(found.real)}"),
        ("distinct", f"{diversity(mine)}; human {diversity(found.real)}"),
    ]


def diversity(side: ResponseStatistics) -> str:
    """distinct-1, -2 and -3."""
    return " ".join(f"{part:.3f}" for part in side.distinct)


def sparkline(counts: Sequence[int]) -> str:
    """`▁▃█▂ `, one sign a number, as high as its share of the largest; nothing at all is a blank."""
    steps, most = "▁▂▃▄▅▆▇█", max(counts, default=0)
    return "".join(steps[(number * len(steps) - 1) // most] if number else " " for number in counts)


def steps_of(record: IterationRecord) -> str:
    """`40 steps`, or `40 steps, published step 30`."""
    train = record.train
    other = train.published is not None and train.published != train.steps
    return f"{train.steps} steps" + (f", published step {train.published}" if other else "")


def print_recipes() -> None:
    """The recipes and what each is for."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name in RECIPES:
        table.add_row(f"[bold]{name}[/]", ABOUT[name])
    console.print(table)
    console.print(
        "\n[dim]spin recipes NAME shows all its values; spin recipes --settings says what each setting does[/]"
    )


def print_settings() -> None:
    """Every setting with its default and its help."""
    for name, default, about in settings(RunConfig):
        console.print(
            f"[bold]{name}[/] [dim]= {escape(repr(default))}[/]\n    {escape(' '.join((about or '').split()))}"
        )


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, str | None]]:
    """Dotted name, default and help of every setting."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
        elif not field.is_required():
            yield prefix + name, field.default, field.description


def as_yaml(config: RunConfig) -> str:
    """A configuration as a YAML file that `--config` reads."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def print_findings(findings: Findings) -> None:
    """What `spin check` found: one line a finding, and whether the run can begin."""
    signs = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "wrong": "[red]wrong[/]"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings.findings:
        table.add_row(signs[finding.level], f"[bold]{finding.subject}[/]", escape(finding.text))
    console.print(table)
    levels = Counter(finding.level for finding in findings.findings)
    wrong, warnings = levels["wrong"], f", with {count(levels['warn'], 'warning')}" if levels["warn"] else ""
    if wrong:
        console.print(f"\n[red]not ready[/]: {count(wrong, 'thing')} {'is' if wrong == 1 else 'are'} wrong{warnings}")
    else:
        console.print(f"\n[green]ready[/]: nothing stands in the way of the run{warnings}")
