"""The leaderboard: every version of a lineage with its scores, and the paired differences between them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from spin_core.config.base import Frozen
from spin_core.config.run import RunConfig
from spin_core.evaluation.statistics import Difference, average, paired
from spin_core.leaderboard import reference_rows
from spin_core.leaderboard.frontier import Frontier, frontier
from spin_core.lineage import costs
from spin_core.lineage.costs import Costs
from spin_core.lineage.lineage import Lineage, reports_in
from spin_core.store import artifacts, files
from spin_core.store.records import Comparison, EvalReport, IterationRecord, Score
from spin_core.store.tables import read_table

_Items = Mapping[str, Mapping[str, float]]
"""Value by item, by task."""


class SourceScores(Frozen):
    """A model's scores on the held-out prompts of one of several sources."""

    scores: dict[str, Score]
    differences: dict[str, tuple[Comparison, ...]] = {}
    """Paired differences by task, as those of the model's row."""


class Row(Frozen):
    """One model of the leaderboard."""

    name: str
    """`θ_2`, or a control's name."""
    t: int | None
    """The version; None for a control."""
    model: str
    """The model's folder, or what it is."""
    digest: str
    scores: dict[str, Score]
    differences: dict[str, tuple[Comparison, ...]] = {}
    """Paired differences by task, where single items are known: against the version before, and against θ_0."""
    notes: dict[str, tuple[str, ...]] = {}
    """Notes for a reader of the scores, by suite."""
    gate: Literal["promote", "keep-best", "stop"] | None = None
    """The gate's decision on this version; None for θ_0, which the gate never judges, and for controls."""
    costs: Costs | None = None
    """Costs of the iteration that trained it; None for θ_0 and for controls."""
    by_source: dict[str, SourceScores] = {}
    """Scores on the held-out prompts of each source, if the lineage has several."""


class Board(Frozen):
    """All versions of a lineage and the controls, in one table."""

    lineage: str
    main_metric: str
    rows: tuple[Row, ...]
    controls: tuple[Row, ...]
    suites: dict[str, tuple[str, ...]] = {}
    """The tasks of each suite, in the suite's order; an average comes after its parts."""
    averages: dict[str, tuple[str, ...]] = {}
    """Scores that are the mean of others: their names, and the names of their parts."""
    choice: int | None = None
    """The version that the gate chose as the next opponent; None before the first decision."""
    references: tuple[Row, ...] = ()
    """Scores that others reported for their models on the same suites. None of them was measured here."""
    frontier: Frontier | None = None
    """The versions and controls compared with θ_0's curve over temperatures; None if that was not measured."""

    def tasks(self) -> list[str]:
        """Every task that any row has, the main metric first."""
        tasks = list(dict.fromkeys(task for row in (*self.rows, *self.controls) for task in row.scores))
        return sorted(tasks, key=lambda task: task != self.main_metric)

    def sources(self) -> list[str]:
        """The sources of held-out prompts that have scores of their own; empty unless there are several."""
        return sorted({source for row in (*self.rows, *self.controls) for source in row.by_source})

    def of_source(self, source: str) -> "Board":
        """The same models with their scores on the held-out prompts of one source alone."""
        parts = [
            tuple(row.model_copy(update=dict(row.by_source[source])) for row in rows if source in row.by_source)
            for rows in (self.rows, self.controls)
        ]
        return self.model_copy(update={"rows": parts[0], "controls": parts[1], "references": ()})

    def main_tasks(self, suite: str) -> list[str]:
        """The tasks of a suite's table: its average and parts, or all tasks without second metrics (`task/metric`).

        Members of a group that has an average of its own are left out. MT-Bench's parts begin with its name.
        """
        tasks = self.suites[suite]
        if parts := [task for task in tasks if task.startswith(f"{suite}/")]:
            return [suite, *parts]
        if suite in self.averages:
            return [suite, *(part for part in self.averages[suite] if part in tasks)]
        members = {part for group in self.averages.values() for part in group}
        return [task for task in tasks if "/" not in task and task not in members]

    def has_score(self, suite: str) -> bool:
        """Whether a suite has a score of its own, named like the suite."""
        return suite in self.suites[suite]

    def headline(self, config: RunConfig) -> list[str]:
        """The scores to show first: main metric, gate's metric, suites' averages, configured ones, single tasks."""
        shown = config.evaluate
        votes = self.suites.get(VOTES, ())
        wanted = (self.main_metric, config.gate.metric, *shown.suites, *shown.headline, *shown.lm_eval.tasks, *votes)
        tasks = self.tasks()
        return [task for task in dict.fromkeys(wanted) if task in tasks]

    def other_rows(self, tasks: Sequence[str], *, reported: bool) -> list[Row]:
        """The controls that have any of these tasks; with `reported` also the scores that others reported."""
        rows = (*self.controls, *(self.references if reported else ()))
        return [row for row in rows if any(task in row.scores for task in tasks)]

    def head_notes(self) -> list[str]:
        """Notes on the last version's scores, as `θ_2, self-play: …`."""
        return [
            f"{row.name}, {suite}: {note}" for row in self.rows[-1:] for suite in row.notes for note in row.notes[suite]
        ]

    def name_of(self, row: Row) -> str:
        """A row's name, with a mark if the gate chose it."""
        return f"{row.name} {CHOSEN}" if row.t is not None and row.t == self.choice else row.name


