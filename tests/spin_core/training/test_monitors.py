"""When monitors report an event, and what the event does."""

import json
import math

import pytest
import torch

from spin_core.config.train import MonitorsConfig, TrainConfig
from spin_core.errors import TrainingDiverged
from spin_core.models.loading import load_model
from spin_core.phases import train as train_phase
from spin_core.store import artifacts
from spin_core.store.records import Event, ModelVersion
from spin_core.store.training_log import read_rows
from spin_core.training.losses import LOG_2, length_correlation
from spin_core.training.monitors import LEAP, Monitors, check_first_loss, ending, events_of
from spin_core.training.objective import Objective, objective_of
from tests.support.lineages.small_jobs import random_train_job, run_job

HEALTHY = {
    "loss": 0.5, "rewards/real": 0.1, "rewards/margins": 0.5, "rewards/accuracies": 0.8, "grad_norm": 1.0,
    "length_correlation": 0.1, "learning_rate": 5e-7,
}  # fmt: skip
WINDOW = MonitorsConfig().window
LOGISTIC = Objective("logistic", 0.1)


def rows(**changes) -> list[dict[str, float]]:
    """Two windows of healthy steps, or with a metric's values set: one value, or one a step."""
    made = [{"step": step, **HEALTHY} for step in range(1, 2 * WINDOW + 1)]
    for name, values in changes.items():
        for row, value in zip(made, values if isinstance(values, list) else [values] * len(made), strict=True):
            row[name.replace("_R_", "rewards/")] = value
    return made


def seen(made, objective=LOGISTIC, **config) -> list[tuple[str, int, str]]:
    return [(event.kind, event.step, event.action) for event in events_of(made, MonitorsConfig(**config), objective)]


def leap(at: int, length: int, height: float) -> list[float]:
    """Gradient norms of 1, but for `length` steps from step `at` on."""
    return [height if at <= step < at + length else 1.0 for step in range(1, 2 * WINDOW + 1)]


def test_a_healthy_run_has_no_events():
    assert seen(rows()) == []


@pytest.mark.parametrize(
    ("kind", "change", "step", "says"),
    [
        ("saturated", {"_R_accuracies": 1.0}, WINDOW, "always distinguishes real from generated"),
        ("exploded", {"_R_margins": 21.0}, WINDOW, "mean reward margin was 21.0"),
        ("fallen", {"_R_real": -0.2}, WINDOW, "2.0 nats below its start"),
        ("length", {"length_correlation": 0.9}, WINDOW, "real responses are longer, more than what they say"),
        ("length", {"length_correlation": -0.9}, WINDOW, "real responses are shorter, more than what they say"),
        ("gradient", {"grad_norm": leap(30, LEAP, 11.0)}, 30 + LEAP - 1, "at least 11 in 3 steps in a row"),
    ],
)
@pytest.mark.parametrize("action", ["warn", "stop", "roll-back"])
def test_each_monitor_acts_once_as_configured(kind, change, step, says, action):
    (event,) = events_of(rows(**change), MonitorsConfig(**{kind: action}), LOGISTIC)
    assert (event.kind, event.step, event.action) == (kind, step, action)
    assert says in event.message
    assert f"to step {step}" in event.message
    assert (f"train.monitors.{kind} is {action}" in event.message) == (action != "warn")
    assert "\n" not in event.message


@pytest.mark.parametrize(
    "change",
    [
        {"_R_accuracies": 1.0},
        {"_R_margins": 21.0},
        {"_R_real": -0.2},
        {"length_correlation": 0.9},
        {"grad_norm": leap(30, LEAP, 11.0)},
    ],
)
def test_a_monitor_that_is_off_reports_nothing(change):
    assert seen(rows(**change), **dict.fromkeys(("saturated", "exploded", "fallen", "length", "gradient"), "off")) == []


def test_one_unusual_batch_is_not_an_event():
    made = rows(grad_norm=leap(25, LEAP - 1, 1000.0))
    made[30] |= {"rewards/accuracies": 1.0, "rewards/margins": 90.0, "rewards/real": -0.9, "length_correlation": 1.0}
    assert seen(made) == []


