"""What a lineage has to tell a curve, read from its folder alone: a point for every step, and one for every version.

Training steps are counted on through the iterations. So the lineage has one order of points, which grows at its end and
never changes: whoever knows the last ones that he has goes on after them.
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


class Last(NamedTuple):
    """The last points that somebody has."""

    step: int = 0
    version: int = -1


@dataclass(frozen=True)
class Point:
    """Numbers that belong together."""

    kind: str
    """`train/step` or `version`."""
    at: int
    """The number of the step or of the version."""
    order: int
    """How many points come before this one."""
    values: Mapping[str, float]


def points(game: Lineage, last: Last) -> Iterator[Point]:
    """All points after the last ones, in their order, as far as the lineage has come."""
    if not game.iteration(0).joinpath("generations", identity.MANIFEST).exists():
        return  # θ_0 may not have all its scores yet
    if last.version < 0:
        yield Point(VERSION, 0, 0, scores(game.reports(0)))
    done = 0
    for t in count():
        run = artifacts.read_record(game.iteration(t) / "train", TrainRun)
        if run is None or last.step < done + run.steps:
            for row in rows(game, t, run):
                step = done + int(row["step"])
                if step > last.step:
                    yield Point(STEP, step, step + t, step_values(row, t))
        record = game.record(t)
        if run is None or record is None:
            return
        done += run.steps
        if last.version <= t:
            yield Point(VERSION, t + 1, done + t + 1, version_values(record))


def rows(game: Lineage, t: int, run: TrainRun | None) -> list[dict[str, float]]:
    """What the steps of iteration t measured, with their times, and the held-out pairs' metrics where they were taken.

    While it trains, the last step is left out: more of it may come.
    """
    folder = scratch_of(game.iteration(t) / "train") if run is None else run.path
    found = read_rows(folder / METRICS)
    times, held = ({row["step"]: row for row in read_rows(folder / name)} for name in (TIMING, HELD_OUT))
    told = []
    for row in found if run else found[:-1]:
        time, measured = times.get(row["step"], {}), held.get(row["step"], {})
        told.append(
            {
                **row,
                **{f"{name}/s": time[name] / time["seconds"] for name in ("tokens", "pairs") if time.get(name)},
                **{f"held_out/{name}": value for name, value in measured.items() if name != "step"},
            }
        )
    return told


def step_values(row: Mapping[str, float], t: int) -> dict[str, float]:
    """A step's numbers by their names in a curve."""
    return {**{f"train/{name}": value for name, value in row.items() if name != "step"}, "train/iteration": t}


def version_values(record: IterationRecord) -> dict[str, float]:
    """What a version scored, what it was trained on, and what it cost."""
    pairs, spent = record.pairs, costs.of(record)
    return {
        **scores(record.evaluations),
        **answers(record),
        "pairs/kept": pairs.rows,
        **{f"pairs/dropped/{reason}": dropped for reason, dropped in pairs.drops.items()},
        "gate/promoted": float(record.gate.outcome == "promote"),
        "cost/device_hours": spent.device_hours,
        "cost/seconds": spent.seconds,
        **{f"cost/seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
        **{f"cost/tokens/{phase}": tokens for phase, tokens in costs.tokens(record).items()},
        "cost/peak_memory_mb": max(record.peak_memory_mb.values(), default=0.0),
    }


def scores(reports: Iterable[EvalReport]) -> dict[str, float]:
    """What the leaderboard shows."""
    return {f"scores/{task}": score.value for report in reports for task, score in report.scores.items()}


def answers(record: IterationRecord) -> dict[str, float]:
    """What the opponent's answers looked like, as shares of them."""
    found = record.generations.statistics
    if found is None or not found.generated.responses:
        return {}
    side = found.generated
    share = {
        "empty": side.empty,
        "looping": side.looping,
        "repeated": side.repeated,
        "cut": side.finish_reasons.get("length", 0),
        "same_as_real": found.same_as_real,
    }
    return {
        "answers/mean_tokens": side.mean_tokens,
        **{f"answers/{name}": number / side.responses for name, number in share.items()},
        **{f"answers/distinct_{n}": value for n, value in enumerate(side.distinct, 1)},
    }


def folder_of(game: Lineage) -> Path:
    """Where sinks keep what is theirs. Removed, all points are told anew."""
    return game.root / "metrics"
