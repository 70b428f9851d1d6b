"""The points of a lineage's curves."""

import math
import shutil

import pytest

from spin_core.lineage.lineage import Lineage
from spin_core.tracking.points import STEP, VERSION, Last, points
from tests.support.lineages.metrics import begin_training


def order_of(lineage: Lineage, last: Last = Last()) -> list[tuple[str, int, int]]:  # noqa: B008 (frozen)
    return [(point.kind, point.at, point.order) for point in points(lineage, last)]


def test_steps_are_counted_through_all_iterations_with_versions_between_them(lineage):
    whole = order_of(lineage)
    kinds = [VERSION, STEP, STEP, VERSION, STEP, STEP, VERSION]
    assert whole == list(zip(kinds, (0, 1, 2, 1, 3, 4, 2), range(7), strict=True))
    for sent in range(8):
        before = whole[:sent]
        last = Last(
            max((at for kind, at, _ in before if kind == STEP), default=0),
            max((at for kind, at, _ in before if kind == VERSION), default=-1),
        )
        assert order_of(lineage, last) == whole[sent:]


def test_points_have_measurements_scores_and_costs(lineage):
    values = {(point.kind, point.at): point.values for point in points(lineage, Last())}
    assert values[STEP, 4]["train/rewards/accuracies"] == 0.9
    assert values[STEP, 3]["train/tokens/s"] == 7 / 0.5
    assert values[STEP, 4]["train/iteration"] == 1
    assert values[VERSION, 0] == {"scores/heldout_nll": 3.5}
    second = values[VERSION, 2]
    assert (second["scores/heldout_nll"], second["scores/reward_accuracy"]) == (pytest.approx(2.9), 0.75)
    assert (second["pairs/kept"], second["pairs/dropped/empty"], second["gate/promoted"]) == (1, 1, 1)
    assert (second["answers/cut"], second["cost/tokens/generate"]) == (0.5, 20)
    # generate, score, train and one evaluation hold a device; pairs do not.
    assert second["cost/seconds"] == 5 * 1.5
    assert second["cost/device_hours"] == pytest.approx(4 * 1.5 / 3600, abs=1e-6)


def test_all_steps_but_the_last_of_a_running_training_are_reported(lineage):
    begin_training(lineage, 3)
    *_, before, last = points(lineage, Last())
    assert (before.at, last.at, last.order) == (5, 6, 8)
    assert math.isnan(last.values["train/grad_norm"])
    shutil.rmtree(lineage.iteration(0) / "generations")
    assert order_of(lineage) == []
