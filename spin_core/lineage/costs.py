"""What an iteration cost: seconds, devices, tokens."""

from collections.abc import Iterable

from spin_core.config.base import Frozen
from spin_core.lineage.controls import tokens_trained
from spin_core.store.records import EvalReport, GenerationBatch, IterationRecord, TrainRun

WITHOUT_DEVICE = ("prompts", "pairs")
"""Phases of an iteration in which no model runs."""


class Costs(Frozen):
    """What an iteration took, or several together."""

    seconds: float
    """Of all phases, one after the other."""
    device_hours: float
    """Hours in which phases held a device, times how many they held: of GPUs, or of a CPU where there is none."""
    generated_tokens: int
    """Tokens that the opponent answered with."""
    trained_tokens: int
    """Tokens of prompts and responses that training read."""


def tokens_of(generations: GenerationBatch, train: TrainRun, evaluations: Iterable[EvalReport]) -> dict[str, int]:
    """What is known of the tokens that each phase worked on."""
    found = {"generate": generations.tokens, "train": tokens_trained(train)}
    for report in evaluations:
        score = report.scores.get("generated_tokens")
        if score is not None:
            found[f"evaluate {report.suite}"] = round(score.value * score.n)
    return found


def tokens(record: IterationRecord) -> dict[str, int]:
    """The same, of a record; one from before it was kept is asked to count again."""
    return record.tokens or tokens_of(record.generations, record.train, record.evaluations)


def devices(record: IterationRecord, phase: str) -> int:
    """How many devices a phase held; one, in records from before this was kept."""
    return record.devices.get(phase, int(phase not in WITHOUT_DEVICE))


def device_hours(record: IterationRecord, phase: str) -> float:
    """What a phase held of devices."""
    return record.seconds[phase] * devices(record, phase) / 3600


def of(*records: IterationRecord) -> Costs:
    """Some iterations' costs together."""
    return Costs(
        seconds=round(sum(sum(record.seconds.values()) for record in records), 3),
        device_hours=round(sum(device_hours(record, phase) for record in records for phase in record.seconds), 6),
        generated_tokens=sum(tokens(record)["generate"] for record in records),
        trained_tokens=sum(tokens(record)["train"] for record in records),
    )