VOTES = "votes"
"""The suite of people's votes in `spin chat --blind`."""

CHOSEN = "◂"
"""Marks the version that the gate has chosen: the next opponent, or the best of a run that ended."""


def leaderboard(lineage: Lineage) -> Board:
    """Compute the leaderboard from the published evaluations."""
    records = lineage.records()
    reports_by_t: dict[int, list[EvalReport]] = {}
    for t in range(len(records) + 1):
        if not (reports := lineage.reports(t)):
            break
        reports_by_t[t] = reports
    control_reports = {
        folder: reports
        for folder in sorted((lineage.root / "controls").glob("*"))
        if (reports := reports_in(folder / "eval"))
    }
    all_reports = [report for reports in (*reports_by_t.values(), *control_reports.values()) for report in reports]
    suites = _suites_of(all_reports)
    separate = {report.suite for report in all_reports if report.apart}
    comparable = {suite: tasks for suite, tasks in suites.items() if suite not in separate}
    chat_template = any(_used_chat_template(report) for report in all_reports)
    source = reference_rows.source(comparable, scores(all_reports), chat_template=chat_template)
    return Board(
        lineage=lineage.name,
        main_metric=lineage.config.evaluate.main_metric,
        rows=tuple(_version_row(lineage, t, reports_by_t, records) for t in reports_by_t),
        controls=tuple(
            _control_row(lineage, folder, reports, reports_by_t) for folder, reports in control_reports.items()
        ),
        suites=suites,
        averages=averages(all_reports),
        choice=records[-1].gate.next_opponent if records else None,
        references=tuple(
            Row(name=name, t=None, model=source, digest="", scores=reported)
            for name, reported in reference_rows.matching(comparable).items()
        ),
        frontier=frontier(
            {
                **{f"θ_{t}": (t, reports) for t, reports in reports_by_t.items()},
                **{folder.name: (None, reports) for folder, reports in control_reports.items()},
            },
            lineage.config.evaluate,
        ),
    )


def _version_row(
    lineage: Lineage, t: int, reports_by_t: Mapping[int, Sequence[EvalReport]], records: Sequence[IterationRecord]
) -> Row:
    """The row of θ_t, compared with the version before it and with θ_0."""
    reports = reports_by_t[t]
    against = dict.fromkeys(version for version in (t - 1, 0) if 0 <= version < t)
    others = {version: reports_by_t[version] for version in against}
    return Row(
        name=f"θ_{t}",
        t=t,
        model=str(_model_folder(lineage, t)),
        digest=reports[0].model,
        scores=scores(reports),
        notes=notes(reports),
        differences=compare(reports, others),
        gate=records[t - 1].gate.outcome if t > 0 else None,
        costs=costs.total(records[t - 1]) if t > 0 else None,
        by_source=scores_by_source(lineage, reports, others),
    )


