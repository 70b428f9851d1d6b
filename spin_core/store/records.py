"""The records of the phases' results: small, immutable, and enough to trace where a number comes from.

`digest` is the digest of the published files, so that records made from equal inputs are equal. A path is the location
of a file, not its content, so paths are not part of any identity.
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


class SourceSummary(Frozen):
    """What phase `prompts` took of one of several sources."""

    path: str
    revision: str | None
    rows: int
    """Training prompts."""
    held_out: int
    drops: dict[str, int]
    """Rows left out, by reason."""
    unused_columns: tuple[str, ...]
    """Columns with values that have no influence."""


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
    """Tokens that end a response: the template's end of turn, the tokenizer's EOS, then the model's other ends. Empty:
    the EOS alone."""
    stop_strings: tuple[str, ...] = ()
    """The template's end of turn where the tokenizer splits it; empty in older sets."""
    unused_columns: tuple[str, ...] = ()
    """The source's columns with values that have no influence."""
    sources: dict[str, SourceSummary] = {}
    """What was taken of each source, if there are several. Each row then has the name of its source."""


class ModelVersion(Artifact):
    """θ_t: a folder that `from_pretrained` loads."""

    kind: Literal["model"] = "model"
    t: int
    parent: str | None
    """Digest of the version that this one was trained from."""


class ResponseStatistics(Frozen):
    """Statistics of one side's responses. Counts are of responses."""

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
    """Repeating one phrase many times."""
    repeated: int
    """Equal, token by token, to an earlier response of this side, whatever its prompt."""
    distinct: tuple[float, ...]
    """distinct-1, -2, -3: different word n-grams, divided by all of them. They fall as responses are added.

    Of more than 10,000 prompts, the responses to about so many are counted."""


class AnswerStatistics(Frozen):
    """The opponent's answers and the human responses."""

    bin_tokens: int
    """Width of the histograms' bins."""
    real: ResponseStatistics
    generated: ResponseStatistics
    same_as_real: int
    """Answers that equal, token by token, the human response that they are paired with."""


class GenerationBatch(Artifact):
    """`shard-*.parquet`: the opponent's answers."""

    kind: Literal["generations"] = "generations"
    t: int
    opponent: str
    """Digest of θ_t."""
    opponents: dict[str, int] = {}
    """Answers by the version that gave them: `{"1": 250, "2": 262}`. Empty in older batches, which are all θ_t's."""
    rows: int
    """Answers to all prompts together."""
    answers: int = 1
    """Answers to each prompt."""
    shards: int
    tokens: int
    """Generated tokens."""
    finish_reasons: dict[str, int]
    """`stop`: the model ended its answer; `length`: it was cut."""
    smallest_batch: int | None = None
    """The smallest number of prompts at a time, if memory ran out during the run and the batch was halved; None if it
    was not halved, and in older batches."""
    statistics: AnswerStatistics | None = None
    """Statistics of the answers and the human responses; None in older batches."""


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

    θ_0's too, if the reference contains it (`train.anchor`).
    """

    kind: Literal["scores"] = "scores"
    pairs: str
    opponent: str


class Event(Frozen):
    """Something that a monitor detected in training, and the action."""

    kind: str
    """The monitor: a field of `MonitorsConfig`."""
    step: int
    message: str
    """What it means and how to fix it, in one line."""
    action: Literal["warn", "stop", "roll-back", "refuse"]


class TrainRun(Artifact):
    """`metrics.jsonl`: the metrics of every step; `held_out.jsonl`: the metrics on held-out pairs, if there are any.

    The weights are published separately, as a ModelVersion.
    """

    kind: Literal["train"] = "train"
    t: int
    model: str
    """Digest of the trained model."""
    steps: int
    """Steps that were trained: fewer than planned if an event ended the training."""
    ranks: tuple[tuple[int, int], ...] = ()
    """How many steps ran on how many ranks, in order: `((40, 2), (24, 1))`."""
    micro_batch_tokens: tuple[tuple[int, int], ...] = ()
    """How many steps had at most how many tokens in a pass, in order: `((40, 16384), (24, 8192))`; empty in older
    records."""
    published: int | None = None
    """The step whose weights were published; None means the last."""
    first_loss: float
    metrics: dict[str, float]
    """The metrics of the published step, with the names common in the field."""
    held_out: dict[str, float] = {}
    """The metrics on the held-out pairs, of the published weights or the last measurement before them."""
    events: tuple[Event, ...] = ()
    """What the monitors detected."""


class Score(Frozen):
    """One number of an evaluation."""

    value: float
    stderr: float | None
    """None if it is not known, as for a single item."""
    n: int
    """Items."""
    higher_is_better: bool | None = True
    """None if neither is better: see `target`."""
    target: float | None = None
    """The best value of a score that can be too high or too low: that of the human responses to these prompts."""
    interval: tuple[float, float] | None = None
    """The ends of its 95 % interval, if that is not 1.96 standard errors to each side, as for a win rate."""

    def merit(self) -> float | None:
        """Return a number that is higher for a better score; None if the score does not say what is better."""
        if self.target is not None:
            return -abs(self.value - self.target)
        if self.higher_is_better is None:
            return None
        return self.value if self.higher_is_better else -self.value


class EvalReport(Artifact):
    """`items.parquet`: for paired tests, one row for each item (task, item, value). Other files depend on the suite."""

    kind: Literal["eval"] = "eval"
    model: str
    """Digest of the model."""
    suite: str
    harness: str
    """Versions of the software that scored."""
    scores: dict[str, Score]
    averages: dict[str, tuple[str, ...]] = {}
    """Scores that are the mean of others, by name: averages of suites and groups. Their items are the others' items."""
    notes: tuple[str, ...] = ()
    """Notes for readers of the scores, for example about prompts that did not fit into the model's context."""
    apart: str = ""
    """Why the scores cannot be compared with published scores of this suite; empty if they can."""
    by_source: dict[str, dict[str, Score]] = {}
    """The scores on the held-out prompts of each source, if there are several. Empty in older reports."""


