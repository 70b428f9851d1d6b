"""SPIN next to other methods over several seeds: the runs of a comparison, and the table of their results.

Each seed is an ordinary lineage, `<comparison>-seed-1`, …: another run from the same θ_0 on the same data, with its
controls (see `spin_core.lineage.controls`). What is built is reused, so that a comparison can be continued.

    runs/<comparison>/{compare.json,report.html}
    runs/<comparison>-seed-1/…
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from spin_core.comparison.frontier import SeedFrontier, Sweeps, over_seeds
from spin_core.config.base import Frozen, at
from spin_core.config.controls import ControlsConfig
from spin_core.config.resolve import suggestion
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError, DamagedArtifact
from spin_core.evaluation.statistics import t_quantile
from spin_core.leaderboard import board
from spin_core.leaderboard.frontier import Sweep
from spin_core.lineage import controls
from spin_core.lineage.controls import Method
from spin_core.lineage.find import lineage_folder
from spin_core.lineage.lineage import Lineage, reports_in
from spin_core.preflight.prepare import prepare_run
from spin_core.store import artifacts, files
from spin_core.store.records import EvalReport, Score, TrainRun

_logger = logging.getLogger(__name__)

METHODS: tuple[Method, ...] = get_args(Method)
"""The methods that SPIN can be compared with."""

SHARES = (0.25, 0.5)
"""Shares of the prompts for `sizes`, if the configuration names none."""

MOST_SEEDS = 100

NO_PREFERENCES = "needs preference data, which cannot be generated: set controls.dpo.source.path to a file with them"

NO_TEMPERATURES = "needs temperatures: set controls.temperatures, as in [0.7, 1.0]"

_OF_OPPONENT = ("reward_margin", "reward_accuracy", "ipm", "against-previous")
"""Scores against the opponent that a model was trained from. Each method has another opponent, so they are left out."""


class Spread(Frozen):
    """Mean and standard error of a score over the seeds."""

    mean: float
    stderr: float | None
    """Standard error over the seeds; None with one."""
    higher_is_better: bool | None
    target: float | None = None
    """This and `higher_is_better` as in `Score`."""

    def merit(self) -> float | None:
        """The score as a number where more is better; None for a score without a better direction."""
        score = Score(value=self.mean, stderr=None, n=0, higher_is_better=self.higher_is_better, target=self.target)
        return score.merit()


class Versus(Frozen):
    """The paired difference of a method to SPIN's last version: method minus SPIN, within each seed."""

    delta: float
    stderr: float | None
    """Standard error over the seeds of the difference within each; None with one."""
    low: float | None
    high: float | None
    """The ends of the 95 % interval over the held-out items, each item's mean over the seeds; None without
    items, or with too few."""
    clear: bool
    """Neither the seeds (if there are several) nor the items explain the difference, each at the 95 % level.

    Always false if single items are not known, since then nothing tests whether other prompts would show it.
    """


class Line(Frozen):
    """The results of one method."""

    method: str
    """`spin` for the versions of the run, or one of `METHODS`."""
    name: str
    x: float
    """The x coordinate in a figure: version, epochs, or share of the prompts."""
    seeds: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    """The score of each seed, by task."""
    scores: dict[str, Spread]
    versus: dict[str, Versus]
    """Differences to SPIN's last version, by task; empty for that version."""
    steps: tuple[int, ...]
    """Optimizer steps since θ_0, for each seed."""
    tokens: tuple[int, ...]
    """Tokens of prompts and responses in those steps, for each seed; a prompt counts once for each response."""
    answered: tuple[int, ...]
    """Tokens that opponents generated for this training, for each seed."""


class Table(Frozen):
    """The results of a comparison, as in `compare.json`."""

    name: str
    recipe: str
    main_metric: str
    headline: tuple[str, ...]
    """Scores to show first after the main one: the suites' averages, the configured ones, single tasks."""
    lineages: tuple[str, ...]
    epochs: tuple[int, ...]
    """Cumulated epochs at the end of each iteration."""
    prompts: int
    """Number of training prompts."""
    lines: tuple[Line, ...]
    left_out: dict[str, str]
    """Methods that were left out, and what they need."""
    frontier: SeedFrontier | None = None
    """The methods against θ_0's curve over temperatures; None if that was not measured."""

    def of(self, *methods: str) -> list[Line]:
        """The lines of these methods."""
        return [line for line in self.lines if line.method in methods]


@dataclass(frozen=True)
class Arm:
    """One model of one seed, with what its training used."""

    method: str
    name: str
    x: float
    reports: Sequence[EvalReport]
    steps: int = 0
    tokens: int = 0
    answered: int = 0