def _control_row(
    lineage: Lineage, folder: Path, reports: Sequence[EvalReport], reports_by_t: Mapping[int, Sequence[EvalReport]]
) -> Row:
    """The row of a control, compared with θ_0."""
    others = {0: reports_by_t[0]} if 0 in reports_by_t else {}
    return Row(
        name=folder.name,
        t=None,
        model=str(folder),
        digest=reports[0].model,
        scores=scores(reports),
        notes=notes(reports),
        differences=compare(reports, others),
        by_source=scores_by_source(lineage, reports, others),
    )


def save(lineage: Lineage) -> Board:
    """Compute the leaderboard, write it to `leaderboard.json` and return it."""
    board = leaderboard(lineage)
    files.write_json(lineage.root / "leaderboard.json", board.model_dump(mode="json"))
    return board


def _model_folder(lineage: Lineage, t: int) -> Path:
    """The folder of θ_t's weights."""
    if t > 0:
        return lineage.iteration(t - 1) / "model"
    records = lineage.records()
    return records[0].opponent.path if records else lineage.root / "base" / "model"


def scores(reports: Sequence[EvalReport]) -> dict[str, Score]:
    """The scores of all suites in one dictionary."""
    return {task: score for report in reports for task, score in report.scores.items()}


def notes(reports: Sequence[EvalReport]) -> dict[str, tuple[str, ...]]:
    """The notes of each suite that has any."""
    return {report.suite: report.notes for report in reports if report.notes}


def averages(reports: Sequence[EvalReport]) -> dict[str, tuple[str, ...]]:
    """The scores that are the mean of others, over all suites, with the names of their parts."""
    return {name: parts for report in reports for name, parts in report.averages.items()}


def _used_chat_template(report: EvalReport) -> bool:
    """Whether lm-eval's prompts were wrapped in the model's chat template."""
    manifest = artifacts.read_manifest(report.path)
    config = manifest["identity"].get("config", {}) if manifest else {}
    return bool(config.get("apply_chat_template"))


def _suites_of(reports: Sequence[EvalReport]) -> dict[str, tuple[str, ...]]:
    """The tasks of every suite that any of the models has."""
    tasks_by_suite: dict[str, dict[str, None]] = {}
    for report in reports:
        if report.scores:  # a frontier's has none
            tasks_by_suite.setdefault(report.suite, {}).update(dict.fromkeys(report.scores))
    return {suite: tuple(tasks) for suite, tasks in tasks_by_suite.items()}


def items(reports: Sequence[EvalReport]) -> dict[str, dict[str, float]]:
    """The value of each item of each task, over all suites of one model."""
    values: dict[str, dict[str, float]] = {}
    for report in reports:
        path = report.path / "items.parquet"
        if path.exists():
            table = read_table(path)
            rows = zip(*(table[name].to_pylist() for name in ("task", "item", "value")), strict=True)
            for task, item, value in rows:
                values.setdefault(task, {})[item] = value
    return values


def compare(
    reports: Sequence[EvalReport], others: Mapping[int, Sequence[EvalReport]]
) -> dict[str, tuple[Comparison, ...]]:
    """Paired differences against other versions' reports, for every task whose single items are known."""
    own_items, means = items(reports), averages(reports)
    other_items = {version: items(other) for version, other in others.items()}
    comparisons: dict[str, tuple[Comparison, ...]] = {}
    for task in scores(reports):
        pairs = {version: difference(task, own_items, other, means) for version, other in other_items.items()}
        if compared := tuple(comparison(version, pair) for version, pair in pairs.items() if pair):
            comparisons[task] = compared
    return comparisons


