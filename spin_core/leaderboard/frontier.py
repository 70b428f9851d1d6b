"""Whether versions are below θ_0's curve over temperatures, from the published sweeps of a lineage."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spin_core.config.base import Frozen
from spin_core.evaluation.frontier import curves
from spin_core.evaluation.frontier.axes import EXACT, FILE
from spin_core.evaluation.suites import FRONTIER
from spin_core.store.records import EvalReport, Score
from spin_core.store.tables import read_table

Floats = NDArray[np.float64]


class Point(Frozen):
    """A model at one temperature."""

    temperature: float
    diversity: float
    quality: float


class Curve(Frozen):
    """A model at all temperatures."""

    name: str
    t: int | None
    """The version; None for a control."""
    points: tuple[Point, ...]


class Gap(Frozen):
    """How far a model is from θ_0's curve on one axis, where both are equal on the other. Negative is better."""

    delta: float
    stderr: float
    low: float | None
    high: float | None
    """The ends of its 95 % interval, which holds for all models of the table together; None with too few items."""
    temperature: float
    """θ_0's temperature there."""
    reach: curves.Reach
    """`inside`, or why the curve has no such point: `beyond` what any temperature reaches, or outside the sweep."""
    verdict: str
    """`below` or `above` the curve if that is significant; else empty."""


class FrontierRow(Frozen):
    """A model at the temperature of use."""

    name: str
    t: int | None
    diversity: Score
    quality: Score
    quality_gap: Gap | None = None
    """The difference in quality at equal diversity; None for θ_0."""
    diversity_gap: Gap | None = None
    """The difference in diversity at equal quality; None for θ_0."""


class Frontier(Frozen):
    """Curves over temperatures on two axes, lower is better on both, and how far models are from θ_0's."""

    diversity: str
    """The metric of the first axis."""
    quality: str
    """The metric of the second axis."""
    temperature: float
    """The temperature of use."""
    items: int
    curves: tuple[Curve, ...]
    rows: tuple[FrontierRow, ...]


class _Sweep:
    """A published sweep: value by item of each metric at each temperature."""

    def __init__(self, report: EvalReport) -> None:
        table = read_table(report.path / FILE)
        columns = (table[name].to_pylist() for name in ("temperature", "task", "item", "value"))
        self.values: dict[str, dict[float, dict[str, float]]] = {}
        for temperature, task, item, value in zip(*columns, strict=True):
            self.values.setdefault(task, {}).setdefault(temperature, {})[item] = value

    def temperatures(self) -> list[float]:
        """The temperatures, rising."""
        return sorted(next(iter(self.values.values())))

    def at(self, task: str, temperature: float, items: Sequence[str]) -> Floats:
        """The values of these items, (N,)."""
        value = self.values[task][temperature]
        return np.array([value[item] for item in items])

    def over(self, task: str, items: Sequence[str]) -> Floats:
        """The values at every temperature, (K, N)."""
        return np.stack([self.at(task, temperature, items) for temperature in self.temperatures()])


def frontier(models: Mapping[str, tuple[int | None, Sequence[EvalReport]]], temperature: float) -> Frontier | None:
    """Compare models with θ_0's curve.

    Args:
        models: The version (None for a control) and the reports of each model, by name.
        temperature: The temperature of use.

    Returns:
        None if θ_0 has no sweep that includes the temperature of use.
    """
    sweeps = {name: (t, sweep) for name, (t, reports) in models.items() if (sweep := _sweep_in(reports))}
    base = next((sweep for t, sweep in sweeps.values() if t == 0), None)
    if base is None or temperature not in base.temperatures():
        return None
    diversity, quality = EXACT
    sweeps = {name: entry for name, entry in sweeps.items() if temperature in entry[1].temperatures()}
    items = sorted(set.intersection(*(set(sweep.values[quality][temperature]) for _, sweep in sweeps.values())))
    others = {name: sweep for name, (t, sweep) in sweeps.items() if t != 0}
    by_quality = _gaps(base, others, temperature, items, equal=diversity, compared=quality)
    by_diversity = _gaps(base, others, temperature, items, equal=quality, compared=diversity)
    return Frontier(
        diversity=diversity,
        quality=quality,
        temperature=temperature,
        items=len(items),
        curves=tuple(_curve(name, t, sweep, diversity, quality, items) for name, (t, sweep) in sweeps.items()),
        rows=tuple(
            FrontierRow(
                name=name,
                t=t,
                diversity=_score(sweep.at(diversity, temperature, items)),
                quality=_score(sweep.at(quality, temperature, items)),
                quality_gap=by_quality.get(name),
                diversity_gap=by_diversity.get(name),
            )
            for name, (t, sweep) in sweeps.items()
        ),
    )


def _sweep_in(reports: Sequence[EvalReport]) -> _Sweep | None:
    """The sweep among a model's reports."""
    return next((_Sweep(report) for report in reports if report.suite == FRONTIER), None)


def _score(value_N: Floats) -> Score:
    """The mean over the items with its standard error."""
    n = len(value_N)
    stderr = float(value_N.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return Score(value=float(value_N.mean()), stderr=stderr, n=n, higher_is_better=False)


def _curve(name: str, t: int | None, sweep: _Sweep, diversity: str, quality: str, items: Sequence[str]) -> Curve:
    x_K, y_K = (sweep.over(task, items).mean(1) for task in (diversity, quality))
    points = zip(sweep.temperatures(), x_K, y_K, strict=True)
    return Curve(
        name=name,
        t=t,
        points=tuple(Point(temperature=at, diversity=float(x), quality=float(y)) for at, x, y in points),
    )


def _gaps(
    base: _Sweep, others: Mapping[str, _Sweep], temperature: float, items: Sequence[str], *, equal: str, compared: str
) -> dict[str, Gap]:
    """Each model's gap to θ_0's curve in one metric, where another is equal."""
    if not others or len(items) < 2:
        return {}
    x_MN, y_MN = (
        np.stack([sweep.at(task, temperature, items) for sweep in others.values()]) for task in (equal, compared)
    )
    found = curves.gaps(
        np.array(base.temperatures()),
        base.over(equal, items),
        base.over(compared, items),
        x_MN,
        y_MN,
        seed=zlib.crc32(compared.encode()),
    )
    return {
        name: Gap(
            delta=gap.delta,
            stderr=gap.stderr,
            low=gap.low,
            high=gap.high,
            temperature=gap.temperature,
            reach=gap.reach,
            verdict=curves.verdict(gap),
        )
        for name, gap in zip(others, found, strict=True)
    }
