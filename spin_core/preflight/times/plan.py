"""What a run still has to do and how long it takes: the arithmetic of `spin check`, corrected by what was measured.

`timing` says how much longer a training takes than a scoring, and a second iteration than a first one. How fast this
machine is shows in the phases that have ended: those of the lineage's earlier iterations, and those of this run.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from spin_core.config.run import RunConfig
from spin_core.evaluation import suites
from spin_core.lineage.lineage import Lineage
from spin_core.preflight.sizes import FLOAT32, Shape, Texts
from spin_core.preflight.times import timing
from spin_core.preflight.times.timing import START_SECONDS, Speed
from spin_core.runtime import interpreter
from spin_core.store.records import ModelVersion, PromptSet

_TYPICAL = {
    "cpu": Speed(batch_flops=4e10, row_flops=1e10, bandwidth=1e10, start=5e-6),
    "cuda": Speed(batch_flops=3e14, row_flops=5e13, bandwidth=2e12, start=8e-6, own_device=True),
}
"""Speeds of a device of each kind. Only their ratios have influence once phases have been measured."""

_PHASES = {"generate": "generations", "pairs": "pairs", "score": "scores", "train": "train"}
"""The folder of each phase of an iteration, by its name in the iteration's record."""

CONTROLS = "controls"

Place = tuple[str, str]
"""The folder of the lineage that a phase's output is in, as `iter_01`, and what it is, as `train` or `self-play`."""


@dataclass
class Item:
    """Phases of one kind in one place, which take equally long."""

    seconds: float
    """The estimate for one of them; 0 if the arithmetic does not know them, as for benchmarks."""
    count: int = 1
    done: int = 0