class Comparison(Frozen):
    """A paired difference: both versions are scored on the same items, so only the differences of the items vary."""

    against: int
    """The version t that this one is compared with."""
    delta: float
    stderr: float
    low: float | None
    high: float | None
    """The ends of the 95 % interval of the difference, by bootstrap over the items; None with too few of them."""


class GateDecision(Frozen):
    """The gate's decision about θ_{t+1}."""

    outcome: Literal["promote", "keep-best", "stop"]
    reason: str
    next_opponent: int
    """The version t that is the next opponent."""
    metric: str = ""
    """The score that decided."""
    delta: float | None = None
    """The score of θ_{t+1} minus that of the best version before it; None if that was not measured."""
    stderr: float | None = None
    """The standard error of that difference, paired if single items are known."""


class IterationArtifacts(Frozen):
    """What one iteration has read and made."""

    prompts: PromptSet
    opponent: ModelVersion
    generations: GenerationBatch
    pairs: PairDataset
    scores: ScoredPairs
    train: TrainRun
    player: ModelVersion
    evaluations: tuple[EvalReport, ...]
    gate: GateDecision


class IterationRecord(IterationArtifacts):
    """Everything about one iteration: enough to repeat it, and to see whether it helped."""

    lineage: str
    t: int
    config: RunConfig
    seconds: dict[str, float]
    """Seconds by phase, as they were when the phase ran."""
    peak_memory_mb: dict[str, float]
    """Peak resident memory by phase."""
    devices: dict[str, int] = {}
    """Devices that each phase occupied; empty in older records."""
    tokens: dict[str, int] = {}
    """Tokens that phases processed: those generated, and those of prompts and responses that training read."""
    environment: dict[str, str]
    """Git commit, package versions, device."""
    scored_with: dict[str, dict[str, Any]] = {}
    """The settings that scored each suite. They may change during a lineage; `config` has the latest."""


Record = PromptSet | ModelVersion | GenerationBatch | PairDataset | ScoredPairs | TrainRun | EvalReport


def move_paths(value: Any, was: Path, now: Path) -> Any:
    """Return a record's JSON value with the paths of all artifacts moved from the folder `was` to the folder `now`."""
    if isinstance(value, list):
        return [move_paths(item, was, now) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: move_paths(item, was, now) for key, item in value.items()}
    if "digest" in value and Path(value.get("path", "")).is_relative_to(was):
        value["path"] = str(now / Path(value["path"]).relative_to(was))
    return value
