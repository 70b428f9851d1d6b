"""Cards of what a lineage publishes, as the hub reads them: a version's model card, and the card of a pair data set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from spin_core.config.base import at
from spin_core.config.run import RunConfig
from spin_core.leaderboard.board import Board, Row, format_difference, format_score
from spin_core.lineage.lineage import Lineage
from spin_core.store.records import IterationRecord, ModelVersion, Score

RECIPE = "recipe.yaml"
"""The file with the lineage's settings next to a card."""


def model_card(lineage: Lineage, version: ModelVersion, board: Board, *, is_adapter: bool = False) -> str:
    """The card of a version: metadata, scores, what it was made from, sampling, limits, and how to make it again."""
    config, records = lineage.config, lineage.records()
    row = next((row for row in board.rows if row.t == version.t), None)
    name = f"{lineage.name}-{version.t}"
    metadata = ModelCardData(
        model_name=name,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["self-play-fine-tuning", "spin"],
        base_model=_hub_name(config.model.path),
        datasets=_hub_name(config.prompts.source.path),
        eval_results=list(_results(board, row)),
    )
    lines = [
        *_heading(metadata.to_yaml(), name),
        f"θ_{version.t} of the lineage `{lineage.name}`: "
        + ("made by" if version.t else "the SFT model, which is the beginning of")
        + " self-play fine-tuning ([SPIN](https://arxiv.org/abs/2401.01335)).",
        *_scores(board, row),
        *_origin(config, version, records),
        "",
        "## Sampling",
        "",
        *_sampling(config, version.t),
        "",
        "## Limits",
        "",
        "Scores are of one run with one seed, on the prompts and suites above alone. Errors and intervals show how "
        "much items vary, not what another seed would change. Nothing was checked about safety, bias or other uses.",
        *_reproduction(config, version.t, records),
    ]
    return "\n".join(lines) + "\n"


def pairs_card(lineage: Lineage, record: IterationRecord) -> str:
    """The card of an iteration's pairs."""
    pairs, name = record.pairs, f"{lineage.name}-pairs-{record.t}"
    metadata = DatasetCardData(pretty_name=name, tags=["self-play-fine-tuning", "spin", "preference"])
    metadata.configs = [{"config_name": "default", "data_files": "pairs.parquet"}]
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in pairs.drops.items() if count) or "none"
    lines = [
        *_heading(metadata.to_yaml(), name),
        f"{pairs.rows:,} pairs that iteration {record.t} of the lineage `{lineage.name}` has trained on, in the "
        "columns that TRL's `DPOTrainer` reads: `prompt`, `chosen` and `rejected`. The chosen response is the one in "
        f"the SFT data, the rejected one was sampled from θ_{record.opponent.t}.",
        "",
        f"Left out of {pairs.rows_in:,} rows: {dropped}.",
        *_origin(record.config, record.opponent, [record]),
        "",
        "## Sampling",
        "",
        *_sampling(record.config, record.t),
        *_reproduction(record.config, record.t + 1, [record]),
    ]
    return "\n".join(lines) + "\n"


def _heading(metadata: str, name: str) -> list[str]:
    """The metadata between marks, and the title."""
    return ["---", metadata.rstrip(), "---", "", f"# {name}", ""]


def _hub_name(path: str) -> str | None:
    """A model's or data set's name on the hub; None for a path of this machine."""
    is_name = path.count("/") == 1 and not path.startswith((".", "~", "/")) and not Path(path).exists()
    return path if is_name else None


def _results(board: Board, row: Row | None) -> Iterator[EvalResult]:
    """The row's scores for the hub's `model-index`."""
    suite_of = {task: suite for suite, tasks in board.suites.items() for task in tasks}
    for task, score in _reported(row):
        suite = suite_of.get(task, task)
        yield EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=suite,
            dataset_name=suite,
            metric_type=task,
            metric_name=f"{task} (± {score.stderr:.2g}, n = {score.n})" if score.stderr else task,
            metric_value=score.value,
        )


def _reported(row: Row | None) -> list[tuple[str, Score]]:
    """The scores of a row, without those that say nothing about quality."""
    return [(task, score) for task, score in row.scores.items() if score.merit() is not None] if row else []


def _scores(board: Board, row: Row | None) -> Iterator[str]:
    """A table of scores with errors and the paired differences from θ_0."""
    yield from ("", "## Scores", "")
    if not _reported(row):
        yield "This version has not been scored."
        return
    assert row is not None
    base = board.rows[0]
    yield from ("| score | θ_0 | this version | paired difference from θ_0 |", "|---|---|---|---|")
    for task, score in _reported(row):
        change = next((each for each in row.differences.get(task, ()) if each.against == 0), None)
        better = "→" if score.target is not None else "↑" if score.higher_is_better else "↓"
        difference = format_difference(change) if change else "–"
        yield f"| {task} {better} | {format_score(base.scores.get(task))} | {format_score(score)} | {difference} |"
    yield from (
        "",
        "Value ± standard error over items; in brackets a 95 % interval. ↑ higher, ↓ lower is better; "
        "→ nearer to the human responses' value is better.",
    )


def _origin(config: RunConfig, version: ModelVersion, records: Sequence[IterationRecord]) -> Iterator[str]:
    """What a version was made from: model and data with their digests."""
    yield from ("", "## Made from", "", "| what | which | digest (SHA-256) |", "|---|---|---|")
    base = config.model.path or "a model that the recipe trains for itself"
    revision = f" at `{config.model.revision}`" if config.model.revision else ""
    if records:
        prompts = records[0].prompts
        yield f"| θ_{records[0].opponent.t} | {base}{revision} | `{records[0].opponent.digest}` |"
        at_revision = f" at `{prompts.revision}`" if prompts.revision else ""
        yield f"| SFT data | {prompts.source}{at_revision}, {prompts.rows:,} prompts | `{prompts.digest}` |"
    yield f"| θ_{version.t} | these weights as they were published | `{version.digest}` |"
    yield from (
        "",
        "The licences of the model and of the data that it was made from apply; they are not part of the records.",
    )


def _sampling(config: RunConfig, t: int) -> Iterator[str]:
    """How the lineage samples in iteration t."""
    generate: dict[str, Any] = config.generate.model_dump(mode="json")
    names = ("top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
    settings = {"temperature": at(config.generate.temperature, t), **{name: generate[name] for name in names}}
    yield ", ".join(f"`{name}` {value:g}" for name, value in settings.items()) + "."


def _reproduction(config: RunConfig, iterations: int, records: Sequence[IterationRecord]) -> Iterator[str]:
    """The command that makes it again, and the versions that made it."""
    yield from ("", "## Make it again", "", f"`{RECIPE}` has all settings.", "", "```bash")
    yield f"spin run {config.recipe} --lineage again --iterations {max(1, iterations)} --config {RECIPE}"
    yield "```"
    if records:
        versions = ", ".join(f"{name} {value}" for name, value in records[-1].environment.items())
        yield from ("", f"Made with {versions}.")
