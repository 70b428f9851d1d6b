"""Whether versions are below θ_0's curve over temperatures, from the published sweeps of a lineage."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spin_core.config.base import Frozen
from spin_core.config.evaluate import EvaluateConfig
from spin_core.evaluation.frontier import curves
from spin_core.evaluation.frontier.axes import FILE, HIGHER_IS_BETTER, axes_of
from spin_core.evaluation.statistics import sampled_means
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
    """How far a model is from a curve on one axis, where both are equal on the other."""

    delta: float
    stderr: float
    low: float | None
    high: float | None
    """The ends of its 95 % interval, which holds for all models of the table together; None with too few items."""
    temperature: float
    """The curve's temperature there."""
    reach: curves.Reach
    """`inside`, or why the curve has no such point: `beyond` what any temperature reaches, or outside the sweep."""
    bound: Literal["", "≤", "≥"]
    """Whether the true difference is known to be at most or at least this one, because the curve does not reach."""
    verdict: Literal["better", "worse", ""]
    """`better` or `worse` than the curve if that is significant; else empty."""


class FrontierRow(Frozen):
    """A model at the temperature of use."""

    name: str
    t: int | None
    """The version; None for a control."""
    diversity: Score
    quality: Score
    quality_gap: Gap | None = None
    """The difference in quality from θ_0's curve at equal diversity; None for θ_0."""
    diversity_gap: Gap | None = None
    """The difference in diversity from θ_0's curve at equal quality; None for θ_0."""
    control_gaps: dict[str, Gap] = {}
    """Of a version: the difference in quality from the curve of each control, by its name."""


class Frontier(Frozen):
    """Curves over temperatures on two axes, and how far models are from θ_0's."""

    diversity: str
    """The metric of the first axis."""
    quality: str
    """The metric of the second axis. Lower is better."""
    more_is_diverse: bool = False
    """Whether higher is better on the first axis."""
    temperature: float
    """The temperature of use."""
    items: int
    curves: tuple[Curve, ...]
    rows: tuple[FrontierRow, ...]


class Sweep:
    """What was measured of one model: values by metric, temperature and item."""

    def __init__(self, values: dict[str, dict[float, dict[str, float]]]) -> None:
        self.values = values

    @classmethod
    def in_reports(cls, reports: Sequence[EvalReport]) -> "Sweep | None":
        """The sweep that one of a model's reports holds; None if none does."""
        report = next((report for report in reports if report.suite == FRONTIER), None)
        if report is None:
            return None
        table = read_table(report.path / FILE)
        columns = (table[name].to_pylist() for name in ("temperature", "task", "item", "value"))
        values: dict[str, dict[float, dict[str, float]]] = {}
        for temperature, task, item, value in zip(*columns, strict=True):
            values.setdefault(task, {}).setdefault(temperature, {})[item] = value
        return cls(values)

    @classmethod
    def mean_of(cls, sweeps: Sequence["Sweep"]) -> "Sweep":
        """The mean of each value over several models, where all have it."""
        first, *others = (sweep.values for sweep in sweeps)
        means: dict[str, dict[float, dict[str, float]]] = {}
        for task, by_temperature in first.items():
            for temperature, by_item in by_temperature.items():
                same = [by_item, *(other.get(task, {}).get(temperature, {}) for other in others)]
                shared = [item for item in by_item if all(item in values for values in same)]
                if shared:
                    mean = {item: float(np.mean([values[item] for values in same])) for item in shared}
                    means.setdefault(task, {})[temperature] = mean
        return cls(means)

    def temperatures(self) -> list[float]:
        """The temperatures, rising."""
        return sorted(next(iter(self.values.values())))

    def has(self, axes: Sequence[str], temperature: float) -> bool:
        """Whether both axes were measured, at this temperature too."""
        return set(axes) <= self.values.keys() and temperature in self.temperatures()

    def items(self, axes: Sequence[str]) -> set[str]:
        """The items that count on both axes at every temperature."""
        return set.intersection(*(set(value) for task in axes for value in self.values[task].values()))

    def at(self, task: str, temperature: float, items: Sequence[str]) -> Floats:
        """The values of these items, (N,)."""
        value = self.values[task][temperature]
        return np.array([value[item] for item in items])

    def over(self, task: str, items: Sequence[str]) -> Floats:
        """The values at every temperature, (K, N)."""
        return np.stack([self.at(task, temperature, items) for temperature in self.temperatures()])


def frontier(models: Mapping[str, tuple[int | None, Sequence[EvalReport]]], config: EvaluateConfig) -> Frontier | None:
    """Compare models with θ_0's curve.

    Args:
        models: The version (None for a control) and the reports of each model, by name.
        config: Has the temperature of use, and the axes for text.

    Returns:
        None if θ_0 has no sweep of these axes that includes the temperature of use.
    """
    sweeps = {name: (t, sweep) for name, (t, reports) in models.items() if (sweep := Sweep.in_reports(reports))}
    return compare_sweeps(sweeps, config)