def scores_by_source(
    lineage: Lineage, reports: Sequence[EvalReport], others: Mapping[int, Sequence[EvalReport]]
) -> dict[str, SourceScores]:
    """A model's scores on each source's held-out prompts, with paired differences against other versions' reports."""
    report = next((report for report in reports if report.by_source), None)
    if report is None:
        return {}
    held_out = read_table(lineage.iteration(0) / "prompts" / "held_out.parquet", columns=["id", "source"])
    source_of = dict(zip(held_out["id"].to_pylist(), held_out["source"].to_pylist(), strict=True))
    own_items, other_items = items([report]), {version: items(other) for version, other in others.items()}
    parts = {}
    for source, scores in report.by_source.items():
        own = {
            task: {id: v for id, v in by_id.items() if source_of.get(id) == source} for task, by_id in own_items.items()
        }
        differences = {
            task: tuple(
                comparison(version, pair)
                for version, other in other_items.items()
                if (pair := difference(task, own, other, {}))
            )
            for task in scores
        }
        parts[source] = SourceScores(scores=scores, differences=differences)
    return parts


def difference(task: str, own: _Items, other: _Items, means: Mapping[str, Sequence[str]]) -> Difference | None:
    """The paired difference of a score, or of an average part by part; None if single items are not known.

    Args:
        task: The name of the score.
        own: Item values of the model, by task.
        other: Item values of the model that it is compared with.
        means: The scores that are averages, with the names of their parts.
    """
    if task in own and task in other:
        return paired(own[task], other[task], task)
    parts = [difference(part, own, other, means) for part in means.get(task, ())]
    measured = [part for part in parts if part is not None]
    return average(measured) if parts and len(measured) == len(parts) else None


def significant(comparison: Comparison) -> bool:
    """Whether the 95 % interval of the difference excludes 0. By chance one in twenty does."""
    low, high = comparison.low, comparison.high
    return low is not None and high is not None and not low <= 0 <= high


def differs_from_base(row: Row, task: str) -> bool:
    """Whether a score differs from θ_0's."""
    return any(change.against == 0 and significant(change) for change in row.differences.get(task, ()))


def comparison(against: int, pair: Difference) -> Comparison:
    """A difference as a record of the leaderboard."""
    low, high = pair.interval() or (None, None)
    return Comparison(against=against, delta=pair.mean, stderr=pair.stderr, low=low, high=high)


def format_score(score: Score | None, least: int = 0) -> str:
    """`0.1234 ± 0.0043`, with as many digits as the error justifies; a win rate as `0.53 [0.42, 0.64]`.

    Args:
        score: The score; None for a dash.
        least: The fewest decimals of the value, as `decimals_of_column` gives them.
    """
    if score is None:
        return "–"
    if score.interval is not None:
        low, high = score.interval
        return f"{score.value:.{max(2, least)}f} [{low:.2f}, {high:.2f}]"
    if not score.stderr:
        text = f"{score.value:.4g}"
        return text if len(text.partition(".")[2]) >= least else f"{score.value:.{least}f}"
    digits = decimals(score.stderr)
    return f"{score.value:.{max(digits, least)}f} ± {score.stderr:.{digits}f}"


def decimals_of_column(rows: Iterable[Row], task: str) -> int:
    """The fewest decimals with which each marked score of a column looks different from θ_0's; 0 without marks."""
    changes = (change for row in rows for change in row.differences.get(task, ()))
    return max((places(change.delta) for change in changes if change.against == 0 and significant(change)), default=0)


def format_difference(comparison: Comparison) -> str:
    """`-0.0123 [-0.0150, -0.0098]`: the difference and its 95 % interval, if there is one."""
    delta, low, high = comparison.delta, comparison.low, comparison.high
    if comparison.stderr <= 0:
        return f"{delta:+.4g}"
    digits = decimals(comparison.stderr)
    if low is None or high is None:
        return f"{signed(delta, digits)} (too few items for an interval)"
    if significant(comparison):
        digits = max(digits, places(delta), places(low), places(high))
    return f"{signed(delta, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def decimals(stderr: float) -> int:
    """How many decimals are meaningful with such a standard error, at most four."""
    return int(min(4, max(0, 1 - np.floor(np.log10(stderr))))) if stderr > 0 else 4


def places(value: float) -> int:
    """The decimals that show a value other than 0 as one: 4 for 0.0003."""
    return int(max(0, -np.floor(np.log10(abs(value))))) if value else 0


def signed(value: float, digits: int) -> str:
    """`+0.0012`; `+0.0000`, and never `-0.0000`, for what rounds to 0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
