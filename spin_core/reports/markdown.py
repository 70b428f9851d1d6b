"""What a person reads of an iteration in Prefect: a markdown page with its scores, plots and ten samples."""

import base64
import html
import math
import re
from collections.abc import Collection, Sequence

from spin_core.config.run import RunConfig
from spin_core.leaderboard.board import CHOSEN, Board, Row, differs_from_base, format_score, leaderboard, significant
from spin_core.lineage import costs
from spin_core.lineage.lineage import Lineage
from spin_core.reports import plots
from spin_core.reports.formatting import ARROWS, heading, middle, share
from spin_core.reports.samples import Sample, answered, read
from spin_core.store.records import (
    AnswerStatistics,
    Comparison,
    GenerationBatch,
    IterationRecord,
    TrainRun,
)

SAMPLES = 10

COLUMNS = 5
"""Scores beside one another: with more, a table runs into the margin of Prefect's page."""

MARKS = "`*` differs from θ_0: the 95 % interval of the paired difference, by bootstrap over the items, leaves out 0"

CHOICE = f"{CHOSEN}: the gate's choice"


def iteration_page(lineage: Lineage, record: IterationRecord) -> str:
    """The markdown artifact of one iteration."""
    t = record.t + 1
    known = leaderboard(lineage)
    # As it stood then: a page that is written again later is the same page.
    board = known.model_copy(update={"rows": known.rows[: t + 1], "controls": (), "choice": record.gate.next_opponent})
    return "\n\n".join(
        [
            f"# {lineage.name}: θ_{record.t} → θ_{t}",
            f"Iteration {record.t}. **Gate: {record.gate.outcome}.** {record.gate.reason}",
            "## Scores",
            score_table(board, t),
            *notes(board),
            image(main_plot(board), f"{board.main_metric} over the versions"),
            "## Training",
            *training(record),
            image(plots.png(plots.training(record, plots.PAPER)), "training curve"),
            "## Data",
            data_table(record),
            *answers(record.generations),
            "## Samples",
            "Held-out prompts; the human response, and what the versions answer.",
            sample_table(samples(lineage, upto=t), (0, record.t, t)),
            "## Cost",
            cost_table(record),
            "## Origin",
            origin_table(record),
        ]
    )


def leaderboard_page(board: Board, config: RunConfig) -> str:
    """The markdown of the keyed artifact `leaderboard-<lineage>`: the headline and the plot, then suite by suite."""
    shown = board.headline(config)
    first, *others = leaderboard_tables(board, shown, headline=True) or ["Nothing is scored yet."]
    parts = [
        f"# Leaderboard of {board.lineage}",
        first,
        image(main_plot(board), f"{board.main_metric} over the versions"),
        f"value ± standard error; {MARKS}. {ARROWS}. {CHOICE}.",
        *others,
    ]
    for suite in board.suites:
        tasks = board.main_tasks(suite)
        if board.has_score(suite):
            parts += [f"## {suite}", *leaderboard_tables(board, tasks, suite=suite)]
            shown = [*shown, *tasks]
    rest = leaderboard_tables(board, [task for task in board.tasks() if task not in shown])
    if board.references:
        parts.append(f"{board.references[0].name} and so on: {board.references[0].model}.")
    return "\n\n".join([*parts, *(["## Further scores", *rest] if rest else [])])


def main_plot(board: Board) -> bytes:
    """The main metric over the versions, as PNG."""
    return plots.png(plots.scores(board, board.main_metric, plots.PAPER))


def leader(board: Board) -> str:
    """`θ_2 leads 4 versions with total_variation 0.081 ± 0.003`."""
    scores = [(row.name, row.scores[board.main_metric]) for row in board.rows if board.main_metric in row.scores]
    if not scores:
        return "nothing is scored yet"
    merits = {name: merit for name, score in scores if (merit := score.merit()) is not None}
    if not merits:
        name, last = scores[-1]
        return f"{name} has {board.main_metric} {format_score(last)}, which tells nothing of better and worse"
    name, best = max(scores, key=lambda item: merits.get(item[0], -math.inf))
    return f"{name} leads {len(scores)} versions with {board.main_metric} {format_score(best)}"


