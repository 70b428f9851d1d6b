"""What a person reads of an iteration: a markdown page with its scores, plots and ten samples."""

import base64
import html
import io
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from spin_core.board import Board, Row, format_score, leaderboard
from spin_core.lineage import Lineage
from spin_core.records import (
    AnswerStatistics,
    Comparison,
    GenerationBatch,
    IterationRecord,
    ResponseStatistics,
    TrainRun,
)
from spin_core.samples import Sample, answered, read

SAMPLES = 10
COLUMNS = 5
"""Scores beside one another: with more, a table runs into the margin of Prefect's page."""
INK, ACCENT, MUTED = "#1f2937", "#2563eb", "#9ca3af"


def iteration_page(lineage: Lineage, record: IterationRecord) -> str:
    """The markdown artifact of one iteration."""
    t = record.t + 1
    known = leaderboard(lineage)
    # As it stood then: a page that is written again later is the same page.
    board = known.model_copy(update={"rows": known.rows[: t + 1], "controls": ()})
    return "\n\n".join(
        [
            f"# {lineage.name}: θ_{record.t} → θ_{t}",
            f"Iteration {record.t}. **Gate: {record.gate.outcome}.** {record.gate.reason}",
            "## Scores",
            score_table(board, t),
            image(leaderboard_plot(board), f"{board.main_metric} over the versions"),
            "## Training",
            *training(record),
            image(training_plot(record), "training curve"),
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


def leaderboard_page(board: Board, headline: Sequence[str] = ()) -> str:
    """The markdown of the keyed artifact `leaderboard-<lineage>`; the scores of `headline` stand above the plot."""
    tasks = board.tasks()
    chosen = [task for task in tasks if task in (board.main_metric, *headline)]
    tables = leaderboard_tables(board, chosen)
    tables += leaderboard_tables(board, [task for task in tasks if task not in chosen])
    first, *others = tables or ["Nothing is scored yet."]
    return "\n\n".join(
        [
            f"# Leaderboard of {board.lineage}",
            first,
            image(leaderboard_plot(board), f"{board.main_metric} over the versions"),
            "value ± standard error; `*` differs from θ_0 by more than two standard errors of the paired difference. "
            "↓: lower is better.",
            *(["## Further scores", *others] if others else []),
        ]
    )


def leader(board: Board) -> str:
    """`θ_2 leads 4 versions with total_variation 0.081 ± 0.003`."""
    scores = [(row.name, row.scores[board.main_metric]) for row in board.rows if board.main_metric in row.scores]
    if not scores:
        return "nothing is scored yet"
    name, best = max(scores, key=lambda item: item[1].value if item[1].higher_is_better else -item[1].value)
    return f"{name} leads {len(scores)} versions with {board.main_metric} {format_score(best)}"


def leaderboard_tables(board: Board, tasks: Sequence[str]) -> list[str]:
    """All models and the tasks, a few to a table."""
    return [
        markdown_table(
            ["", *(heading(board, task).replace("_", " ") for task in some)],
            [[row.name, *(unbroken(cell(row, task)) for task in some)] for row in (*board.rows, *board.controls)],
        )
        for some in (tasks[start : start + COLUMNS] for start in range(0, len(tasks), COLUMNS))
    ]


def unbroken(score: str) -> str:
    """A score that a narrow column breaks nowhere but before its error."""
    return score.replace("± ", "±\u00a0").replace(" *", "\u00a0*")


def heading(board: Board, task: str) -> str:
    """A task's name, with an arrow down where lower is better."""
    known = [row.scores[task] for row in (*board.rows, *board.controls) if task in row.scores]
    return task if all(score.higher_is_better for score in known) else f"{task} ↓"


def cell(row: Row, task: str) -> str:
    """A score, marked if it differs from θ_0's by more than two standard errors of the paired difference."""
    mark = any(one.against == 0 and significant(one) for one in row.differences.get(task, ()))
    return format_score(row.scores.get(task)) + (" *" if mark else "")


def significant(comparison: Comparison) -> bool:
    """The difference is more than two of its standard errors."""
    return abs(comparison.delta) > 2 * comparison.stderr


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


def difference(comparison: Comparison | None) -> str:
    """`+0.12 ± 0.03 *`."""
    if comparison is None:
        return "–"
    return f"{comparison.delta:+.3g} ± {comparison.stderr:.2g}" + (" *" if significant(comparison) else "")


def training(record: IterationRecord) -> list[str]:
    """Steps, first loss, metrics and what the monitors saw."""
    train, steps = record.train, metrics(record.train.path)
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
                [name, first[name], f"{value:.4g}", *([held(train, name)] if train.held_out else [])]
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
    return markdown_table(
        ["what", "count"],
        [
            ["training prompts", f"{record.prompts.rows:,}"],
            ["answers", f"{record.generations.rows:,} ({ended}; {record.generations.tokens:,} tokens)"],
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
        answer_table(found),
        image(length_plot(found), "lengths of human and generated responses"),
    ]


def answer_table(found: AnswerStatistics) -> str:
    """Both sides' lengths, faults and diversity."""
    sides = (found.real, found.generated)
    same = share(found.same_as_real, found.generated.responses)
    return markdown_table(
        ["", "human", "generated"],
        [
            ["responses", *(f"{side.responses:,}" for side in sides)],
            ["tokens, mean", *(f"{side.mean_tokens:.1f}" for side in sides)],
            ["tokens, median (5 to 95 %)", *(middle(side) for side in sides)],
            ["cut", *(share(side.finish_reasons.get("length", 0), side.responses) for side in sides)],
            ["empty", *(share(side.empty, side.responses) for side in sides)],
            ["looping", *(share(side.looping, side.responses) for side in sides)],
            ["said before, to any prompt", *(share(side.repeated, side.responses) for side in sides)],
            ["same as the human response", "–", same],
            ["distinct-1, -2, -3", *(", ".join(f"{part:.3f}" for part in side.distinct) for side in sides)],
        ],
    )


def share(count: int, whole: int) -> str:
    """`12 (2.4 %)`."""
    return f"{count:,} ({100 * count / max(1, whole):.1f} %)" if count else "0"


def middle(side: ResponseStatistics) -> str:
    """`14 (3 to 40)`: the median number of tokens, and the range without the outer twentieths."""
    if not side.quantiles:
        return "–"
    _, low, _, median, _, high, _ = side.quantiles
    return f"{median:,} ({low:,} to {high:,})"


def cost_table(record: IterationRecord) -> str:
    """Seconds and memory by phase."""
    phases = [
        [phase, f"{seconds:.1f}", f"{record.peak_memory_mb.get(phase, 0):,.0f}"]
        for phase, seconds in record.seconds.items()
    ]
    together = ["**in all**", f"**{sum(record.seconds.values()):.1f}**", ""]
    return markdown_table(["phase", "seconds", "peak memory, MB"], [*phases, together])


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


def leaderboard_plot(board: Board) -> bytes:
    """The main metric over t with two-standard-error bars, and the controls as dashed lines. PNG."""
    figure, axes = new_figure()
    metric = board.main_metric
    points = [(row.t, row.scores[metric]) for row in board.rows if metric in row.scores]
    axes.errorbar(
        [t for t, _ in points],
        [score.value for _, score in points],
        yerr=[2 * score.stderr for _, score in points],
        color=ACCENT,
        marker="o",
        capsize=4,
        label="SPIN, ± 2 standard errors",
    )
    styles = ["--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]
    controls = [row for row in board.controls if metric in row.scores]
    for number, row in enumerate(controls):
        axes.axhline(row.scores[metric].value, color=MUTED, linestyle=styles[number % len(styles)], label=row.name)
    axes.set_xticks([t for t, _ in points if t is not None], [f"θ_{t}" for t, _ in points])
    axes.set_ylabel(heading(board, metric))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return rendered(figure)


def training_plot(record: IterationRecord) -> bytes:
    """Loss and reward accuracy over the steps. PNG."""
    steps = metrics(record.train.path)
    figure, axes = new_figure()
    axes.plot([step["step"] for step in steps], [step["loss"] for step in steps], color=ACCENT, label="loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if all("rewards/accuracies" in step for step in steps):
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.plot(
            [step["step"] for step in steps],
            [step["rewards/accuracies"] for step in steps],
            color=MUTED,
            linewidth=1,
            label="reward accuracy",
        )
        right.set_ylabel("reward accuracy")
        right.set_ylim(0, 1.02)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=2)
    return rendered(figure)


def length_plot(found: AnswerStatistics) -> bytes:
    """How many tokens human and generated responses have, as shares of each side. PNG."""
    figure, axes = new_figure(height=2.2)
    edges = [found.bin_tokens * number for number in range(len(found.real.histogram) + 1)]
    for side, label, style in (
        (found.real, "human", {"color": MUTED, "fill": True, "alpha": 0.45}),
        (found.generated, "generated", {"color": ACCENT, "linewidth": 1.6}),
    ):
        shares = [100 * count / max(1, side.responses) for count in side.histogram]
        axes.stairs(shares, edges, label=label, **style)
    bins = (real + generated for real, generated in zip(found.real.histogram, found.generated.histogram, strict=True))
    axes.set_xlim(0, max((edge for edge, count in zip(edges[1:], bins, strict=True) if count), default=1))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens")
    axes.set_ylabel("% of responses")
    axes.legend(frameon=False, fontsize=8)
    return rendered(figure)


def metrics(train: Path) -> list[dict[str, Any]]:
    """The training metrics, one dictionary a step."""
    return [json.loads(line) for line in (train / "metrics.jsonl").read_text("utf-8").splitlines()]


def new_figure(height: float = 3.2) -> tuple[Any, Any]:
    """A small figure, `height` inches high, without matplotlib's global state, so that threads may draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.ticklabel_format(useOffset=False)
    axes.grid(axis="y", color="#e5e7eb")
    return figure, axes


def rendered(figure: Any) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