def compare_sweeps(sweeps: Mapping[str, tuple[int | None, Sweep]], config: EvaluateConfig) -> Frontier | None:
    """The same for sweeps that are read already."""
    temperature = config.temperature
    base = next((sweep for t, sweep in sweeps.values() if t == 0), None)
    axes = axes_of(base.values, config) if base is not None else None
    if base is None or axes is None or temperature not in base.temperatures():
        return None
    sweeps = {name: (t, sweep) for name, (t, sweep) in sweeps.items() if sweep.has(axes, temperature)}
    items = sorted(set.intersection(*(sweep.items(axes) for _, sweep in sweeps.values())))
    if not items:
        return None
    means = _Means({name: sweep for name, (_, sweep) in sweeps.items()}, temperature, axes, items)
    first = next(name for name, (t, _) in sweeps.items() if t == 0)
    others = [name for name in sweeps if name != first]
    versions = [name for name in others if sweeps[name][0] is not None]
    controls = [name for name, (t, _) in sweeps.items() if t is None]
    by_quality, by_diversity = means.gaps(first, others), means.gaps(first, others, swapped=True)
    by_control = {control: means.gaps(control, versions) for control in controls}
    return Frontier(
        diversity=axes[0],
        quality=axes[1],
        more_is_diverse=axes[0] in HIGHER_IS_BETTER,
        temperature=temperature,
        items=len(items),
        curves=tuple(means.curve(name, t) for name, (t, _) in sweeps.items()),
        rows=tuple(
            FrontierRow(
                name=name,
                t=t,
                diversity=_score(sweep.at(axes[0], temperature, items), axes[0]),
                quality=_score(sweep.at(axes[1], temperature, items), axes[1]),
                quality_gap=by_quality.get(name),
                diversity_gap=by_diversity.get(name),
                control_gaps={control: gaps[name] for control, gaps in by_control.items() if name in gaps},
            )
            for name, (t, sweep) in sweeps.items()
        ),
    )


class _Means:
    """The means of all models at all temperatures, over the same items and the same samples of them.

    Those of an axis on which more is better have the opposite sign, so that lower is better on both.

    S: the mean over all items, and those over samples; K: temperatures.
    """

    def __init__(
        self, sweeps: Mapping[str, Sweep], temperature: float, axes: tuple[str, str], items: Sequence[str]
    ) -> None:
        self.items, self.temperature = len(items), temperature
        self.signs = [-1.0 if axis in HIGHER_IS_BETTER else 1.0 for axis in axes]
        self.temperatures = {name: sweep.temperatures() for name, sweep in sweeps.items()}
        parts = [
            sign * sweep.over(task, items)
            for sweep in sweeps.values()
            for task, sign in zip(axes, self.signs, strict=True)
        ]
        mean_SC = sampled_means(np.concatenate(parts), seed=zlib.crc32(" ".join(axes).encode()))
        means = iter(np.split(mean_SC, np.cumsum([len(part) for part in parts])[:-1], axis=1))
        self.means: dict[str, tuple[Floats, Floats]] = {name: (next(means), next(means)) for name in sweeps}

    def curve(self, name: str, t: int | None) -> Curve:
        """A model's curve."""
        x_K, y_K = (sign * mean_SK[0] for sign, mean_SK in zip(self.signs, self.means[name], strict=True))
        points = zip(self.temperatures[name], x_K, y_K, strict=True)
        return Curve(name=name, t=t, points=tuple(Point(temperature=at, diversity=x, quality=y) for at, x, y in points))

    def gaps(self, curve: str, models: Sequence[str], *, swapped: bool = False) -> dict[str, Gap]:
        """The models' gaps to a curve in quality at equal diversity; with `swapped`, in diversity at equal quality."""
        if not models or self.items < 2:
            return {}
        equal, compared = (1, 0) if swapped else (0, 1)
        used = [self.temperatures[name].index(self.temperature) for name in models]
        x_SM, y_SM = (
            np.stack([self.means[name][axis][:, k] for name, k in zip(models, used, strict=True)], axis=1)
            for axis in (equal, compared)
        )
        gaps = curves.gaps(
            np.array(self.temperatures[curve]),
            self.means[curve][equal],
            self.means[curve][compared],
            x_SM,
            y_SM,
            items=self.items,
        )
        return {name: _as_gap(gap, self.signs[compared]) for name, gap in zip(models, gaps, strict=True)}


def _as_gap(gap: curves.Gap, sign: float) -> Gap:
    """A gap with the sign that its axis has."""
    low, high = sorted(sign * end for end in (gap.low, gap.high) if end is not None) or (None, None)
    bounds: dict[curves.Reach, Literal["", "≤", "≥"]] = {"inside": "", "beyond": "≤", "short": "≥"}
    verdicts: dict[str, Literal["better", "worse", ""]] = {"below": "better", "above": "worse", "": ""}
    bound = bounds[gap.reach]
    if bound and sign < 0:
        bound = "≥" if bound == "≤" else "≤"
    return Gap(
        delta=sign * gap.delta,
        stderr=gap.stderr,
        low=low,
        high=high,
        temperature=gap.temperature,
        reach=gap.reach,
        bound=bound,
        verdict=verdicts[curves.verdict(gap)],
    )


def _score(value_N: Floats, task: str) -> Score:
    """The mean over the items with its standard error."""
    n = len(value_N)
    stderr = float(value_N.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return Score(value=float(value_N.mean()), stderr=stderr, n=n, higher_is_better=task in HIGHER_IS_BETTER)
