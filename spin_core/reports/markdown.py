"""The pages in Prefect's UI: an iteration with its scores, plots and ten samples, and the leaderboard."""

import base64
import html
import math
import re
from collections.abc import Collection, Sequence

from spin_core.config.run import RunConfig
from spin_core.errors import count
from spin_core.leaderboard.board import (
    CHOSEN,
    Board,
    Row,
    decimals_of_column,
    differs_from_base,
    format_score,
    leaderboard,
    significant,
)
from spin_core.leaderboard.frontier import Frontier
from spin_core.lineage import costs
from spin_core.lineage.lineage import Lineage
from spin_core.reports import frontier, plots
from spin_core.reports.formatting import ARROWS, heading, middle, share
from spin_core.reports.samples import Sample, answered, read
from spin_core.store.records import (
    AnswerStatistics,
    Comparison,
    GenerationBatch,
    IterationRecord,
    TrainRun,
)

_SAMPLES = 10

_COLUMNS = 5
"""Score columns in a table. More would run into the margin of Prefect's page."""

_MARKS = "`*` differs from θ_0: the 95 % interval of the paired difference, by bootstrap over the items, excludes 0"

_CHOICE = f"{CHOSEN}: the gate's choice"


def iteration_page(lineage: Lineage, record: IterationRecord) -> str:
    """The markdown artifact of one iteration."""
    t = record.t + 1
    latest = leaderboard(lineage)
    # Only what existed after this iteration, so that a page that is written again later is the same page.
    board = latest.model_copy(
        update={
            "rows": latest.rows[: t + 1],
            "controls": (),
            "choice": record.gate.next_opponent,
            "frontier": None,
        }
    )
    return "\n\n".join(
        [
            f"# {lineage.name}: θ_{record.t} → θ_{t}",
            f"Iteration {record.t}. **Gate: {record.gate.outcome}.** {record.gate.reason}",
            "## Scores",
            _score_table(board, t),
            *notes(board),
            image(_main_plot(board), f"{board.main_metric} over the versions"),
            "## Training",
            *training(record),
            image(plots.png(plots.training(record, plots.PAPER)), "training curve"),
            "## Data",
            data_table(record),
            *answers(record.generations),
            "## Samples",
            "Held-out prompts with the human response and the versions' answers.",
            _sample_table(samples(lineage, upto=t), (0, record.t, t)),
            "## Cost",
            _cost_table(record),
            "## Origin",
            _origin_table(record),
        ]
    )


def leaderboard_page(board: Board, config: RunConfig) -> str:
    """The markdown artifact `leaderboard-<lineage>`: headline scores and plot, then suite by suite."""
    shown = board.headline(config)
    first, *others = _leaderboard_tables(board, shown, headline=True) or ["Nothing is scored yet."]
    parts = [
        f"# Leaderboard of {board.lineage}",
        first,
        image(_main_plot(board), f"{board.main_metric} over the versions"),
        f"value ± standard error; {_MARKS}. {ARROWS}. {_CHOICE}.",
        *others,
    ]
    if board.frontier is not None:
        parts += _frontier(board, board.frontier)
    for suite in board.suites:
        tasks = board.main_tasks(suite)
        if board.has_score(suite):
            parts += [f"## {suite}", *_leaderboard_tables(board, tasks, suite=suite)]
            shown = [*shown, *tasks]
    rest = _leaderboard_tables(board, [task for task in board.tasks() if task not in shown])
    if board.references:
        parts.append(f"{board.references[0].name} and so on: {board.references[0].model}.")
    return "\n\n".join([*parts, *(["## Further scores", *rest] if rest else [])])


def _frontier(board: Board, swept: Frontier) -> list[str]:
    """The versions against θ_0's curve over temperatures."""
    by_control = frontier.control_rows(swept)
    return [
        "## Frontier",
        *([f"{line}."] if (line := frontier.summary(board)) else []),
        image(plots.png(plots.frontier(swept, plots.PAPER)), frontier.axes(swept)),
        markdown_table(frontier.header(swept), [frontier.cells(row) for row in swept.rows]),
        f"{frontier.legend(swept)}.".replace("*", "`*`"),
        *([f"{frontier.control_title(swept)}:"] if by_control else []),
        *([markdown_table(frontier.control_header(swept), by_control)] if by_control else []),
    ]


