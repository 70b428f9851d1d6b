"""SPIN beside what it has to beat, over several seeds: which games are played, and the table that they end in.

Each seed is an ordinary lineage, `<comparison>-seed-1`, …: another game from the same θ_0 on the same data, with the
controls of that game beside it (see `controls`). What is built is reused, so a comparison that is run again goes on.

    runs/<comparison>/{compare.json,report.html}
    runs/<comparison>-seed-1/…
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from spin_core.config.base import Frozen, at
from spin_core.config.controls import ControlsConfig
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.evaluation.statistics import t_quantile
from spin_core.leaderboard import board, gate
from spin_core.lineage import controls
from spin_core.lineage.controls import Method
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import Lineage, reports_in
from spin_core.lineage.start import start_lineage
from spin_core.store import artifacts, files, lock
from spin_core.store.records import EvalReport, Score, TrainRun

METHODS: tuple[Method, ...] = get_args(Method)
"""What SPIN can be compared with."""

SHARES = (0.25, 0.5)
"""Of the prompts, for `sizes`, where the configuration names none."""

MOST_SEEDS = 100

NO_PREFERENCES = "needs preference data, which none can make up: --set controls.dpo.source.path=preferences.jsonl"

OF_OPPONENT = ("reward_margin", "reward_accuracy", "ipm", "against-previous")
"""Scores against the opponent that a model was trained from: each method's is another, so they do not compare."""


class Spread(Frozen):
    """A score over the seeds."""

    mean: float
    stderr: float | None
    """Standard error over the seeds; None with one."""
    higher_is_better: bool | None
    target: float | None = None
    """Both as a `Score` has them."""

    def merit(self) -> float | None:
        """The more the better; None of a score that tells nothing of better and worse."""
        score = Score(value=self.mean, stderr=None, n=0, higher_is_better=self.higher_is_better, target=self.target)
        return score.merit()


class Versus(Frozen):
    """What a method has more than SPIN's last version, from seed to seed."""

    delta: float
    stderr: float | None
    """Standard error over the seeds of the difference within each; None with one."""
    low: float | None
    high: float | None
    """The ends of the 95 % interval over the held-out items, each item's mean over the seeds; None without
    items, or with too few."""
    clear: bool
    """Neither the seeds, where there are several, nor the items explain it, with 95 % probability each.

    Never where single items are not known: nothing then says whether other prompts would show it.
    """


class Line(Frozen):
    """One method."""

    method: str
    """`spin` for the versions of the game, `temperature` for θ_0 sampled otherwise, or one of `METHODS`."""
    name: str
    x: float
    """Where it stands in a figure: the version, epochs, or the share of the prompts."""
    seeds: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    """By task, one for each seed."""
    scores: dict[str, Spread]
    versus: dict[str, Versus]
    """By task, against SPIN's last version; empty for that."""
    steps: tuple[int, ...]
    """Optimizer steps from θ_0 on, one for each seed."""
    tokens: tuple[int, ...]
    """Tokens of prompts and responses in those steps, a prompt counted for each of its responses."""
    answered: tuple[int, ...]
    """Tokens that opponents generated for them."""


class Table(Frozen):
    """A comparison's outcome: `compare.json`."""

    name: str
    recipe: str
    main_metric: str
    headline: tuple[str, ...]
    """Scores to see first after the main one, where there are any: the suites' own, those configured, single tasks."""
    lineages: tuple[str, ...]
    epochs: tuple[int, ...]
    """Passes over the pairs until the end of each iteration."""
    prompts: int
    """To train on."""
    lines: tuple[Line, ...]
    left_out: dict[str, str]
    """Methods that were not played, and what they want."""

    def of(self, *methods: str) -> list[Line]:
        """The lines of some methods."""
        return [line for line in self.lines if line.method in methods]


@dataclass(frozen=True)
class Arm:
    """One model of one seed, with what made it."""

    method: str
    name: str
    x: float
    reports: Sequence[EvalReport]
    steps: int = 0
    tokens: int = 0
    answered: int = 0


