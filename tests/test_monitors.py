"""What the monitors see in a run's numbers."""

import pytest

from spin_core.config import TrainConfig
from spin_core.errors import TrainingDiverged
from spin_core.losses import LOG_2
from spin_core.monitors import WINDOW, Monitors, check_finite, check_first_loss

HEALTHY = {"loss": 0.5, "rewards/real": 0.1, "rewards/margins": 0.5, "rewards/accuracies": 0.8, "grad_norm": 1.0}


def events(row: dict[str, float], steps: int = 2 * WINDOW, beta: float = 0.1) -> list[tuple[int, str]]:
    monitors = Monitors(beta)
    return [(step, event) for step in range(1, steps + 1) for event in monitors.see({"step": step, **row})]


def test_a_healthy_run_has_no_events():
    assert events(HEALTHY) == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"rewards/accuracies": 1.0}, "tells real from generated without fail"),
        ({"rewards/margins": 21.0}, "mean reward margin was 21.0"),
        ({"rewards/real": -0.2}, "2.0 nats below its start"),
    ],
)
def test_each_monitor_speaks_once_when_the_window_is_full(row, says):
    ((step, event),) = events({**HEALTHY, **row})
    assert step == WINDOW
    assert says in event
    assert f"to step {WINDOW}" in event


def test_one_odd_batch_sets_nothing_off():
    monitors = Monitors(0.1)
    rows = [{"step": step, **HEALTHY} for step in range(1, 60)]
    rows[30] |= {"rewards/accuracies": 1.0, "rewards/margins": 90.0, "rewards/real": -0.9}
    assert [event for row in rows for event in monitors.see(row)] == []


def test_the_fall_of_the_real_responses_is_measured_in_nats_whatever_beta_is():
    assert events({**HEALTHY, "rewards/real": -0.2}, beta=5.0) == []


def test_fine_tuning_has_no_rewards_to_watch():
    assert events({"loss": 1.0, "grad_norm": 1.0}) == []


@pytest.mark.parametrize(("name", "what"), [("loss", "loss"), ("grad_norm", "gradient")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_stops_and_names_step_rate_and_cure(name, what, value):
    row = {"step": 7, "learning_rate": 5e-7, **HEALTHY, name: value}
    with pytest.raises(TrainingDiverged, match=rf"the {what} of step 7 .* 5e-07: lower train.learning_rate"):
        check_finite(row)
    check_finite({**row, name: 1.0})


@pytest.mark.parametrize(("loss", "first"), [("logistic", LOG_2), ("hinge", 1.0)])
def test_the_first_loss_may_be_off_by_rounding_alone(loss, first):
    config = TrainConfig(loss=loss)
    check_first_loss(first + 9e-4, config, 0.1, "float32")
    for wrong in (first + 1.1e-3, first - 1.1e-3, float("nan")):
        with pytest.raises(TrainingDiverged, match=r"scores were made with other weights.*run again"):
            check_first_loss(wrong, config, 0.1, "float32")


def test_bfloat16_and_a_large_beta_round_more():
    check_first_loss(LOG_2 + 0.019, TrainConfig(), 0.1, "bfloat16")
    check_first_loss(LOG_2 + 0.009, TrainConfig(), 1.0, "float32")
    with pytest.raises(TrainingDiverged):
        check_first_loss(LOG_2 + 0.021, TrainConfig(), 0.1, "bfloat16")
    with pytest.raises(TrainingDiverged):
        check_first_loss(LOG_2 + 0.0011, TrainConfig(), 0.01, "float32")