def prepare_comparison(
    runs: Path,
    name: str,
    config: RunConfig,
    seeds: int,
    methods: Sequence[str] = (),
    *,
    warn: Callable[[str], None] = _logger.warning,
    wait: bool = False,
) -> list[Lineage]:
    """Check a comparison before any compute, and start or continue the lineage of every seed.

    Args:
        runs: The folder that holds lineages.
        name: The comparison's name.
        config: The settings that all seeds share.
        seeds: How many lineages there are.
        methods: What to compare with; all if empty.
        warn: Called with what a person should know.
        wait: Whether to wait for another process that uses a lineage.

    Raises:
        ConfigError: The seeds, methods, name or settings are wrong.
        DataError: The preference data cannot be used.
        StaleArtifact: A lineage of this name was started with other settings.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ConfigError(f"{seeds} seeds cannot be compared: choose 1 to {MOST_SEEDS}")
    for method in methods:
        if method not in METHODS:
            raise ConfigError(
                f"there is no method {method!r}{suggestion(method, METHODS)}: choose from {', '.join(METHODS)}"
            )
    missing = missing_methods(config, methods)
    for method in methods:
        if method in missing:
            raise ConfigError(f"{method} {missing[method]}")
    if (lineage_folder(runs, name) / "lineage.json").exists():
        raise ConfigError(f"{name} is a lineage in {runs}: give the comparison another name")
    configs = [seed_config(config, methods, seed) for seed in range(1, seeds + 1)]
    _check_preferences(configs[0])
    return [
        prepare_run(of_seed, runs, lineage_name, warn=warn, wait=wait)
        for lineage_name, of_seed in zip(lineage_names(name, seeds), configs, strict=True)
    ]


def lineage_names(comparison: str, seeds: int) -> list[str]:
    """The names of a comparison's lineages."""
    return [f"{comparison}-seed-{seed}" for seed in range(1, seeds + 1)]


def seed_config(config: RunConfig, methods: Sequence[str], seed: int) -> RunConfig:
    """The configuration of one seed, with the controls of these methods, or of all.

    The gate is open: if it stopped some seeds, the means would be over the lucky ones only.
    """
    settings, wanted = config.controls, set(methods or METHODS)
    with_dpo = settings.dpo is not None and not wanted.isdisjoint(("dpo", "spin-dpo"))
    return config.model_copy(
        update={
            "play_seed": seed,
            "gate": config.gate.model_copy(update={"rule": "always"}),
            "controls": ControlsConfig(
                sft_continued="sft-steps" in wanted,
                sft_tokens="sft-tokens" in wanted,
                sft_learning_rate=settings.sft_learning_rate,
                dpo=settings.dpo.model_copy(update={"equal_steps": True}) if with_dpo and settings.dpo else None,
                dpo_after=with_dpo and "spin-dpo" in wanted,
                longer=(settings.longer or tuple(range(2, max(2, config.iterations) + 1)))
                if "longer" in wanted
                else (),
                shares=(settings.shares or SHARES) if "sizes" in wanted else (),
                temperatures=settings.temperatures if "temperature" in wanted else (),
            ),
        }
    )


def missing_methods(config: RunConfig, methods: Sequence[str]) -> dict[str, str]:
    """The methods that cannot run, with what they need. Temperatures are missing only if they are asked for."""
    without_data = ("dpo", "spin-dpo") if config.controls.dpo is None else ()
    missing = {method: NO_PREFERENCES for method in without_data if method in (methods or METHODS)}
    if "temperature" in methods and not config.controls.temperatures:
        missing["temperature"] = NO_TEMPERATURES
    return missing


def _check_preferences(config: RunConfig) -> None:
    """Read the preference data, if DPO needs it: the runs before DPO take hours."""
    if config.controls.dpo is not None:
        from spin_core.preflight.data import inspect_preferences
        from spin_core.preflight.findings import Inspection

        inspect_preferences(Inspection(), config)


def arms(lineage: Lineage) -> Iterator[Arm]:
    """Every model of one seed: the versions of the run, the controls, and θ_0 at other temperatures."""
    records = lineage.records()[: lineage.config.iterations]
    steps = [0, *np.cumsum([record.train.steps for record in records]).tolist()]
    tokens = [0, *np.cumsum([controls.tokens_trained(record.train) for record in records]).tolist()]
    answered = [0, *np.cumsum([record.generations.tokens for record in records]).tolist()]
    for t in range(len(records) + 1):
        yield Arm("spin", f"θ_{t}", t, lineage.reports(t), steps[t], tokens[t], answered[t])
    for control in controls.plan(lineage, records):
        folder = lineage.control(control.name)
        train = artifacts.read_record(folder / "train", TrainRun)
        if train is None:
            raise DamagedArtifact(f"{folder / 'train'} is missing: run the comparison again to build it")
        before = control.after  # iterations before the control's training
        used = round(answered[1] * (control.share or 1)) if control.learns_from == "pairs" else answered[before]
        seen = controls.tokens_trained(train) + tokens[before]
        reports = reports_in(folder / "eval")
        yield Arm(control.method, control.label, control.x, reports, train.steps + steps[before], seen, used)
    for temperature in lineage.config.controls.temperatures:
        reports = reports_in(lineage.control(f"temperature-{temperature:g}") / "eval")
        yield Arm("temperature", f"θ_0 at temperature {temperature:g}", temperature, reports)


