"""The frontier of a comparison: how far each method is from θ_0's curve over temperatures, over the seeds.

An error over seeds says what another run would change, an interval over items what other prompts would.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from spin_core.config.base import Frozen
from spin_core.config.evaluate import EvaluateConfig
from spin_core.evaluation.statistics import t_quantile
from spin_core.leaderboard.board import places, signed
from spin_core.leaderboard.frontier import Frontier, Sweep, compare_sweeps

Sweeps = Mapping[str, Mapping[int, tuple[int | None, Sweep]]]
"""The version (None for another method) and the sweep of each method and seed."""

FRONTIER_NOTE = (
    "Negative is below θ_0's curve over temperatures. Means over the seeds ± their standard error over them. Over "
    "items: the 95 % interval of the means over the seeds, for all methods together. * neither explains the difference."
)
"""How to read the table of the frontier."""


class FrontierLine(Frozen):
    """One method at the temperature of use. Values are means over the seeds."""

    name: str
    diversity: float
    quality: float
    deltas: tuple[float, ...] = ()
    """The difference in quality from θ_0's curve at equal diversity, of each seed; empty for θ_0."""
    delta: float | None = None
    """Their mean."""
    stderr: float | None = None
    """Its standard error over the seeds; None with one."""
    low: float | None = None
    high: float | None = None
    """The ends of the 95 % interval over the items, each item's mean over the seeds, for all methods together."""
    clear: bool = False
    """Neither the seeds (if there are several) nor the items explain the difference, each at the 95 % level."""


class SeedFrontier(Frozen):
    """The differences of all methods from θ_0's curve. Negative is below the curve, which is better."""

    diversity: str
    quality: str
    temperature: float
    lines: tuple[FrontierLine, ...]

    def header(self) -> list[str]:
        """The first row of its table."""
        x, y = (name.replace("_", " ") for name in (self.diversity, self.quality))
        return [f"at temperature {self.temperature:g}", x, y, f"{y} from θ_0's curve at equal {x}", "over items"]


def cells(line: FrontierLine) -> list[str]:
    """A method's row of the table."""
    values = [line.name, f"{line.diversity:.4f}", f"{line.quality:.4f}"]
    if line.delta is None:
        return [*values, "–", "–"]
    interval = "–" if line.low is None or line.high is None else f"[{signed(line.low, 4)}, {signed(line.high, 4)}]"
    return [*values, format_delta(line.delta, line.stderr, clear=line.clear), interval]


def format_delta(delta: float, stderr: float | None, *, clear: bool) -> str:
    """`+0.0121 ± 0.0030 *`: a difference with its error over the seeds; `*` if it is clear."""
    error = "" if stderr is None else f" ± {stderr:.4f}"
    return f"{signed(delta, max(4, places(delta)))}{error} *" if clear else f"{signed(delta, 4)}{error}"


def over_seeds(sweeps: Sweeps, seeds: int, config: EvaluateConfig) -> SeedFrontier | None:
    """Return the frontier over the seeds, of the methods that were measured in all of them; None if θ_0 was not."""
    complete = {name: by_seed for name, by_seed in sweeps.items() if len(by_seed) == seeds}
    means = {
        name: (next(iter(by_seed.values()))[0], Sweep.mean_of([sweep for _, sweep in by_seed.values()]))
        for name, by_seed in complete.items()
    }
    whole = compare_sweeps(means, config)
    if whole is None:
        return None
    numbers = sorted({seed for by_seed in complete.values() for seed in by_seed})
    alone = [compare_sweeps({name: by[seed] for name, by in complete.items()}, config) for seed in numbers]
    found = [frontier for frontier in alone if frontier is not None]
    return SeedFrontier(
        diversity=whole.diversity,
        quality=whole.quality,
        temperature=whole.temperature,
        lines=tuple(_line(row.name, whole, found) for row in whole.rows),
    )


def _line(name: str, whole: Frontier, alone: Sequence[Frontier]) -> FrontierLine:
    """One method's line, from the frontier of the means over the seeds and the frontiers of single seeds."""
    (row,) = (row for row in whole.rows if row.name == name)
    values = {"name": name, "diversity": row.diversity.value, "quality": row.quality.value}
    gap = row.quality_gap
    gaps = [each.quality_gap for frontier in alone for each in frontier.rows if each.name == name and each.quality_gap]
    if gap is None or not gaps:
        return FrontierLine.model_validate(values)
    deltas = tuple(each.delta for each in gaps)
    delta, stderr = float(np.mean(deltas)), None
    if len(deltas) > 1:
        stderr = float(np.std(deltas, ddof=1) / np.sqrt(len(deltas)))
    by_seeds = stderr is None or abs(delta) > t_quantile(len(deltas) - 1) * stderr
    differences = {"deltas": deltas, "delta": delta, "stderr": stderr, "low": gap.low, "high": gap.high}
    return FrontierLine.model_validate({**values, **differences, "clear": by_seeds and bool(gap.verdict)})
