"""Records: small, frozen, and the same after a trip through JSON."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from spin_core.store.records import (
    Comparison,
    EvalReport,
    Event,
    GateDecision,
    GenerationBatch,
    IterationRecord,
    ModelVersion,
    PairDataset,
    PromptSet,
    Record,
    Score,
    ScoredPairs,
    TrainRun,
)
from tests.support.lineages.small_lineage import build_lineage

HERE = {"path": Path("/runs/x"), "digest": "d" * 64}
SCORE = Score(value=0.5, stderr=0.1, n=4)
EVENT = Event(kind="exploded", step=2, message="margins explode", action="stop")
RECORDS = [
    PromptSet(**HERE, source="demo", revision=None, rows=5, held_out=2, drops={"too long": 1}, stop_ids=(2, 3)),
    ModelVersion(**HERE, t=0, parent=None),
    ModelVersion(**HERE, t=1, parent="a" * 64),
    GenerationBatch(**HERE, t=0, opponent="o", rows=5, shards=1, tokens=9, finish_reasons={"stop": 4, "length": 1}),
    PairDataset(**HERE, t=1, rows_in=10, rows=8, drops={"empty": 2}, mix={"0": 4, "1": 4}),
    ScoredPairs(**HERE, pairs="p", opponent="o"),
    TrainRun(**HERE, t=0, model="m", steps=2, first_loss=0.69, metrics={"loss": 0.5}, events=(EVENT,)),
    EvalReport(**HERE, model="m", suite="self-play", harness="spin 0", scores={"nll": SCORE}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_survives_json(record):
    assert type(record).model_validate_json(record.model_dump_json()) == record
    assert type(record).model_validate(json.loads(record.model_dump_json())) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_is_read_by_its_kind(record):
    assert TypeAdapter(Record).validate_python(record.model_dump(mode="json")) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_refuses_fields_that_it_does_not_know(record):
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(record).model_validate({**record.model_dump(), "extra": 1})


def test_every_record_of_a_phase_is_tried_here():
    assert {type(record) for record in RECORDS} == set(Record.__args__)


def test_scores_comparisons_and_decisions_survive_json():
    for value in (
        SCORE,
        Comparison(against=0, delta=-0.1, stderr=0.05, low=-0.2, high=0.0),
        GateDecision(outcome="stop", reason="it fell", next_opponent=1, metric="nll", delta=0.1, stderr=0.02),
    ):
        assert type(value).model_validate_json(value.model_dump_json()) == value


def test_no_score_is_a_not_a_number():
    with pytest.raises(ValidationError, match="finite"):
        Score(value=float("nan"), stderr=0.0, n=1)


def test_an_iterations_record_survives_json(tmp_path):
    for record in build_lineage(tmp_path).records():
        assert IterationRecord.model_validate_json(record.model_dump_json()) == record
