"""The costs of iterations: seconds, hours of devices, tokens."""

from collections.abc import Iterable

from spin_core.config.base import Frozen
from spin_core.lineage.controls import tokens_trained
from spin_core.store.records import EvalReport, GenerationBatch, IterationRecord, TrainRun

_WITHOUT_DEVICE = ("prompts", "pairs")
"""Phases of an iteration in which no model runs."""


class Costs(Frozen):
    """The costs of one iteration, or of several together."""

    seconds: float
    """Seconds of all phases, one after the other."""
    device_hours: float
    """Hours in which phases held devices, times their number. A device is a GPU, or the CPU where there is none."""
    generated_tokens: int
    """Tokens of the opponent's answers."""
    trained_tokens: int
    """Tokens of prompts and responses that training read."""


def tokens_of(generations: GenerationBatch, train: TrainRun, evaluations: Iterable[EvalReport]) -> dict[str, int]:
    """Tokens that each phase generated or read, by phase, as far as they are known."""
    tokens_by_phase = {"generate": generations.tokens, "train": tokens_trained(train)}
    for report in evaluations:
        score = report.scores.get("generated_tokens")
        if score is not None:
            tokens_by_phase[f"evaluate {report.suite}"] = round(score.value * score.n)
    return tokens_by_phase


def tokens(record: IterationRecord) -> dict[str, int]:
    """Tokens by phase of a finished iteration. They are counted again for a record that is older than this field."""
    return record.tokens or tokens_of(record.generations, record.train, record.evaluations)


def _devices(record: IterationRecord, phase: str) -> int:
    """The number of devices that a phase held; 1 in records that are older than this field."""
    return record.devices.get(phase, int(phase not in _WITHOUT_DEVICE))


def device_hours(record: IterationRecord, phase: str) -> float:
    """Hours of a phase, times the devices that it held."""
    return record.seconds[phase] * _devices(record, phase) / 3600


def total(*records: IterationRecord) -> Costs:
    """The costs of these iterations together."""
    return Costs(
        seconds=round(sum(sum(record.seconds.values()) for record in records), 3),
        device_hours=round(sum(device_hours(record, phase) for record in records for phase in record.seconds), 6),
        generated_tokens=sum(tokens(record)["generate"] for record in records),
        trained_tokens=sum(tokens(record)["train"] for record in records),
    )