def table(name: str, lineages: Sequence[Lineage], missing: dict[str, str]) -> Table:
    """The table of the finished runs of all seeds."""
    by_name: dict[str, dict[int, Arm]] = {}
    for seed, lineage in enumerate(lineages, 1):
        for arm in arms(lineage):
            by_name.setdefault(arm.name, {})[seed] = arm
    first = lineages[0]
    spin = by_name[f"θ_{first.config.iterations}"]
    config = first.config
    return Table(
        name=name,
        recipe=config.recipe,
        main_metric=config.evaluate.main_metric,
        headline=(*config.evaluate.suites, *config.evaluate.headline, *config.evaluate.lm_eval.tasks),
        lineages=tuple(lineage.name for lineage in lineages),
        epochs=tuple(np.cumsum([at(config.train.epochs, t) for t in range(config.iterations)]).tolist()),
        prompts=first.records()[0].prompts.rows,
        lines=tuple(line_of(arm, spin) for arm in by_name.values()),
        left_out=missing,
        frontier=over_seeds(_sweeps(by_name), len(lineages), config.evaluate),
    )


def _sweeps(arms: Mapping[str, Mapping[int, Arm]]) -> Sweeps:
    """The sweeps over temperatures of all methods and seeds, as far as they were measured."""
    return {
        name: {
            seed: (round(arm.x) if arm.method == "spin" else None, sweep)
            for seed, arm in by_seed.items()
            if (sweep := Sweep.in_reports(arm.reports)) is not None
        }
        for name, by_seed in arms.items()
    }


def line_of(arms: dict[int, Arm], spin: dict[int, Arm]) -> Line:
    """The line of one method: its scores over the seeds, and its differences to SPIN.

    Args:
        arms: The method's model of each seed.
        spin: SPIN's last version of each seed.
    """
    first = next(iter(arms.values()))
    scores = {seed: board.scores(arm.reports) for seed, arm in arms.items()}
    tasks = [task for task in _common(list(scores.values())) if task.split("/")[-1] not in _OF_OPPONENT]
    values = {task: tuple(by_task[task].value for by_task in scores.values()) for task in tasks}
    return Line(
        method=first.method,
        name=first.name,
        x=first.x,
        seeds=tuple(arms),
        values=values,
        scores={task: spread(values[task], next(iter(scores.values()))[task]) for task in tasks},
        versus={} if arms is spin else against(arms, spin, tasks),
        steps=tuple(arm.steps for arm in arms.values()),
        tokens=tuple(arm.tokens for arm in arms.values()),
        answered=tuple(arm.answered for arm in arms.values()),
    )


def spread(values: Sequence[float], like: Score) -> Spread:
    """Mean and standard error of values over the seeds; direction and target are those of `like`."""
    mean, stderr = float(np.mean(values)), _stderr_of(values)
    return Spread(mean=mean, stderr=stderr, higher_is_better=like.higher_is_better, target=like.target)


def _stderr_of(values: Sequence[float]) -> float | None:
    """The standard error of the values' mean; None with one value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def against(method: dict[int, Arm], spin: dict[int, Arm], tasks: Sequence[str]) -> dict[str, Versus]:
    """The paired differences of a method to SPIN, by task."""
    seeds = [seed for seed in method if seed in spin]
    method_items, spin_items = (
        _over_seeds([board.items(arms[seed].reports) for seed in seeds]) for arms in (method, spin)
    )
    means = board.averages(spin[seeds[0]].reports)
    differences = {}
    for task in tasks:
        pairs = [[board.scores(arms[seed].reports).get(task) for arms in (method, spin)] for seed in seeds]
        deltas = [score.value - spin_score.value for score, spin_score in pairs if score and spin_score]
        if len(deltas) < len(seeds):
            continue
        delta, stderr = float(np.mean(deltas)), _stderr_of(deltas)
        paired = board.difference(task, method_items, spin_items, means)
        low, high = (paired.interval() if paired else None) or (None, None)
        by_seeds = stderr is None or abs(delta) > t_quantile(len(seeds) - 1) * stderr
        by_items = low is not None and high is not None and not low <= 0 <= high
        clear = by_seeds and by_items and delta != 0
        differences[task] = Versus(delta=delta, stderr=stderr, low=low, high=high, clear=clear)
    return differences


def _over_seeds(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of each item over the seeds, for the items that all seeds have."""
    return {
        task: {
            item: float(np.mean([seed[task][item] for seed in seeds]))
            for item in _common([seed[task] for seed in seeds])
        }
        for task in _common(seeds)
    }


def _common(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that all mappings have, in the order of the first."""
    return [key for key in mappings[0] if all(key in other for other in mappings)]


def save(runs: Path, table: Table) -> Path:
    """Write `compare.json` and return its path."""
    path = runs / table.name / "compare.json"
    files.write_json(path, table.model_dump(mode="json"))
    return path
