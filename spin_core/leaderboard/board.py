"""The leaderboard: every version of a lineage with its scores, and the paired differences between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from spin_core.config.base import Frozen
from spin_core.config.run import RunConfig
from spin_core.evaluation.statistics import Difference, average, paired
from spin_core.leaderboard import reference_rows
from spin_core.lineage import costs
from spin_core.lineage.costs import Costs
from spin_core.lineage.lineage import Lineage, reports_in
from spin_core.store import artifacts, files
from spin_core.store.records import Comparison, EvalReport, Score
from spin_core.store.tables import read_table

Items = Mapping[str, Mapping[str, float]]
"""Value by item, by task."""


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
    """What a reader of the scores should know, by suite, where there is anything."""
    gate: Literal["promote", "keep-best", "stop"] | None = None
    """What the gate made of it; None for θ_0, which it never sees, and for controls."""
    costs: Costs | None = None
    """What the iteration that made it took; None for θ_0 and for controls."""


class Board(Frozen):
    """All versions of a lineage and the controls, in one table."""

    lineage: str
    main_metric: str
    rows: tuple[Row, ...]
    controls: tuple[Row, ...]
    suites: dict[str, tuple[str, ...]] = {}
    """The tasks of each suite, an average after its parts as the suite has them."""
    averages: dict[str, tuple[str, ...]] = {}
    """Tasks that are the mean of others, and of which."""
    choice: int | None = None
    """The version that the gate lets play next; None where it has seen none."""
    references: tuple[Row, ...] = ()
    """What others reported of their models on the same suites. Nothing of it was measured here."""

    def tasks(self) -> list[str]:
        """Every task that any row has, the main metric first."""
        found = dict.fromkeys(task for row in (*self.rows, *self.controls) for task in row.scores)
        return sorted(found, key=lambda task: (task != self.main_metric, list(found).index(task)))

    def main_tasks(self, suite: str) -> list[str]:
        """The tasks of a suite's table: its average and the parts of that, or all that are no task's second metric.

        Members of a group that has an average of its own are left out. MT-Bench's parts bear its name.
        """
        tasks = self.suites[suite]
        if parts := [task for task in tasks if task.startswith(f"{suite}/")]:
            return [suite, *parts]
        if suite in self.averages:
            return [suite, *(part for part in self.averages[suite] if part in tasks)]
        members = {part for group in self.averages.values() for part in group}
        return [task for task in tasks if "/" not in task and task not in members]

    def has_score(self, suite: str) -> bool:
        """Whether a suite has a score of its own, which bears its name."""
        return suite in self.suites[suite]

    def headline(self, config: RunConfig) -> list[str]:
        """The scores to see first: the main metric, the gate's, the suites' own, the configured ones, single tasks."""
        shown = config.evaluate
        wanted = (self.main_metric, config.gate.metric, *shown.suites, *shown.headline, *shown.lm_eval.tasks)
        tasks = self.tasks()
        return [task for task in dict.fromkeys(wanted) if task in tasks]

    def beside(self, tasks: Sequence[str], *, reported: bool) -> list[Row]:
        """What stands beside the versions in a table of these tasks: controls, and what others reported if so asked."""
        rows = (*self.controls, *(self.references if reported else ()))
        return [row for row in rows if any(task in row.scores for task in tasks)]

    def head_notes(self) -> list[str]:
        """`θ_2, self-play: …`: what a reader of the last version's scores should know."""
        return [
            f"{row.name}, {suite}: {note}" for row in self.rows[-1:] for suite in row.notes for note in row.notes[suite]
        ]

    def name_of(self, row: Row) -> str:
        """A row's name, marked if the gate chose it."""
        return f"{row.name} {CHOSEN}" if row.t is not None and row.t == self.choice else row.name


CHOSEN = "◂"
"""Marks the version that the gate has chosen: it plays next, or is the best of a game that ended."""


def leaderboard(lineage: Lineage) -> Board:
    """The leaderboard as the published evaluations have it."""
    records = lineage.records()
    rows, reports_by_t = [], dict[int, list[EvalReport]]()
    for t in range(len(records) + 1):
        reports = lineage.reports(t)
        if not reports:
            break
        reports_by_t[t] = reports
        against = dict.fromkeys(version for version in (t - 1, 0) if 0 <= version < t)
        rows.append(
            Row(
                name=f"θ_{t}",
                t=t,
                model=str(model_folder(lineage, t)),
                digest=reports[0].model,
                scores=scores(reports),
                notes=notes(reports),
                differences=compare(reports, {version: reports_by_t[version] for version in against}),
                gate=records[t - 1].gate.outcome if t > 0 else None,
                costs=costs.of(records[t - 1]) if t > 0 else None,
            )
        )
    of_controls = {
        folder: reports
        for folder in sorted((lineage.root / "controls").glob("*"))
        if (reports := reports_in(folder / "eval"))
    }
    controls = [
        Row(
            name=folder.name,
            t=None,
            model=str(folder),
            digest=reports[0].model,
            scores=scores(reports),
            notes=notes(reports),
            differences=compare(reports, {0: reports_by_t[0]} if 0 in reports_by_t else {}),
        )
        for folder, reports in of_controls.items()
    ]
    every = [report for reports in (*reports_by_t.values(), *of_controls.values()) for report in reports]
    suites = suites_of(every)
    apart = {report.suite for report in every if report.apart}
    beside = {suite: tasks for suite, tasks in suites.items() if suite not in apart}
    source = reference_rows.source(beside, scores(every), chat_template=any(map(with_chat_template, every)))
    return Board(
        lineage=lineage.name,
        main_metric=lineage.config.evaluate.main_metric,
        rows=tuple(rows),
        controls=tuple(controls),
        suites=suites,
        averages=averages(every),
        choice=records[-1].gate.next_opponent if records else None,
        references=tuple(
            Row(name=name, t=None, model=source, digest="", scores=found)
            for name, found in reference_rows.matching(beside).items()
        ),
    )