def test_thresholds_and_window_are_configuration():
    made = rows(_R_accuracies=0.95, _R_margins=5.0, _R_real=-0.05, length_correlation=0.5, grad_norm=leap(8, LEAP, 3.0))
    assert seen(made) == []
    strict = {"saturated_accuracy": 0.9, "exploded_margin": 4.0, "fallen_nats": 0.4, "length_correlation": 0.4}
    events = seen(made, window=5, gradient_factor=2.0, **strict)
    assert [kind for kind, *_ in events] == ["saturated", "exploded", "fallen", "length", "gradient"]
    assert [step for _, step, _ in events] == [5, 5, 5, 5, 10]


def test_the_fall_of_the_real_responses_is_in_nats_for_any_beta():
    assert seen(rows(_R_real=-0.2), Objective("logistic", 5.0)) == []


def test_a_fall_is_measured_from_the_start_where_rewards_do_not_start_at_zero():
    anchored = Objective("logistic", 0.1, anchor=0.5)
    assert seen(rows(_R_real=-0.2), anchored) == []
    falling = [-0.2] * WINDOW + [-0.5] * WINDOW
    assert [kind for kind, *_ in seen(rows(_R_real=falling), anchored)] == ["fallen"]


def test_fine_tuning_has_a_gradient_to_watch_and_no_rewards():
    made = [{name: row[name] for name in ("step", "loss", "grad_norm", "learning_rate")} for row in rows()]
    assert seen(made, Objective("sft", 0.1)) == []
    for row, norm in zip(made, leap(30, LEAP, 11.0), strict=True):
        row["grad_norm"] = norm
    assert [kind for kind, *_ in seen(made, Objective("sft", 0.1))] == ["gradient"]


def test_resumed_monitors_report_what_uninterrupted_ones_report():
    made = rows(_R_accuracies=1.0, grad_norm=leap(30, LEAP, 11.0))
    whole, resumed = (Monitors(MonitorsConfig(), LOGISTIC) for _ in range(2))
    want = [whole.check(row) for row in made]
    for row in made[:25]:
        resumed.check(json.loads(json.dumps(row)))
    assert [resumed.check(row) for row in made[25:]] == want[25:]


