"""What a check reports of the settings."""

import pytest

from spin_core.preflight.check import check_run
from tests.support.findings import only_error, texts_of


def test_the_best_weights_cannot_be_kept_without_held_out_pairs(configured, tmp_path):
    line = only_error(check_run(configured("train.keep_best=loss"), tmp_path))
    assert line == (
        "config: train.keep_best loss is measured on held-out pairs, and none are held out: "
        "set train.held_out to 0.05, or train.keep_best to nothing"
    )


@pytest.mark.parametrize("loss", ["t-spin", "space"])
def test_a_beta_other_than_its_papers_is_a_warning(configured, loss, tmp_path):
    warning = f"train.loss {loss} is made for train.beta 1, which its paper takes"
    assert warning in texts_of(
        check_run(configured(f"train.loss={loss}", "train.beta=0.1"), tmp_path), "config", "warn"
    )
    assert warning not in texts_of(
        check_run(configured(f"train.loss={loss}", "train.beta=1"), tmp_path), "config", "warn"
    )


def test_a_schedule_that_is_too_long_is_a_warning(configured, tmp_path):
    result = check_run(configured("iterations=2", "train.beta=[0.1, 0.2, 0.3]"), tmp_path)
    assert texts_of(result, "config", "warn") == ["train.beta has 3 values for 2 iterations: the last 1 go unused"]
    assert "beta 0.1, 0.2, learning rate" in texts_of(result, "config")[0]
