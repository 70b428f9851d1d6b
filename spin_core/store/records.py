"""What each phase leaves behind: small, frozen, and enough to say where a number came from.

`digest` is the digest of the published files, so that records made from equal inputs are equal. Paths are where a
file lies, never what it is: they take no part in any identity.
"""

from pathlib import Path
from typing import Any, Literal

from spin_core.config.base import Frozen
from spin_core.config.run import RunConfig


class Artifact(Frozen):
    """A published folder."""

    path: Path
    """The folder."""

    digest: str
    """SHA-256 over its files' names and contents."""


class PromptSet(Artifact):
    """`train.parquet` and `held_out.parquet`: prompts, human responses, and the token ids of both."""

    kind: Literal["prompts"] = "prompts"
    source: str
    revision: str | None
    rows: int
    """Training prompts."""
    held_out: int
    drops: dict[str, int]
    """Rows left out, by reason."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a response: the template's end of turn, then the tokenizer's EOS. Empty: the EOS alone."""


class ModelVersion(Artifact):
    """θ_t: a folder that `from_pretrained` loads."""

    kind: Literal["model"] = "model"
    t: int
    parent: str | None
    """Digest of the version that this one was trained from."""


class ResponseStatistics(Frozen):
    """What one side's responses look like. Counts are of responses."""

    responses: int
    mean_tokens: float
    quantiles: tuple[int, ...]
    """Tokens of the shortest, at 5, 25, 50, 75 and 95 percent, and of the longest; empty without a response."""
    histogram: tuple[int, ...]
    """Responses by length, in bins of `bin_tokens` from 0 on."""
    finish_reasons: dict[str, int]
    empty: int
    """Without text."""
    looping: int
    """Round and round in one phrase."""
    repeated: int
    """Token for token what an earlier response of this side is, whatever its prompt."""
    distinct: tuple[float, ...]
    """distinct-1, -2, -3: different word n-grams over all of them. Falls as responses are added."""


class AnswerStatistics(Frozen):
    """The opponent's answers beside the human responses."""

    bin_tokens: int
    """Width of the histograms' bins."""
    real: ResponseStatistics
    generated: ResponseStatistics
    same_as_real: int
    """Answers that are, token for token, the human response that they are paired with."""


class GenerationBatch(Artifact):
    """`shard-*.parquet`: the opponent's answers."""

    kind: Literal["generations"] = "generations"
    t: int
    opponent: str
    """Digest of θ_t."""
    opponents: dict[str, int] = {}
    """Answers by the version that gave them: `{"1": 250, "2": 262}`. Empty in batches of θ_t alone from earlier on."""
    rows: int
    """Answers, of all prompts together."""
    answers: int = 1
    """Answers to each prompt."""
    shards: int
    tokens: int
    """Generated tokens."""
    finish_reasons: dict[str, int]
    """`stop`: the model ended its answer; `length`: it was cut."""
    smallest_batch: int | None = None
    """Prompts at a time, at the least, where memory ran out in mid-run and the batch was halved; None where it never
    was, and in batches from before this was kept."""
    statistics: AnswerStatistics | None = None
    """The answers beside the human responses; None in batches from before this was measured."""


class PairDataset(Artifact):
    """`pairs.parquet`: real and generated responses to the same prompt."""

    kind: Literal["pairs"] = "pairs"
    t: int
    rows_in: int
    rows: int
    drops: dict[str, int]
    mix: dict[str, int]
    """Rows by the iteration that generated them: `{"0": 500, "1": 480}`."""


class ScoredPairs(Artifact):
    """`logps.parquet`: the opponent's log-probability of both sides of each pair, in the pairs' order.

    θ_0's too, where the reference is anchored in it.
    """

    kind: Literal["scores"] = "scores"
    pairs: str
    opponent: str


class Event(Frozen):
    """Something that a monitor saw in training, and what was done about it."""

    kind: str
    """The monitor: a field of `MonitorsConfig`."""
    step: int
    message: str
    """What it means and what helps, in one line."""
    action: Literal["warn", "stop", "roll-back", "refuse"]