@pytest.mark.parametrize(("name", "what"), [("loss", "loss"), ("grad_norm", "gradient")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_names_step_rate_and_fix(name, what, value):
    made = rows()[:7]
    made[6][name] = value
    (event,) = events_of(made, MonitorsConfig(), LOGISTIC)
    assert (event.kind, event.step, event.action) == ("not_finite", 7, "refuse")
    assert f"the {what} of step 7 is not finite, at learning rate 5e-07: lower train.learning_rate" in event.message
    (event,) = events_of(made, MonitorsConfig(not_finite="roll-back"), LOGISTIC)
    assert event.action == "roll-back"


def test_of_two_events_in_one_step_the_stronger_action_is_taken():
    events = [Event(kind=action, step=1, message="", action=action) for action in ("warn", "stop", "roll-back")]
    assert ending(events).action == "roll-back"
    assert ending(events[:2]).action == "stop"
    assert ending(events[:1]) is None


def test_length_correlation_is_pearsons_and_0_where_there_is_none():
    def of(margins, longer):
        return length_correlation(margins_B=torch.tensor(margins), longer_B=torch.tensor(longer)).item()

    assert of([1.0, 2.0, 3.0], [10, 20, 30]) == pytest.approx(1.0)
    assert of([1.0, 2.0, 4.0], [3, 1, -2]) == pytest.approx(-0.9972, abs=1e-4)  # by hand: -23/3 / sqrt(14/3 * 38/3)
    assert of([0.0, 0.0], [1, 2]) == of([1.0, 2.0], [7, 7]) == of([3.0], [1]) == 0.0


@pytest.mark.parametrize(("loss", "first"), [("logistic", LOG_2), ("hinge", 1.0)])
def test_the_first_loss_may_differ_only_by_rounding(loss, first):
    config = TrainConfig(loss=loss)
    check_first_loss({"loss": first + 9e-4}, 0.0, objective_of(config, 0), config, "float32")
    for wrong in (first + 1.1e-3, first - 1.1e-3, math.nan):
        with pytest.raises(TrainingDiverged, match=r"scores were made with other weights.*run again"):
            check_first_loss({"loss": wrong}, 0.0, objective_of(config, 0), config, "float32")


def test_bfloat16_and_a_large_beta_round_more():
    def check(loss, dtype, beta=0.1):
        config = TrainConfig(beta=beta)
        check_first_loss({"loss": loss}, 0.0, objective_of(config, 0), config, dtype)

    check(LOG_2 + 0.019, "bfloat16")
    check(LOG_2 + 0.009, "float32", 1.0)
    with pytest.raises(TrainingDiverged):
        check(LOG_2 + 0.021, "bfloat16")
    with pytest.raises(TrainingDiverged):
        check(LOG_2 + 0.0011, "float32", 0.01)


@pytest.mark.parametrize("beta", [0.1, 5.0])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_player_and_opponent_may_differ_only_by_rounding_for_every_beta(dtype, most, beta):
    config = TrainConfig(beta=beta)
    check_first_loss({"loss": LOG_2}, 0.9 * most, objective_of(config, 0), config, dtype)
    for wrong in (1.1 * most, math.nan):
        with pytest.raises(TrainingDiverged, match=r"nats a token apart, and may be .* run again"):
            check_first_loss({"loss": LOG_2}, wrong, objective_of(config, 0), config, dtype)


def test_the_check_of_the_first_loss_ignores_the_nll_and_skips_losses_without_a_fixed_start():
    both = TrainConfig(nll_weight=0.5)
    check_first_loss({"loss": LOG_2 + 0.5 * 3, "nll": 3.0}, 0.0, objective_of(both, 0), both, "float32")
    tuning = TrainConfig(loss="sft")
    check_first_loss({"loss": 7.0}, None, objective_of(tuning, 0), tuning, "float32")


# In a real training, whose learning rate is far too large.

WILD = {"learning_rate": 3e-2, "epochs": 8, "lr_schedule": "constant", "warmup": 0}
"""24 steps of 8 pairs; the accuracy is 1 from the fourth step or so on."""


def weights(folder) -> torch.Tensor:
    from tests.support.lineages.small_jobs import CPU

    return torch.cat([weight.flatten() for weight in load_model(folder, CPU).parameters()])


def monitors(**settings):
    return MonitorsConfig(**{"window": 3, "exploded": "off", "fallen": "off", "length": "off", **settings})


def test_a_warning_is_logged_and_recorded_and_changes_nothing(tmp_path, tiny_model, caplog):
    quiet = run_job(
        random_train_job(tmp_path / "quiet", tiny_model, **WILD, monitors=monitors(saturated="off", gradient="off"))
    )
    record = run_job(random_train_job(tmp_path / "warned", tiny_model, **WILD, monitors=monitors()))
    event = next(event for event in record.events if event.kind == "saturated")
    assert event.action == "warn"
    assert event.message in caplog.text
    assert record.model == quiet.model
    assert record.steps == record.published == 24


def test_a_stop_publishes_the_weights_as_they_are_and_the_run_is_complete(tmp_path, tiny_model):
    job = random_train_job(tmp_path / "stop", tiny_model, **WILD, monitors=monitors(saturated="stop"))
    record = run_job(job)
    (event,) = (event for event in record.events if event.action == "stop")
    assert record.steps == record.published == event.step == len(read_rows(job.output / "metrics.jsonl")) < 24
    so_far = run_job(random_train_job(tmp_path / "short", tiny_model, **WILD, monitors=monitors(), steps=record.steps))
    assert torch.equal(weights(job.weights), weights(tmp_path / "short" / "model"))
    assert so_far.metrics == record.metrics
    assert run_job(job) == record, "it is reused"
    assert artifacts.verify(job.output) == artifacts.verify(job.weights) == []


def test_a_kill_after_a_stop_has_published_its_weights_trains_nothing_again(tmp_path, tiny_model, monkeypatch):
    job, keep, calls = (
        random_train_job(tmp_path, tiny_model, **WILD, monitors=monitors(saturated="stop")),
        train_phase.summary,
        [],
    )

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_phase, "summary", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    monkeypatch.setattr(train_phase, "summary", keep)
    monkeypatch.setattr(train_phase, "train", lambda *_: calls.append("trained"))
    record = run_job(job)
    assert calls == []
    assert record.steps == record.events[-1].step < 24
    assert record.model == artifacts.read_record(job.weights, ModelVersion).digest


def test_a_stop_on_request_does_not_change_the_step_of_a_roll_back(tmp_path, tiny_model):
    from spin_core.errors import Stopped
    from spin_core.runtime import progress as runtime_progress

    # When it ends depends on the machine's rounding.
    ends = run_job(
        random_train_job(tmp_path / "measure", tiny_model, **WILD, monitors=monitors(saturated="stop"))
    ).steps
    settings = {**WILD, "monitors": monitors(saturated="roll-back"), "save_every": ends - 3, "keep_checkpoints": 1}
    whole = run_job(random_train_job(tmp_path / "whole", tiny_model, **settings))
    job = random_train_job(tmp_path / "stopped", tiny_model, **settings)
    for _ in range(whole.steps - 1):
        progress = runtime_progress.Progress()
        progress.stop()
        with pytest.raises(Stopped):
            run_job(job, progress)  # one step further, and a checkpoint of it
    assert run_job(job) == whole.model_copy(update={"path": job.output})
    assert whole.published == whole.steps - 3


def test_a_roll_back_publishes_the_last_checkpoint_before_the_event(tmp_path, tiny_model):
    job = random_train_job(
        tmp_path / "back", tiny_model, **WILD, monitors=monitors(saturated="roll-back"), save_every=2
    )
    record = run_job(job)
    (event,) = (event for event in record.events if event.action == "roll-back")
    assert record.published == (event.step - 1) // 2 * 2 < record.steps == event.step
    assert record.metrics["loss"] == read_rows(job.output / "metrics.jsonl")[record.published - 1]["loss"]
    run_job(random_train_job(tmp_path / "short", tiny_model, **WILD, monitors=monitors(), steps=record.published))
    assert torch.equal(weights(job.weights), weights(tmp_path / "short" / "model"))


def test_a_roll_back_without_a_checkpoint_says_what_to_set(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model, **WILD, monitors=monitors(saturated="roll-back"), save_every=100)
    with pytest.raises(TrainingDiverged, match=r"there is no checkpoint before it: lower train\.save_every"):
        run_job(job)
    assert not job.weights.exists()


def poisoned(path, at: int):
    """Scores of which one is not a number, so that its batch's loss is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = {name: column.to_numpy().copy() for name, column in zip(table.column_names, table.columns, strict=True)}
    columns["real_logps"][at] = math.nan
    pq.write_table(pa.table(columns), path)
    (path.parent / "manifest.json").unlink()  # nothing is compared then


def test_a_loss_that_is_not_finite_ends_the_run_or_rolls_it_back(tmp_path, tiny_model):
    from spin_core.data.batches import DataOrder

    last = DataOrder(24, 8, 0).batch(2)[0]
    job = random_train_job(tmp_path / "refuse", tiny_model, save_every=1)
    poisoned(job.scores.path / "logps.parquet", last)
    with pytest.raises(TrainingDiverged, match=r"step 3 is not finite.*set train\.monitors\.not_finite to roll-back"):
        run_job(job)
    assert not job.weights.exists()
    job = random_train_job(tmp_path / "back", tiny_model, save_every=1, monitors={"not_finite": "roll-back"})
    poisoned(job.scores.path / "logps.parquet", last)
    record = run_job(job)
    assert (record.steps, record.published) == (3, 2)
    assert record.events[-1].kind == "not_finite"
    assert weights(job.weights).isfinite().all()
    lines = (job.output / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1], parse_constant=pytest.fail)["loss"] is None
    assert artifacts.read_record(job.weights, ModelVersion).digest == record.model
