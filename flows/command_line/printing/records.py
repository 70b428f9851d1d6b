"""Records of iterations, as `spin show` prints them."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from flows.command_line.printing.console import console
from spin_core.config.recipes import RECIPES
from spin_core.errors import ConfigError, DamagedArtifact, count
from spin_core.lineage import costs
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.verify import REWRITE
from spin_core.reports.formatting import middle, share
from spin_core.store.records import GenerationBatch, IterationRecord, ResponseStatistics, TrainRun


def record_at(lineage: Lineage, t: int) -> IterationRecord:
    """The record of iteration t; `ConfigError` if the lineage has none."""
    records = lineage.records()
    if t >= len(records):
        raise_if_lost(lineage)
    if not 0 <= t < len(records):
        if not records:
            raise ConfigError(f"lineage {lineage.name} has no finished iteration yet: {_how_to_continue(lineage)}")
        raise ConfigError(f"lineage {lineage.name} has no finished iteration {t}: choose from 0 to {len(records) - 1}")
    return records[t]


def _how_to_continue(lineage: Lineage) -> str:
    """The command that finishes the iteration that a lineage has begun."""
    if lineage.config.recipe not in RECIPES:  # a model that `spin evaluate` was given
        return f"spin leaderboard {lineage.name} shows its scores"
    return f"continue it with spin run {lineage.config.recipe} --lineage {lineage.name}"


def raise_if_lost(lineage: Lineage) -> None:
    """Raise `DamagedArtifact` if records are missing of iterations that are finished."""
    for path in lineage.lost_records()[:1]:
        raise DamagedArtifact(f"{path} is missing, though the iteration is finished: {REWRITE}")


def print_records(lineage: Lineage, records: Sequence[IterationRecord]) -> None:
    """Print one block per iteration: data, training, gate, cost."""
    if not records:
        raise_if_lost(lineage)
        console.print(
            f"{lineage.name} has no finished iteration yet: {_how_to_continue(lineage)}", markup=False, soft_wrap=True
        )
    for record in records:
        table = Table(box=None, show_header=False, title=f"iteration {record.t}: θ_{record.t} → θ_{record.t + 1}")
        table.title_justify, table.title_style = "left", "bold"
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")  # a long path is broken, and not cut
        for name, value in _record_rows(record):
            table.add_row(f"[dim]{name}[/]", escape(value))
        for event in record.train.events:
            table.add_row(f"[yellow]{event.action}[/]", escape(event.message))
        console.print(table)


def _record_rows(record: IterationRecord) -> list[tuple[str, str]]:
    drops = ", ".join(f"{count} {reason}" for reason, count in record.pairs.drops.items() if count) or "none"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in record.train.metrics.items())
    seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in record.seconds.items())
    phase, megabytes = max(record.peak_memory_mb.items(), key=lambda item: item[1])
    cost = costs.total(record)
    return [
        ("model", f"{record.player.path}  {record.player.digest[:12]}"),
        ("opponent", f"θ_{record.opponent.t}  {record.opponent.digest[:12]}"),
        *answer_rows(record.generations),
        ("pairs", f"{record.pairs.rows:,} of {record.pairs.rows_in:,}; dropped: {drops}"),
        ("training", f"{_steps(record)}, first loss {record.train.first_loss:.5f}; {metrics}"),
        *smaller_passes(record.train),
        ("gate", f"{record.gate.outcome}: {record.gate.reason}"),
        # Phases measure their own time, from when their processes have started.
        (
            "seconds",
            f"{seconds}; total {cost.seconds:.1f} without starting processes, {cost.device_hours:.3g} device hours",
        ),
        ("memory", f"{megabytes:,.0f} MB at most, in {phase}"),
        ("made by", ", ".join(f"{name} {value}" for name, value in record.environment.items())),
    ]


def answer_rows(batch: GenerationBatch) -> list[tuple[str, str]]:
    """The faults of the answers, and how long and how diverse answers and human responses are."""
    statistics = batch.statistics
    if statistics is None:
        return []
    generated, real = statistics.generated, statistics.real
    faults = {
        "cut": generated.finish_reasons.get("length", 0),
        "empty": generated.empty,
        "looping": generated.looping,
        "same as the human": statistics.same_as_real,
        "repeated": generated.repeated,
    }
    counts = ", ".join(f"{share(number, generated.responses)} {fault}" for fault, number in faults.items() if number)
    smallest = batch.smallest_batch
    return [
        (
            "answers",
            f"{count(generated.responses, 'answer')}, {count(batch.tokens, 'token')}"
            + (f"; {counts}" if counts else ""),
        ),
        *(
            [("  memory", f"ran out; continued with {count(smallest, 'prompt')} at a time at the least")]
            if smallest
            else []
        ),
        ("lengths", f"{_sparkline(generated.histogram)} {middle(generated)}"),
        ("  human", f"{_sparkline(real.histogram)} {middle(real)}"),
        ("distinct", f"{_diversity(generated)}; human {_diversity(real)}"),
    ]


def _diversity(side: ResponseStatistics) -> str:
    """distinct-1, -2 and -3."""
    return " ".join(f"{value:.3f}" for value in side.distinct)


def _sparkline(counts: Sequence[int]) -> str:
    """`▁▃█▂ `: one character per count, as high as its share of the largest; a blank for 0."""
    steps, most = "▁▂▃▄▅▆▇█", max(counts, default=0)
    return "".join(steps[(number * len(steps) - 1) // most] if number else " " for number in counts)


def smaller_passes(train: TrainRun) -> list[tuple[str, str]]:
    """From which step on a training had fewer tokens in a pass."""
    runs = train.micro_batch_tokens
    if len(runs) < 2:
        return []
    before = sum(steps for steps, _ in runs[:-1])
    return [("  memory", f"ran out; continued with {runs[-1][1]:,} tokens in a pass after step {before:,}")]


def _steps(record: IterationRecord) -> str:
    """`40 steps`, or `40 steps, published step 30`."""
    train = record.train
    is_earlier = train.published is not None and train.published != train.steps
    return count(train.steps, "step") + (f", published step {train.published}" if is_earlier else "")