class TrainRun(Artifact):
    """`metrics.jsonl`: what every step measured; `held_out.jsonl`: what was measured on held-out pairs, if any are.

    The weights are published beside it, as a ModelVersion.
    """

    kind: Literal["train"] = "train"
    t: int
    model: str
    """Digest of the trained model."""
    steps: int
    """Steps that were trained: fewer than planned if an event ended the training."""
    ranks: tuple[tuple[int, int], ...] = ()
    """How many steps were taken by how many ranks, in their order: `((40, 2), (24, 1))`."""
    published: int | None = None
    """The step whose weights were published; None means the last."""
    first_loss: float
    metrics: dict[str, float]
    """The metrics of the published step, under the field's names."""
    held_out: dict[str, float] = {}
    """What was measured on the held-out pairs, with the published weights or last before them."""
    events: tuple[Event, ...] = ()
    """What the monitors saw."""


class Score(Frozen):
    """One number of an evaluation."""

    value: float
    stderr: float | None
    """None where it is not known, as that of a single item."""
    n: int
    """Items."""
    higher_is_better: bool | None = True
    """None where neither is: see `target`."""
    target: float | None = None
    """The best value of a score that may be too high and too low: what the human responses to these prompts have."""
    interval: tuple[float, float] | None = None
    """The ends of its 95 % interval, where that is not 1.96 standard errors to each side: a win rate's."""

    def merit(self) -> float | None:
        """The more the better; None of a score that tells nothing of better and worse."""
        if self.target is not None:
            return -abs(self.value - self.target)
        if self.higher_is_better is None:
            return None
        return self.value if self.higher_is_better else -self.value


class EvalReport(Artifact):
    """`items.parquet`: for paired tests, one row an item (task, item, value). Other files are the suite's own."""

    kind: Literal["eval"] = "eval"
    model: str
    """Digest of the model."""
    suite: str
    harness: str
    """Versions of what did the scoring."""
    scores: dict[str, Score]
    averages: dict[str, tuple[str, ...]] = {}
    """Scores that are the mean of others, by name: a suite's average, and a group's. Their items are those others'."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores should know: prompts that did not fit into the model's context, for instance."""
    apart: str = ""
    """Why they do not compare with what others publish of this suite; empty where they may."""


class Comparison(Frozen):
    """A paired difference: the items are the same, so their differences are what varies."""

    against: int
    """The version t that this one is compared with."""
    delta: float
    stderr: float
    low: float | None
    high: float | None
    """The ends of the interval that holds the difference with 95 % probability, by bootstrap over the items; None with
    too few of them."""


class GateDecision(Frozen):
    """What the gate made of θ_{t+1}."""

    outcome: Literal["promote", "keep-best", "stop"]
    reason: str
    next_opponent: int
    """The version t that plays next."""
    metric: str = ""
    """The score that was looked at."""
    delta: float | None = None
    """θ_{t+1} less the best version before it; None if that was not measured."""
    stderr: float | None = None
    """The standard error of that difference, paired where single items are known."""


class IterationRecord(Frozen):
    """All of one iteration: enough to repeat it, and to say whether it helped."""

    lineage: str
    t: int
    config: RunConfig
    prompts: PromptSet
    opponent: ModelVersion
    generations: GenerationBatch
    pairs: PairDataset
    scores: ScoredPairs
    train: TrainRun
    player: ModelVersion
    evaluations: tuple[EvalReport, ...]
    gate: GateDecision
    seconds: dict[str, float]
    """Seconds by phase, as they were when the phase ran."""
    peak_memory_mb: dict[str, float]
    """Largest resident memory by phase."""
    devices: dict[str, int] = {}
    """Devices that each phase held; empty in records from before this was kept."""
    tokens: dict[str, int] = {}
    """Tokens that phases worked on: those generated, and those of prompts and responses that training read."""
    environment: dict[str, str]
    """Git commit, package versions, device."""
    scored_with: dict[str, dict[str, Any]] = {}
    """The settings that scored each suite. They may change as the game goes on; `config` has the latest."""


Record = PromptSet | ModelVersion | GenerationBatch | PairDataset | ScoredPairs | TrainRun | EvalReport


def moved(value: Any, was: Path, now: Path) -> Any:
    """A record's JSON value with the paths of all artifacts below `was` set below `now`."""
    if isinstance(value, list):
        return [moved(item, was, now) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: moved(item, was, now) for key, item in value.items()}
    if "digest" in value and Path(value.get("path", "")).is_relative_to(was):
        value["path"] = str(now / Path(value["path"]).relative_to(was))
    return value