def leaderboard_tables(board: Board, tasks: Sequence[str], *, headline: bool = False, suite: str = "") -> list[str]:
    """All models and some scores, a few to a table.

    The headline's first has what the gate made of each version; the others have what others reported.
    """
    tables = []
    for start in range(0, len(tasks), COLUMNS):
        some = tasks[start : start + COLUMNS]
        told = headline and start == 0
        rows = [
            [board.name_of(row), *(unbroken(cell(row, task)) for task in some), *([row.gate or "–"] if told else [])]
            for row in (*board.rows, *board.beside(some, reported=not headline))
        ]
        header = ["", *(heading(board, task, suite).replace("_", " ") for task in some), *(["gate"] if told else [])]
        tables.append(markdown_table(header, rows))
    return tables


def unbroken(score: str) -> str:
    """A score that a narrow column breaks nowhere but before its error."""
    return score.replace("± ", "±\u00a0").replace(", ", ",\u00a0").replace(" *", "\u00a0*")


def cell(row: Row, task: str) -> str:
    """A score, marked if it differs from θ_0's."""
    return format_score(row.scores.get(task)) + (" *" if differs_from_base(row, task) else "")


def score_table(board: Board, t: int) -> str:
    """The scores of θ_t with their change against θ_{t-1} and θ_0."""
    row = board.rows[t]
    lines = []
    for task in board.tasks():
        if task in row.scores:
            by_version = {one.against: one for one in row.differences.get(task, ())}
            changes = [difference(by_version.get(version)) for version in dict.fromkeys((t - 1, 0))]
            lines.append([heading(board, task), format_score(row.scores[task]), *changes, str(row.scores[task].n)])
    versions = [f"against θ_{version}" for version in dict.fromkeys((t - 1, 0))]
    return markdown_table(["task", row.name, *versions, "items"], lines)


def notes(board: Board) -> list[str]:
    """What a reader of the last version's scores should know; nothing if there is nothing."""
    said = [f"- {literal(note)}" for note in board.head_notes()]
    return ["\n".join(said)] if said else []


def difference(comparison: Comparison | None) -> str:
    """`+0.12 ± 0.03 *`."""
    if comparison is None:
        return "–"
    return f"{comparison.delta:+.3g} ± {comparison.stderr:.2g}" + (" *" if significant(comparison) else "")


def training(record: IterationRecord) -> list[str]:
    """Steps, first loss, metrics and what the monitors saw."""
    train, steps = record.train, plots.metrics(record.train.path)
    last = train.published or train.steps
    chosen = "" if last == train.steps else f" Published are the weights of step {last}."
    events = [f"**{event.action}** at step {event.step}: {event.message}" for event in train.events]
    first = {name: f"{value:.4g}" for name, value in steps[0].items() if value is not None}
    return [
        f"{train.steps} steps. The first loss is {train.first_loss:.5f}; log 2 is 0.69315.{chosen}",
        "\n".join(f"- {event}" for event in events or ["the monitors saw nothing unusual"]),
        markdown_table(
            ["metric", "first step", f"step {last}", *(["held out"] if train.held_out else [])],
            [
                [name, first.get(name, "–"), f"{value:.4g}", *([held(train, name)] if train.held_out else [])]
                for name, value in train.metrics.items()
            ],
        ),
    ]


def held(train: TrainRun, name: str) -> str:
    """A metric on the held-out pairs."""
    return f"{train.held_out[name]:.4g}" if name in train.held_out else "–"


def data_table(record: IterationRecord) -> str:
    """Counts of what went in and what came out."""
    drops = ", ".join(f"{count} {reason}" for reason, count in record.pairs.drops.items() if count) or "none"
    mix = ", ".join(f"{rows} from iteration {t}" for t, rows in record.pairs.mix.items())
    ended = ", ".join(f"{count} {reason}" for reason, count in record.generations.finish_reasons.items())
    halved = record.generations.smallest_batch
    return markdown_table(
        ["what", "count"],
        [
            ["training prompts", f"{record.prompts.rows:,}"],
            ["answers", f"{record.generations.rows:,} ({ended}; {record.generations.tokens:,} tokens)"],
            *([["prompts at a time", f"{halved:,} at the least, since memory ran out"]] if halved else []),
            ["pairs kept", f"{record.pairs.rows:,} of {record.pairs.rows_in:,} ({mix})"],
            ["pairs dropped", drops],
        ],
    )


