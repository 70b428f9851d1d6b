"""The time left of a run: what is counted, and how measured phases correct the estimate."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from spin_core.config.resolve import resolve
from spin_core.preflight.sizes import Texts
from spin_core.preflight.times import plan
from spin_core.preflight.times.plan import Item, Plan
from tests.support.lineages.small_lineage import build_lineage

ROOT = Path("/runs/mine")


def two_iterations() -> Plan:
    """Two trainings, of which the second is estimated to take twice as long, and a benchmark after each."""
    items = {("base", "bbh"): Item(0.0)}
    for t in range(2):
        items |= {(f"iter_{t:02d}", "train"): Item(100.0 * (t + 1)), (f"iter_{t:02d}", "bbh"): Item(0.0)}
    return Plan(ROOT, items)


def test_nothing_is_said_before_a_phase_was_measured_or_of_another_lineage():
    run = two_iterations()
    assert run.seconds_left(ROOT / "iter_00" / "train") is None
    run.finish(ROOT / "iter_00" / "train", 10.0)
    assert run.seconds_left(Path("/runs/another/iter_00/train")) is None


def test_a_measured_phase_corrects_the_estimate_of_those_of_its_kind():
    run = two_iterations()
    run.finish(ROOT / "base" / "eval" / "bbh", 30.0)
    assert run.seconds_left(ROOT / "iter_00" / "train") == 100 + 30 + 200 + 30, "trainings as estimated"
    run.finish(ROOT / "iter_00" / "train", 10.0)
    assert run.seconds_left(ROOT / "iter_00" / "eval" / "bbh") == pytest.approx(30 + 20 + 30)
    run.finish(ROOT / "iter_00" / "eval" / "bbh", 50.0)
    assert run.seconds_left(ROOT / "iter_01" / "train") == pytest.approx(20 + 40), "the mean of 30 and 50"
    assert run.seconds_left(ROOT / "iter_01" / "train", 15.0) == pytest.approx(5 + 40)
    assert run.seconds_left(ROOT / "iter_01" / "train", 90.0) == pytest.approx(40), "it takes longer than estimated"
    assert run.seconds_left(ROOT / "iter_01" / "train", 90.0, 7.0) == pytest.approx(7 + 40), "by its own progress"


def test_reused_phases_are_done_and_not_measured():
    run = two_iterations()
    run.finish(ROOT / "base" / "eval" / "bbh", 30.0)
    run.finish(ROOT / "iter_00" / "train")
    run.finish(ROOT / "iter_00" / "eval" / "bbh")
    assert run.seconds_left(ROOT / "iter_01" / "train") == 200 + 30


def test_earlier_iterations_of_the_lineage_are_measured(tmp_path, monkeypatch):
    lineage = build_lineage(tmp_path)
    monkeypatch.setattr(plan, "shape_of", lambda *_: plan.Shape(10**6, 2, 64, 128, 64, 64, 100, 4))
    monkeypatch.setattr(plan, "texts_of", lambda _: Texts(1000, 100, 10.0, 20.0, 20, 60))
    first = lineage.records()[0]
    run = Plan.of(lineage, first.opponent, first.prompts)
    assert run is not None
    assert len(run.measured["train"]) == 2
    assert run.measured["self-play"][0][1] == 1.5 + plan.START_SECONDS
    assert run.seconds_left(lineage.iteration(0) / "generations") > 0


def test_the_plan_has_every_phase_of_the_run():
    sets = [
        "controls.sft_learning_rate=[1e-3, 1e-4]",
        "controls.temperatures=[0.7]",
        "evaluate.suites=[big-bench-quick]",
        "pairs.mix_previous=true",
    ]
    config = resolve("demo", sets=sets, iterations=2)
    shape = plan.Shape(10**6, 2, 64, 128, 64, 64, 100, 4)
    items = plan._items(shape, Texts(1000, 100, 10.0, 20.0, 20, 60), config, plan._TYPICAL["cpu"])
    suites = {"self-play", "frontier", "big-bench-quick"}
    assert {kind for folder, kind in items if folder == "iter_01"} == {
        "generations",
        "pairs",
        "scores",
        "train",
    } | suites
    counts = {kind: item.count for (folder, kind), item in items.items() if folder == "controls"}
    assert counts == {"train": 2, "self-play": 3, "frontier": 2, "big-bench-quick": 2}
    assert items["iter_01", "train"].seconds > items["iter_00", "train"].seconds, "it also has the first one's pairs"


def test_a_models_sizes_are_read_from_its_files(tmp_path):
    settings = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "vocab_size": 50,
        "num_attention_heads": 2,
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps({"text_config": settings}))
    save_file({"weight": np.zeros((50, 8), np.float16)}, tmp_path / "model.safetensors")
    shape = plan.shape_of(tmp_path, "bfloat16")
    assert (shape.layers, shape.hidden, shape.key_width, shape.intermediate) == (2, 8, 8, 32)
    assert 400 <= shape.parameters < 450


def test_a_model_of_an_unknown_kind_has_no_plan(tmp_path):
    lineage = build_lineage(tmp_path)
    first = lineage.records()[0]
    assert Plan.of(lineage, first.opponent, first.prompts) is None