def save(lineage: Lineage) -> Board:
    """Write `leaderboard.json` and return what it says."""
    board = leaderboard(lineage)
    files.write_json(lineage.root / "leaderboard.json", board.model_dump(mode="json"))
    return board


def model_folder(lineage: Lineage, t: int) -> Path:
    """Where the weights of θ_t lie."""
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
    """The scores of all suites that are the mean of others, and of which."""
    return {name: parts for report in reports for name, parts in report.averages.items()}


def with_chat_template(report: EvalReport) -> bool:
    """Whether lm-eval's prompts were put into the model's chat template."""
    manifest = artifacts.read_manifest(report.path)
    config = manifest["identity"].get("config", {}) if manifest else {}
    return bool(config.get("apply_chat_template"))


def suites_of(reports: Sequence[EvalReport]) -> dict[str, tuple[str, ...]]:
    """Every suite's tasks, as far as any model has them."""
    found: dict[str, dict[str, None]] = {}
    for report in reports:
        found.setdefault(report.suite, {}).update(dict.fromkeys(report.scores))
    return {suite: tuple(tasks) for suite, tasks in found.items()}


def items(reports: Sequence[EvalReport]) -> dict[str, dict[str, float]]:
    """Value by item, by task, over all suites of one model."""
    found: dict[str, dict[str, float]] = {}
    for report in reports:
        path = report.path / "items.parquet"
        if path.exists():
            table = read_table(path)
            rows = zip(*(table[name].to_pylist() for name in ("task", "item", "value")), strict=True)
            for task, item, value in rows:
                found.setdefault(task, {})[item] = value
    return found


def compare(reports: Sequence[EvalReport], others: dict[int, list[EvalReport]]) -> dict[str, tuple[Comparison, ...]]:
    """Paired differences of every task whose single items are known, against other versions' reports."""
    mine, means = items(reports), averages(reports)
    theirs = {version: items(other) for version, other in others.items()}
    found: dict[str, tuple[Comparison, ...]] = {}
    for task in scores(reports):
        pairs = {version: difference(task, mine, other, means) for version, other in theirs.items()}
        kept = [comparison(version, pair) for version, pair in pairs.items() if pair]
        if kept:
            found[task] = tuple(kept)
    return found


def difference(task: str, mine: Items, theirs: Items, means: Mapping[str, Sequence[str]]) -> Difference | None:
    """The paired difference of a score, or of an average part by part; None where single items are not known."""
    if task in mine and task in theirs:
        return paired(mine[task], theirs[task], task)
    parts = [difference(part, mine, theirs, means) for part in means.get(task, ())]
    known = [part for part in parts if part is not None]
    return average(known) if parts and len(known) == len(parts) else None


def significant(comparison: Comparison) -> bool:
    """The 95 % interval of the difference leaves out 0. Of differences that are none, one in twenty does."""
    low, high = comparison.low, comparison.high
    return low is not None and high is not None and not low <= 0 <= high


def differs_from_base(row: Row, task: str) -> bool:
    """Whether a score differs from θ_0's."""
    return any(one.against == 0 and significant(one) for one in row.differences.get(task, ()))


def comparison(against: int, pair: Difference) -> Comparison:
    """A difference as the leaderboard keeps it."""
    low, high = pair.interval() or (None, None)
    return Comparison(against=against, delta=pair.mean, stderr=pair.stderr, low=low, high=high)


def format_score(score: Score | None) -> str:
    """`0.1234 ± 0.0043`, with as many digits as the error bears; a win rate with its interval, `0.53 [0.42, 0.64]`."""
    if score is None:
        return "–"
    if score.interval is not None:
        low, high = score.interval
        return f"{score.value:.2f} [{low:.2f}, {high:.2f}]"
    if not score.stderr:
        return f"{score.value:.4g}"
    digits = digits_of(score.stderr)
    return f"{score.value:.{digits}f} ± {score.stderr:.{digits}f}"


def format_difference(comparison: Comparison) -> str:
    """`-0.0123 [-0.0150, -0.0098]`: the difference and its 95 % interval, if there is one."""
    if comparison.stderr <= 0:
        return f"{comparison.delta:+.4g}"
    digits = digits_of(comparison.stderr)
    if comparison.low is None:
        return f"{comparison.delta:+.{digits}f} (too few items for an interval)"
    return f"{comparison.delta:+.{digits}f} [{comparison.low:+.{digits}f}, {comparison.high:+.{digits}f}]"


def digits_of(stderr: float) -> int:
    """How many digits behind the point bear something, with such an error: four at most."""
    return int(min(4, max(0, 1 - np.floor(np.log10(stderr)))))