class Plan:
    """The phases of a run."""

    def __init__(self, root: Path, items: dict[Place, Item]) -> None:
        self.root, self.items = root, items
        self.measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """Estimated and measured seconds of finished phases, by kind."""

    @classmethod
    def of(cls, lineage: Lineage, base: ModelVersion, prompts: PromptSet) -> "Plan | None":
        """The plan of a run, with what its lineage's earlier iterations took; None for a model of an unknown kind."""
        try:
            shape, texts = shape_of(base.path, lineage.config.model.dtype), texts_of(prompts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            return None
        on_gpu = lineage.config.model.device != "cpu" and interpreter.sees_gpu()
        speed = _TYPICAL["cuda" if on_gpu else "cpu"]
        plan = cls(lineage.root, _items(shape, texts, lineage.config, speed))
        for record in lineage.records():
            for phase, seconds in record.seconds.items():
                kind = _PHASES.get(phase, phase.removeprefix("evaluate "))
                plan._measure((lineage.iteration(record.t).name, kind), seconds + START_SECONDS)
        return plan

    def finish(self, output: Path, seconds: float | None = None) -> None:
        """Note that the phase of a folder has ended.

        Args:
            output: The folder that the phase has published.
            seconds: How long it took; None if it was reused.
        """
        place = self._place(output)
        if place is None:
            return
        if seconds is not None:
            self._measure(place, seconds)
        if place in self.items:
            self.items[place].done += 1

    def seconds_left(self, output: Path, elapsed: float = 0.0, seconds: float | None = None) -> float | None:
        """How long the rest of the run takes; None as long as nothing was measured.

        Args:
            output: The folder of the phase that is running.
            elapsed: For how long it has been running.
            seconds: How long it still takes; None to use the estimate.
        """
        current, left = self._place(output), 0.0
        if current is None or not any(self.measured.values()):
            return None
        for place, item in self.items.items():
            estimate, remaining = self._estimate(place[1], item.seconds), max(0, item.count - item.done)
            if place == current and remaining:
                left, remaining = left + (max(0.0, estimate - elapsed) if seconds is None else seconds), remaining - 1
            left += remaining * estimate
        return left

    def _place(self, output: Path) -> Place | None:
        """Where a phase's output is in the lineage; None if it is elsewhere."""
        if not output.is_relative_to(self.root):
            return None
        parts = output.relative_to(self.root).parts
        return (parts[0], parts[-1]) if len(parts) > 1 else None

    def _measure(self, place: Place, seconds: float) -> None:
        item = self.items.get(place)
        self.measured[place[1]].append((item.seconds if item else 0.0, seconds))

    def _estimate(self, kind: str, seconds: float) -> float:
        """The corrected estimate of a phase: by phases of its kind, or by all phases if there were none."""
        same = self.measured.get(kind, [])
        if same and not seconds:
            return sum(measured for _, measured in same) / len(same)
        estimated = [pair for pair in same if pair[0]] or [
            pair for pairs in self.measured.values() for pair in pairs if pair[0]
        ]
        total = sum(pair[0] for pair in estimated)
        return seconds * sum(pair[1] for pair in estimated) / total if total else seconds


def _items(shape: Shape, texts: Texts, config: RunConfig, speed: Speed) -> dict[Place, Item]:
    """All phases that follow the base model and the prompts."""
    evaluate = config.evaluate
    scoring: dict[str, float] = {}
    if evaluate.self_play or evaluate.exact:
        scoring["self-play"] = START_SECONDS + timing.evaluation_seconds(shape, texts, config, speed)
    if evaluate.frontier:
        scoring[suites.FRONTIER] = START_SECONDS + timing.frontier_seconds(shape, texts, config, speed)
    scoring |= dict.fromkeys(
        [*(name for name, _ in suites.benchmarks(evaluate)), *suites.mt_bench_suites(evaluate)], 0.0
    )
    items = {("base", suite): Item(seconds) for suite, seconds in scoring.items()}
    for t in range(config.iterations):
        parts = timing.iteration_seconds(shape, texts, config, t, speed)
        phases = {"generations": "generating", "scores": "scoring", "train": "training"}
        made = {folder: START_SECONDS + parts[part] for folder, part in phases.items()} | {"pairs": START_SECONDS}
        items |= {(f"iter_{t:02d}", kind): Item(seconds) for kind, seconds in (made | scoring).items()}
    controls = config.controls
    if count := controls.trainings:
        tokens = timing.control_tokens(texts, config) / count
        training = timing.training_seconds(shape, tokens, config.train, texts.longest, speed)
        items[CONTROLS, "train"] = Item(START_SECONDS + training, count)
        items |= {(CONTROLS, suite): Item(seconds, count) for suite, seconds in scoring.items()}
    if controls.temperatures and "self-play" in scoring:
        items[CONTROLS, "self-play"] = Item(scoring["self-play"], count + len(controls.temperatures))
    return items


def shape_of(model: Path, dtype: str) -> Shape:
    """The sizes of a model by its configuration file, without loading transformers."""
    settings = json.loads((model / "config.json").read_text("utf-8"))
    text = settings.get("text_config") or settings
    hidden, heads = int(text["hidden_size"]), int(text.get("num_attention_heads") or 1)
    width = int(text.get("head_dim") or hidden // heads)
    itemsize = FLOAT32 if dtype == "float32" else 2
    stored = 2 if "16" in str(text.get("dtype") or text.get("torch_dtype") or "") else FLOAT32
    return Shape(
        parameters=sum(path.stat().st_size for path in model.glob("*.safetensors")) // stored,
        layers=int(text["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(text.get("intermediate_size") or 4 * hidden),
        query_width=heads * width,
        key_width=int(text.get("num_key_value_heads") or heads) * width,
        vocabulary=int(text["vocab_size"]),
        itemsize=itemsize,
        heads=heads,
    )


def texts_of(prompts: PromptSet) -> Texts:
    """How many prompts there are, and how long: by the numbers of values in the table's metadata, which is not read."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(prompts.path / "train.parquet").metadata
    tokens: dict[str, int] = defaultdict(int)
    for group in range(table.num_row_groups):
        for number in range(table.num_columns):
            column = table.row_group(group).column(number)
            tokens[column.path_in_schema.partition(".")[0]] += column.num_values
    prompt, response = (tokens[name] / table.num_rows for name in ("prompt_ids", "response_ids"))
    longest = round(2 * (prompt + response))  # a guess: it is the width of a padded pass, on which time hardly depends
    return Texts(prompts.rows, prompts.held_out, prompt, response, round(2 * prompt), longest)
