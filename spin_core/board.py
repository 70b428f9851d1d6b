"""The leaderboard of a lineage, the paired differences in it, and the gate that reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from spin_core import store
from spin_core.config import Frozen, RunConfig
from spin_core.errors import ConfigError
from spin_core.lineage import Lineage, reports_in
from spin_core.records import Comparison, EvalReport, GateDecision, Score


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


class Board(Frozen):
    """All versions of a lineage and the controls, in one table."""

    lineage: str
    main_metric: str
    rows: tuple[Row, ...]
    controls: tuple[Row, ...]

    def tasks(self) -> list[str]:
        """Every task that any row has, the main metric first."""
        found = dict.fromkeys(task for row in (*self.rows, *self.controls) for task in row.scores)
        return sorted(found, key=lambda task: (task != self.main_metric, list(found).index(task)))


def leaderboard(lineage: Lineage) -> Board:
    """The leaderboard as the published evaluations have it."""
    rows, reports_by_t = [], dict[int, list[EvalReport]]()
    for t in range(len(lineage.records()) + 1):
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
                differences=compare(reports, {version: reports_by_t[version] for version in against}),
            )
        )
    controls = [
        Row(
            name=folder.name,
            t=None,
            model=str(folder),
            digest=reports[0].model,
            scores=scores(reports),
            differences=compare(reports, {0: reports_by_t[0]} if 0 in reports_by_t else {}),
        )
        for folder in sorted((lineage.root / "controls").glob("*"))
        if (reports := reports_in(folder / "eval"))
    ]
    return Board(
        lineage=lineage.name,
        main_metric=lineage.config.evaluate.main_metric,
        rows=tuple(rows),
        controls=tuple(controls),
    )


def save(lineage: Lineage) -> Board:
    """Write `leaderboard.json` and return what it says."""
    board = leaderboard(lineage)
    store.write_json(lineage.root / "leaderboard.json", board.model_dump(mode="json"))
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


def compare(reports: Sequence[EvalReport], others: dict[int, list[EvalReport]]) -> dict[str, tuple[Comparison, ...]]:
    """Paired differences of every task whose single items are known, against other versions' reports."""
    mine = items(reports)
    found: dict[str, tuple[Comparison, ...]] = {}
    theirs = {version: items(other) for version, other in others.items()}
    for task, values in mine.items():
        pairs = [(version, paired(values, other[task])) for version, other in theirs.items() if task in other]
        kept = [Comparison(against=version, delta=pair[0], stderr=pair[1]) for version, pair in pairs if pair]
        if kept:
            found[task] = tuple(kept)
    return found


def items(reports: Sequence[EvalReport]) -> dict[str, dict[str, float]]:
    """Value by item, by task, over all suites of one model."""
    found: dict[str, dict[str, float]] = {}
    for report in reports:
        path = report.path / "items.parquet"
        if path.exists():
            table = pq.read_table(path)
            rows = zip(*(table[name].to_pylist() for name in ("task", "item", "value")), strict=True)
            for task, item, value in rows:
                found.setdefault(task, {})[item] = value
    return found


def paired(mine: dict[str, float], theirs: dict[str, float]) -> tuple[float, float] | None:
    """Mean difference over the items both have, and its standard error; None with fewer than two items."""
    shared = sorted(mine.keys() & theirs.keys())
    if len(shared) < 2:
        return None
    difference = np.array([mine[item] - theirs[item] for item in shared])
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(shared)))


def best(config: RunConfig, reports: Mapping[int, Sequence[EvalReport]], upto: int) -> tuple[int, Sequence[EvalReport]]:
    """The best of θ_0 … θ_upto by the main metric, the earliest of equals."""
    metric = config.evaluate.main_metric

    def merit(t: int) -> float:
        found = scores(reports[t])
        if metric not in found:
            raise ConfigError(
                f"evaluate.main_metric is {metric!r}, which no suite gives: choose one of {', '.join(sorted(found))}"
            )
        return found[metric].value if found[metric].higher_is_better else -found[metric].value

    t = max(range(upto + 1), key=lambda t: (merit(t), -t))
    return t, reports[t]


def decide(
    config: RunConfig, *, candidate: tuple[int, Sequence[EvalReport]], best: tuple[int, Sequence[EvalReport]]
) -> GateDecision:
    """Whether the candidate plays next, or the best version so far, or nobody.

    The candidate falls if it is worse than the best by more than `gate.tolerance` standard errors of the paired
    difference (of the difference of means, where single items are not known).
    """
    gate, metric = config.gate, config.evaluate.main_metric
    t, reports = candidate
    best_t, best_reports = best
    if gate.rule == "always":
        return GateDecision(outcome="promote", reason="the gate is always open", next_opponent=t)
    score, other = scores(reports)[metric], scores(best_reports)[metric]
    pair = paired(items(reports).get(metric, {}), items(best_reports).get(metric, {}))
    delta, stderr = pair or (score.value - other.value, float(np.hypot(score.stderr, other.stderr)))
    gain = delta if score.higher_is_better else -delta
    said = (
        f"{metric} {score.value:.4g} against {other.value:.4g} of θ_{best_t} (difference {delta:+.3g} ± {stderr:.2g})"
    )
    if gain >= -gate.tolerance * stderr:
        return GateDecision(outcome="promote", reason=f"θ_{t} plays next: {said}", next_opponent=t)
    if gate.rule == "best":
        return GateDecision(outcome="keep-best", reason=f"θ_{best_t} plays again: {said}", next_opponent=best_t)
    return GateDecision(outcome="stop", reason=f"stopped: {said}", next_opponent=best_t)


def format_score(score: Score | None) -> str:
    """`0.1234 ± 0.0043`, with as many digits as the error bears."""
    if score is None:
        return "–"
    if score.stderr <= 0:
        return f"{score.value:.4g}"
    digits = int(min(4, max(0, 1 - np.floor(np.log10(score.stderr)))))
    return f"{score.value:.{digits}f} ± {score.stderr:.{digits}f}"
