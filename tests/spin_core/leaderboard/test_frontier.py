"""A lineage's frontier, from sweeps with chosen numbers."""

import numpy as np
import pytest

from spin_core.evaluation.frontier.axes import EXACT
from spin_core.leaderboard.board import leaderboard, save
from tests.support.lineages.small_lineage import build_lineage
from tests.support.lineages.small_sweeps import BASE, HARD, TEMPERATURES, build_swept_lineage, sweep


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    return build_swept_lineage(tmp_path_factory.mktemp("runs"))


def test_gaps_are_those_of_the_numbers(lineage):
    frontier = leaderboard(lineage).frontier
    assert (frontier.diversity, frontier.quality, frontier.temperature, frontier.items) == (*EXACT, 0.5, 8)
    base, first, second, control = frontier.rows
    assert [row.name for row in frontier.rows] == ["θ_0", "θ_1", "θ_2", "sft"]
    assert base.quality_gap is base.diversity_gap is None
    assert (base.diversity.value, base.quality.value) == (pytest.approx(0.3), pytest.approx(0.03))
    assert first.quality_gap.delta == pytest.approx(0, abs=1e-9)
    assert first.quality_gap.temperature == pytest.approx(0.6)
    assert second.quality_gap.delta == pytest.approx(-0.02)
    # θ_0 has an invalid mass of .02 at .4, where its total variation is .4.
    assert second.diversity_gap.delta == pytest.approx(-0.2)
    assert second.diversity_gap.temperature == pytest.approx(0.4)
    assert control.quality_gap.delta == pytest.approx(0.01)
    assert [row.quality_gap.verdict for row in frontier.rows[1:]] == ["", "better", "worse"]
    # Where the control's total variation is .2, as theirs, its invalid mass is .05.
    assert first.control_gaps["sft"].delta == pytest.approx(-0.01)
    assert second.control_gaps["sft"].delta == pytest.approx(-0.03)
    assert base.control_gaps == control.control_gaps == {}
    assert base.quality.stderr == pytest.approx(0.03 * HARD.std(ddof=1) / np.sqrt(8))


def test_curves_are_means_over_the_items(lineage):
    curve = leaderboard(lineage).frontier.curves[0]
    assert (curve.name, curve.t) == ("θ_0", 0)
    assert [point.temperature for point in curve.points] == list(TEMPERATURES)
    assert [point.diversity for point in curve.points] == pytest.approx(BASE[0])
    assert [point.quality for point in curve.points] == pytest.approx(BASE[1])


def test_a_frontier_adds_no_column_and_no_suite_to_the_leaderboard(lineage, tmp_path):
    board, plain = save(lineage), leaderboard(build_lineage(tmp_path))
    assert plain.frontier is None
    assert (board.suites, board.tasks()) == (plain.suites, plain.tasks())


def test_without_a_sweep_of_the_base_at_the_temperature_of_use_there_is_no_frontier(tmp_path):
    lineage = build_lineage(tmp_path, sets=["evaluate.temperature=0.55"])
    sweep(lineage.eval_folder(1) / "frontier", *BASE)
    assert leaderboard(lineage).frontier is None
    sweep(lineage.eval_folder(0) / "frontier", *BASE)
    assert leaderboard(lineage).frontier is None


def test_a_model_without_that_temperature_is_left_out(tmp_path):
    lineage = build_lineage(tmp_path)
    sweep(lineage.eval_folder(0) / "frontier", *BASE)
    sweep(lineage.eval_folder(1) / "frontier", *BASE)
    sweep(lineage.eval_folder(2) / "frontier", *BASE, temperatures=(0.2, 0.3, 0.4, 0.6, 0.7))
    assert [row.name for row in leaderboard(lineage).frontier.rows] == ["θ_0", "θ_1"]


def test_an_axis_on_which_more_is_better_keeps_its_sign(tmp_path):
    lineage = build_lineage(tmp_path)
    axes = ("distinct_2", "faulty_share")
    sweep(lineage.eval_folder(0) / "frontier", (0.1, 0.2, 0.3, 0.4, 0.5), BASE[1], axes=axes)
    # At .5, θ_1 is as diverse as θ_0 at .6 with .02 less of faults, which θ_0 has at .4, with .2 less of diversity.
    sweep(lineage.eval_folder(1) / "frontier", (0.2, 0.3, 0.4, 0.5, 0.6), (0.0, 0.01, 0.02, 0.03, 0.04), axes=axes)
    frontier = leaderboard(lineage).frontier
    assert (frontier.diversity, frontier.quality, frontier.more_is_diverse) == (*axes, True)
    assert [point.diversity for point in frontier.curves[0].points] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    row = frontier.rows[1]
    assert row.quality_gap.delta == pytest.approx(-0.02)
    assert row.diversity_gap.delta == pytest.approx(0.2)
    assert row.diversity_gap.low <= row.diversity_gap.delta <= row.diversity_gap.high
    assert row.diversity_gap.verdict == "better"
    assert row.diversity.higher_is_better


def test_more_diverse_than_the_curve_at_any_temperature_is_at_least_the_difference(tmp_path):
    lineage = build_lineage(tmp_path)
    axes = ("distinct_2", "faulty_share")
    sweep(lineage.eval_folder(0) / "frontier", (0.1, 0.2, 0.3, 0.4, 0.5), BASE[1], axes=axes)
    sweep(lineage.eval_folder(1) / "frontier", [0.9] * 5, [0.001] * 5, axes=axes)
    row = leaderboard(lineage).frontier.rows[1]
    assert (row.quality_gap.reach, row.quality_gap.bound) == ("beyond", "≤")
    assert (row.diversity_gap.reach, row.diversity_gap.bound) == ("beyond", "≥")


def test_axes_that_were_not_measured_are_no_frontier(tmp_path):
    lineage = build_lineage(tmp_path, sets=["evaluate.frontier_quality=reference_nll"])
    sweep(lineage.eval_folder(0) / "frontier", *BASE, axes=("distinct_2", "faulty_share"))
    assert leaderboard(lineage).frontier is None