def begin(runs: Path, name: str, config: RunConfig, seeds: int, methods: Sequence[str] = ()) -> list[Lineage]:
    """Begin every seed's lineage, or go on with it. Nothing is computed before all is known to be right.

    Raises `ConfigError`, `DataError` or `StaleArtifact` with the cure.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ConfigError(f"{seeds} seeds cannot be compared: choose 1 to {MOST_SEEDS}")
    for method in methods:
        if method not in METHODS:
            close = difflib.get_close_matches(method, METHODS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"there is no method {method!r}{hint}: choose from {', '.join(METHODS)}")
    lacking = left_out(config, methods)
    for method in methods:
        if method in lacking:
            raise ConfigError(f"{method} {lacking[method]}")
    gate.check_metrics(config)
    if (lineage_folder(runs, name) / "lineage.json").exists():
        raise ConfigError(f"{name} is a lineage in {runs}: give the comparison another name with --name")
    games = [configured(config, methods, seed) for seed in range(1, seeds + 1)]
    check_preferences(games[0])
    begun = []
    for lineage, game in zip(names(name, seeds), games, strict=True):
        with lock.locked(lineage_folder(runs, lineage)):
            begun.append(start_lineage(runs, lineage, game))
    return begun


def names(comparison: str, seeds: int) -> list[str]:
    """The names of its lineages."""
    return [f"{comparison}-seed-{seed}" for seed in range(1, seeds + 1)]


def configured(config: RunConfig, methods: Sequence[str], seed: int) -> RunConfig:
    """A seed's game with the controls of these methods, of all if none are named.

    The gate is open, since means over those seeds alone that it lets go on would be means over the lucky.
    """
    asked, wanted = config.controls, set(methods or METHODS)
    with_dpo = asked.dpo is not None and not wanted.isdisjoint(("dpo", "spin-dpo"))
    return config.model_copy(
        update={
            "play_seed": seed,
            "gate": config.gate.model_copy(update={"rule": "always"}),
            "controls": ControlsConfig(
                sft_continued="sft-steps" in wanted,
                sft_tokens="sft-tokens" in wanted,
                sft_learning_rate=asked.sft_learning_rate,
                dpo=asked.dpo.model_copy(update={"equal_steps": True}) if with_dpo and asked.dpo else None,
                dpo_after=with_dpo and "spin-dpo" in wanted,
                longer=(asked.longer or tuple(range(2, max(2, config.iterations) + 1))) if "longer" in wanted else (),
                shares=(asked.shares or SHARES) if "sizes" in wanted else (),
                temperatures=asked.temperatures,
            ),
        }
    )


def left_out(config: RunConfig, methods: Sequence[str]) -> dict[str, str]:
    """The methods that lack something, and what."""
    lacking = ("dpo", "spin-dpo") if config.controls.dpo is None else ()
    return {method: NO_PREFERENCES for method in lacking if method in (methods or METHODS)}


def check_preferences(config: RunConfig) -> None:
    """Read the preference data, if there are to be any: games take hours before DPO does."""
    if config.controls.dpo is not None:
        from spin_core.preflight.data import look_at_preferences
        from spin_core.preflight.findings import Looks

        look_at_preferences(Looks(), config)


def arms(game: Lineage) -> Iterator[Arm]:
    """Every model of a seed: the game's versions, and what stands beside them."""
    records = game.records()[: game.config.iterations]
    steps = [0, *np.cumsum([record.train.steps for record in records]).tolist()]
    tokens = [0, *np.cumsum([controls.tokens_trained(record.train) for record in records]).tolist()]
    answered = [0, *np.cumsum([record.generations.tokens for record in records]).tolist()]
    for t in range(len(records) + 1):
        yield Arm("spin", f"θ_{t}", t, game.reports(t), steps[t], tokens[t], answered[t])
    for control in controls.plan(game, records):
        folder = game.control(control.name)
        train = artifacts.read_record(folder / "train", TrainRun)
        if train is None:
            raise DamagedArtifact(f"{folder / 'train'} is gone: run the comparison again to build it anew")
        before = control.after  # so many iterations were played before it
        asked = round(answered[1] * (control.share or 1)) if control.teaches == "pairs" else answered[before]
        seen = controls.tokens_trained(train) + tokens[before]
        reports = reports_in(folder / "eval")
        yield Arm(control.method, control.label, control.x, reports, train.steps + steps[before], seen, asked)
    for temperature in game.config.controls.temperatures:
        reports = reports_in(game.control(f"temperature-{temperature:g}") / "eval")
        yield Arm("temperature", f"θ_0 at temperature {temperature:g}", temperature, reports)