def _main_plot(board: Board) -> bytes:
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
        return f"{name} has {board.main_metric} {format_score(last)}, a score without a better direction"
    name, best = max(scores, key=lambda item: merits.get(item[0], -math.inf))
    return f"{name} leads {len(scores)} versions with {board.main_metric} {format_score(best)}"


def _leaderboard_tables(board: Board, tasks: Sequence[str], *, headline: bool = False, suite: str = "") -> list[str]:
    """Tables of all models with these scores, a few scores a table.

    The first headline table also has the gate's decision on each version; tables of suites also have the scores that
    others reported.
    """
    tables = []
    for start in range(0, len(tasks), _COLUMNS):
        columns = tasks[start : start + _COLUMNS]
        with_gate = headline and start == 0
        shown = [*board.rows, *board.other_rows(columns, reported=not headline)]
        digits = {task: decimals_of_column(shown, task) for task in columns}
        rows = [
            [
                board.name_of(row),
                *(_unbroken(cell(row, task, digits[task])) for task in columns),
                *([row.gate or "–"] if with_gate else []),
            ]
            for row in shown
        ]
        header = [
            "",
            *(heading(board, task, suite).replace("_", " ") for task in columns),
            *(["gate"] if with_gate else []),
        ]
        tables.append(markdown_table(header, rows))
    return tables


def _unbroken(score: str) -> str:
    """A score with no-break spaces, so that a narrow column breaks it only before its error."""
    return score.replace("± ", "±\u00a0").replace(", ", ",\u00a0").replace(" *", "\u00a0*")


def cell(row: Row, task: str, least: int = 0) -> str:
    """A score with at least so many decimals, and with `*` if it differs from θ_0's."""
    return format_score(row.scores.get(task), least) + (" *" if differs_from_base(row, task) else "")


def _score_table(board: Board, t: int) -> str:
    """The scores of θ_t with their change against θ_{t-1} and θ_0."""
    row = board.rows[t]
    lines = []
    for task in board.tasks():
        if task in row.scores:
            by_version = {change.against: change for change in row.differences.get(task, ())}
            changes = [difference(by_version.get(version)) for version in dict.fromkeys((t - 1, 0))]
            lines.append([heading(board, task), format_score(row.scores[task]), *changes, str(row.scores[task].n)])
    versions = [f"against θ_{version}" for version in dict.fromkeys((t - 1, 0))]
    return markdown_table(["task", row.name, *versions, "items"], lines)


def notes(board: Board) -> list[str]:
    """The notes on the last version's scores, as one list; empty without notes."""
    lines = [f"- {literal(note)}" for note in board.head_notes()]
    return ["\n".join(lines)] if lines else []


def difference(comparison: Comparison | None) -> str:
    """`+0.12 ± 0.03 *`."""
    if comparison is None:
        return "–"
    return f"{comparison.delta:+.3g} ± {comparison.stderr:.2g}" + (" *" if significant(comparison) else "")


def training(record: IterationRecord) -> list[str]:
    """Steps, first loss, metrics, and the events of the monitors."""
    train, steps = record.train, plots.metrics(record.train.path)
    last = train.published or train.steps
    chosen = "" if last == train.steps else f" The published weights are those of step {last}."
    events = [f"**{event.action}** at step {event.step}: {event.message}" for event in train.events]
    first = {name: f"{value:.4g}" for name, value in steps[0].items() if value is not None}
    return [
        f"{count(train.steps, 'step')}. The first loss is {train.first_loss:.5f}; log 2 is 0.69315.{chosen}",
        "\n".join(f"- {event}" for event in events or ["the monitors reported nothing unusual"]),
        markdown_table(
            ["metric", "first step", f"step {last}", *(["held out"] if train.held_out else [])],
            [
                [name, first.get(name, "–"), f"{value:.4g}", *([held_out_value(train, name)] if train.held_out else [])]
                for name, value in train.metrics.items()
            ],
        ),
    ]


def held_out_value(train: TrainRun, name: str) -> str:
    """The value of a metric on the held-out pairs, as text."""
    return f"{train.held_out[name]:.4g}" if name in train.held_out else "–"