def answers(batch: GenerationBatch) -> list[str]:
    """What the answers look like beside the human responses; nothing of a batch that did not count it."""
    found = batch.statistics
    if found is None:
        return []
    return [
        "## Answers",
        markdown_table(["", "human", "generated"], answer_rows(found)),
        image(plots.png(plots.lengths({batch.t: found}, plots.PAPER)), "lengths of human and generated responses"),
    ]


def answer_rows(found: AnswerStatistics) -> list[list[str]]:
    """Both sides' lengths, faults and diversity: what, of the human responses, of the generated ones."""
    sides = (found.real, found.generated)
    same = share(found.same_as_real, found.generated.responses)
    return [
        ["responses", *(f"{side.responses:,}" for side in sides)],
        ["tokens, mean", *(f"{side.mean_tokens:.1f}" for side in sides)],
        ["tokens, median (5 to 95 %)", *(middle(side) for side in sides)],
        ["cut", *(share(side.finish_reasons.get("length", 0), side.responses) for side in sides)],
        ["empty", *(share(side.empty, side.responses) for side in sides)],
        ["looping", *(share(side.looping, side.responses) for side in sides)],
        ["said before, to any prompt", *(share(side.repeated, side.responses) for side in sides)],
        ["same as the human response", "–", same],
        ["distinct-1, -2, -3", *(", ".join(f"{part:.3f}" for part in side.distinct) for side in sides)],
    ]


def cost_table(record: IterationRecord) -> str:
    """Seconds, device hours, memory and tokens by phase."""
    tokens = costs.tokens(record)
    phases = [
        [
            phase,
            f"{seconds:.1f}",
            f"{costs.device_hours(record, phase):.3g}",
            f"{record.peak_memory_mb.get(phase, 0):,.0f}",
            f"{tokens[phase]:,}" if phase in tokens else "",
        ]
        for phase, seconds in record.seconds.items()
    ]
    spent = costs.of(record)
    together = ["**in all**", f"**{spent.seconds:.1f}**", f"**{spent.device_hours:.3g}**", "", ""]
    return markdown_table(["phase", "seconds", "device hours", "peak memory, MB", "tokens"], [*phases, together])


def origin_table(record: IterationRecord) -> str:
    """What the iteration was made from, and what made it."""
    known = {
        "recipe": record.config.recipe,
        "seed": str(record.config.seed),
        "opponent": record.opponent.digest[:12],
        "player": record.player.digest[:12],
        **record.environment,
    }
    return markdown_table(["what", "which"], [[name, f"`{value}`"] for name, value in known.items()])


def samples(lineage: Lineage, upto: int) -> list[Sample]:
    """The first held-out prompts with what is answered to them; none where no version was asked."""
    if not answered(lineage, "held-out"):
        return []
    found = read(lineage, "held-out", upto)
    return [found.sample(place) for place in range(min(SAMPLES, len(found)))]


def sample_table(found: Sequence[Sample], versions: Collection[int]) -> str:
    """Samples as one table of who said what."""
    said = []
    for sample in found:
        said += [(f"**{turn.role or 'prompt'}**", turn.content) for turn in sample.turns]
        said += [("human", sample.real.text)]
        said += [(answer.name, answer.text) for answer in sample.answers if answer.t in versions]
    return markdown_table(["", ""], [[who, literal(text) or "*nothing*"] for who, text in said])


def literal(text: str, limit: int = 600) -> str:
    """Text that markdown and HTML leave as it is."""
    cut = text if len(text) <= limit else text[:limit] + " …"
    escaped = html.escape(cut, quote=False)
    for sign in "\\`*_~[]|#":
        escaped = escaped.replace(sign, f"\\{sign}")
    return re.sub(r"\r\n|[\r\n]", "<br>", escaped)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def image(png: bytes, title: str) -> str:
    """A picture inside the markdown itself: the form that both of Prefect's UIs show."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