def table(name: str, games: Sequence[Lineage], missing: dict[str, str]) -> Table:
    """The table of these seeds' finished games."""
    by_name: dict[str, dict[int, Arm]] = {}
    for seed, game in enumerate(games, 1):
        for arm in arms(game):
            by_name.setdefault(arm.name, {})[seed] = arm
    first = games[0]
    spin = by_name[f"θ_{first.config.iterations}"]
    config = first.config
    return Table(
        name=name,
        recipe=config.recipe,
        main_metric=config.evaluate.main_metric,
        headline=(*config.evaluate.suites, *config.evaluate.headline, *config.evaluate.lm_eval.tasks),
        lineages=tuple(game.name for game in games),
        epochs=tuple(np.cumsum([at(config.train.epochs, t) for t in range(config.iterations)]).tolist()),
        prompts=first.records()[0].prompts.rows,
        lines=tuple(line_of(found, spin) for found in by_name.values()),
        left_out=missing,
    )


def line_of(found: dict[int, Arm], spin: dict[int, Arm]) -> Line:
    """One method over the seeds, and against SPIN."""
    arm = next(iter(found.values()))
    scores = {seed: board.scores(one.reports) for seed, one in found.items()}
    tasks = [task for task in common(list(scores.values())) if task.split("/")[-1] not in OF_OPPONENT]
    values = {task: tuple(one[task].value for one in scores.values()) for task in tasks}
    return Line(
        method=arm.method,
        name=arm.name,
        x=arm.x,
        seeds=tuple(found),
        values=values,
        scores={task: spread(values[task], next(iter(scores.values()))[task]) for task in tasks},
        versus={} if found is spin else against(found, spin, tasks),
        steps=tuple(one.steps for one in found.values()),
        tokens=tuple(one.tokens for one in found.values()),
        answered=tuple(one.answered for one in found.values()),
    )


def spread(values: Sequence[float], of: Score) -> Spread:
    """Mean and standard error over the seeds, of a score that is like this one."""
    mean, stderr = float(np.mean(values)), stderr_of(values)
    return Spread(mean=mean, stderr=stderr, higher_is_better=of.higher_is_better, target=of.target)


def stderr_of(values: Sequence[float]) -> float | None:
    """The standard error of the values' mean; None with one value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def against(mine: dict[int, Arm], spin: dict[int, Arm], tasks: Sequence[str]) -> dict[str, Versus]:
    """The paired differences of some tasks."""
    seeds = [seed for seed in mine if seed in spin]
    my_items, its_items = (over_seeds([board.items(arms[seed].reports) for seed in seeds]) for arms in (mine, spin))
    means = board.averages(spin[seeds[0]].reports)
    found = {}
    for task in tasks:
        pairs = [[board.scores(arms[seed].reports).get(task) for arms in (mine, spin)] for seed in seeds]
        deltas = [one.value - other.value for one, other in pairs if one and other]
        if len(deltas) < len(seeds):
            continue
        delta, stderr = float(np.mean(deltas)), stderr_of(deltas)
        known = board.difference(task, my_items, its_items, means)
        low, high = (known.interval() if known else None) or (None, None)
        by_seeds = stderr is None or abs(delta) > t_quantile(len(seeds) - 1) * stderr
        by_items = low is not None and high is not None and not low <= 0 <= high
        clear = by_seeds and by_items and delta != 0
        found[task] = Versus(delta=delta, stderr=stderr, low=low, high=high, clear=clear)
    return found


def over_seeds(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Each item's mean over the seeds, of the items that all have."""
    return {
        task: {
            item: float(np.mean([one[task][item] for one in found])) for item in common([one[task] for one in found])
        }
        for task in common(found)
    }


def common(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that all have, in the order of the first."""
    return [key for key in found[0] if all(key in other for other in found)]


def save(runs: Path, table: Table) -> Path:
    """Write `compare.json`."""
    path = runs / table.name / "compare.json"
    files.write_json(path, table.model_dump(mode="json"))
    return path