def data_table(record: IterationRecord) -> str:
    """Counts of prompts, answers and pairs, with the reasons of dropped pairs."""
    drops = ", ".join(f"{count} {reason}" for reason, count in record.pairs.drops.items() if count) or "none"
    mix = ", ".join(f"{rows} from iteration {t}" for t, rows in record.pairs.mix.items())
    ended = ", ".join(f"{count} {reason}" for reason, count in record.generations.finish_reasons.items())
    halved = record.generations.smallest_batch
    return markdown_table(
        ["what", "count"],
        [
            ["training prompts", f"{record.prompts.rows:,}"],
            ["answers", f"{record.generations.rows:,} ({ended}; {count(record.generations.tokens, 'token')})"],
            *([["smallest batch of prompts", f"{halved:,}, since memory ran out"]] if halved else []),
            ["pairs kept", f"{record.pairs.rows:,} of {record.pairs.rows_in:,} ({mix})"],
            ["pairs dropped", drops],
        ],
    )


def answers(batch: GenerationBatch) -> list[str]:
    """Statistics of the answers next to the human responses; empty if the batch has none."""
    statistics = batch.statistics
    if statistics is None:
        return []
    return [
        "## Answers",
        markdown_table(["", "human", "generated"], answer_rows(statistics)),
        image(plots.png(plots.lengths({batch.t: statistics}, plots.PAPER)), "lengths of human and generated responses"),
    ]


def answer_rows(statistics: AnswerStatistics) -> list[list[str]]:
    """Rows of lengths, faults and diversity: a label, the human responses' value, the generated answers' value."""
    sides = (statistics.real, statistics.generated)
    same = share(statistics.same_as_real, statistics.generated.responses)
    return [
        ["responses", *(f"{side.responses:,}" for side in sides)],
        ["tokens, mean", *(f"{side.mean_tokens:.1f}" for side in sides)],
        ["tokens, median (5 to 95 %)", *(middle(side) for side in sides)],
        ["cut", *(share(side.finish_reasons.get("length", 0), side.responses) for side in sides)],
        ["empty", *(share(side.empty, side.responses) for side in sides)],
        ["looping", *(share(side.looping, side.responses) for side in sides)],
        ["repeated, to any prompt", *(share(side.repeated, side.responses) for side in sides)],
        ["same as the human response", "–", same],
        ["distinct-1, -2, -3", *(", ".join(f"{part:.3f}" for part in side.distinct) for side in sides)],
    ]


def _cost_table(record: IterationRecord) -> str:
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
    spent = costs.total(record)
    total = ["**total**", f"**{spent.seconds:.1f}**", f"**{spent.device_hours:.3g}**", "", ""]
    return markdown_table(["phase", "seconds", "device hours", "peak memory, MB", "tokens"], [*phases, total])


def _origin_table(record: IterationRecord) -> str:
    """The recipe, seed, models and software of the iteration."""
    values = {
        "recipe": record.config.recipe,
        "seed": str(record.config.seed),
        "opponent": record.opponent.digest[:12],
        "player": record.player.digest[:12],
        **record.environment,
    }
    return markdown_table(["what", "which"], [[name, f"`{value}`"] for name, value in values.items()])


def samples(lineage: Lineage, upto: int) -> list[Sample]:
    """The first held-out prompts with their answers; empty if no version has answered any."""
    if not answered(lineage, "held-out"):
        return []
    held_out = read(lineage, "held-out", upto)
    return [held_out.sample(index) for index in range(min(_SAMPLES, len(held_out)))]


def _sample_table(samples: Sequence[Sample], versions: Collection[int]) -> str:
    """Samples as one table of speakers and texts."""
    rows = []
    for sample in samples:
        rows += [(f"**{turn.role or 'prompt'}**", turn.content) for turn in sample.turns]
        rows += [("human", sample.real.text)]
        rows += [(answer.name, answer.text) for answer in sample.answers if answer.t in versions]
    return markdown_table(["", ""], [[who, literal(text) or "*nothing*"] for who, text in rows])


def literal(text: str, limit: int = 600) -> str:
    """Text escaped so that markdown and HTML show it unchanged, cut after `limit` characters."""
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
    """A picture as a data URI, which both of Prefect's UIs show."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
