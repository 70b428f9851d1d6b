"""The points of a lineage's curves, read only from its folder: one for every training step, and one for every version.

Training steps are counted through all iterations. So the points of a lineage have one order, which grows at its end and
never changes. A sink that knows the last points it has can continue after them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from spin_core.lineage import costs
from spin_core.lineage.lineage import Lineage
from spin_core.runtime.phase import scratch_of
from spin_core.store import artifacts, identity
from spin_core.store.records import EvalReport, IterationRecord, TrainRun
from spin_core.store.training_log import HELD_OUT, METRICS, TIMING, read_rows

STEP, VERSION = "train/step", "version"
"""The two kinds of points."""


class Last(NamedTuple):
    """The last step and the last version that a sink has."""

    step: int = 0
    version: int = -1


@dataclass(frozen=True)
class Point:
    """The values of one step or one version, by their names."""

    kind: str
    """`train/step` or `version`."""
    at: int
    """The number of the step or of the version."""
    order: int
    """The number of points before this one."""
    values: Mapping[str, float]


def points(lineage: Lineage, last: Last) -> Iterator[Point]:
    """All points after the last ones, in order, up to the lineage's present state."""
    if not lineage.iteration(0).joinpath("generations", identity.MANIFEST).exists():
        return  # the scores of θ_0 may not be complete yet
    if last.version < 0:
        yield Point(VERSION, 0, 0, _scores(lineage.reports(0)))
    done = 0
    for t in count():
        run = artifacts.read_record(lineage.iteration(t) / "train", TrainRun)
        if run is None or last.step < done + run.steps:
            for row in _rows(lineage, t, run):
                step = done + int(row["step"])
                if step > last.step:
                    yield Point(STEP, step, step + t, _step_values(row, t))
        record = lineage.record(t)
        if run is None or record is None:
            return
        done += run.steps
        if last.version <= t:
            yield Point(VERSION, t + 1, done + t + 1, _version_values(record))


def _rows(lineage: Lineage, t: int, run: TrainRun | None) -> list[dict[str, float]]:
    """The metrics of each step of iteration t, with its speed, and the metrics of held-out pairs if there are any.

    While training runs (`run` is None), the last step is left out, because some of its metrics may not be written yet.
    """
    folder = scratch_of(lineage.iteration(t) / "train") if run is None else run.path
    steps = read_rows(folder / METRICS)
    times, held_out = ({row["step"]: row for row in read_rows(folder / name)} for name in (TIMING, HELD_OUT))
    rows = []
    for row in steps if run else steps[:-1]:
        time, measured = times.get(row["step"], {}), held_out.get(row["step"], {})
        rows.append(
            {
                **row,
                **{f"{name}/s": time[name] / time["seconds"] for name in ("tokens", "pairs") if time.get(name)},
                **{f"held_out/{name}": value for name, value in measured.items() if name != "step"},
            }
        )
    return rows


def _step_values(row: Mapping[str, float], t: int) -> dict[str, float]:
    """The values of a step by their names in curves."""
    return {**{f"train/{name}": value for name, value in row.items() if name != "step"}, "train/iteration": t}


def _version_values(record: IterationRecord) -> dict[str, float]:
    """A version's scores, the pairs it was trained on, and its costs."""
    pairs, spent = record.pairs, costs.total(record)
    return {
        **_scores(record.evaluations),
        **_answers(record),
        "pairs/kept": pairs.rows,
        **{f"pairs/dropped/{reason}": dropped for reason, dropped in pairs.drops.items()},
        "gate/promoted": float(record.gate.outcome == "promote"),
        "cost/device_hours": spent.device_hours,
        "cost/seconds": spent.seconds,
        **{f"cost/seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
        **{f"cost/tokens/{phase}": tokens for phase, tokens in costs.tokens(record).items()},
        "cost/peak_memory_mb": max(record.peak_memory_mb.values(), default=0.0),
    }


def _scores(reports: Iterable[EvalReport]) -> dict[str, float]:
    """The scores of the leaderboard."""
    return {f"scores/{task}": score.value for report in reports for task, score in report.scores.items()}


def _answers(record: IterationRecord) -> dict[str, float]:
    """Properties of the opponent's answers, as shares of them."""
    statistics = record.generations.statistics
    if statistics is None or not statistics.generated.responses:
        return {}
    side = statistics.generated
    share = {
        "empty": side.empty,
        "looping": side.looping,
        "repeated": side.repeated,
        "cut": side.finish_reasons.get("length", 0),
        "same_as_real": statistics.same_as_real,
    }
    return {
        "answers/mean_tokens": side.mean_tokens,
        **{f"answers/{name}": number / side.responses for name, number in share.items()},
        **{f"answers/distinct_{n}": value for n, value in enumerate(side.distinct, 1)},
    }


def folder_of(lineage: Lineage) -> Path:
    """The folder in which sinks keep their files. If it is removed, all points are sent again."""
    return lineage.root / "metrics"
