"""Settings: what they refuse, and how schedules read."""

import pytest
from pydantic import BaseModel, ValidationError

from spin_core.config import controls as settings
from spin_core.config.base import Frozen, at
from spin_core.config.data import PairsConfig
from spin_core.config.generate import GenerateConfig
from spin_core.config.resolve import resolve
from spin_core.config.run import RunConfig
from spin_core.config.train import TrainConfig
from spin_core.errors import ConfigError


def models() -> list[type[BaseModel]]:
    return [value for value in vars(settings).values() if isinstance(value, type) and issubclass(value, Frozen)]


def test_a_schedule_gives_one_value_an_iteration_and_holds_its_last():
    assert [at((0.1, 0.2, 5.0), t) for t in range(5)] == [0.1, 0.2, 5.0, 5.0, 5.0]
    assert [at(0.3, t) for t in range(3)] == [0.3, 0.3, 0.3]
    assert [at((False, True), t) for t in range(3)] == [False, True, True]


def test_an_empty_schedule_is_rejected():
    with pytest.raises(ValidationError, match="at least 1 item"):
        TrainConfig(beta=())


@pytest.mark.parametrize("beta", [0, -0.1, float("nan"), float("inf"), (0.1, 0.0), (0.1, -1.0)])
def test_beta_must_be_positive_and_finite(beta):
    with pytest.raises(ValidationError):
        TrainConfig(beta=beta)


@pytest.mark.parametrize(
    "values",
    [{"temperature": 0}, {"temperature": (1.0, -1.0)}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"batch_size": 0}],
)
def test_sampling_settings_out_of_range_are_rejected(values):
    with pytest.raises(ValidationError):
        GenerateConfig(**values)


@pytest.mark.parametrize("iterations", [0, -1, 1.5])
def test_a_run_has_at_least_one_whole_iteration(iterations):
    with pytest.raises(ValidationError):
        RunConfig(recipe="demo", iterations=iterations)


@pytest.mark.parametrize(
    "values", [{"learning_rate": 0}, {"epochs": 0}, {"warmup": 1.1}, {"weight_decay": -1}, {"optimizer": "sgd"}]
)
def test_training_settings_out_of_range_are_rejected(values):
    with pytest.raises(ValidationError):
        TrainConfig(**values)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().beta = 1.0


def test_no_setting_is_taken_that_does_not_exist():
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainConfig(betta=1.0)


def test_every_setting_says_what_it_is():
    silent = [
        f"{model.__name__}.{name}"
        for model in models()
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_a_configuration_survives_json():
    config = RunConfig(
        recipe="demo",
        train=TrainConfig(beta=(0.1, 5.0), learning_rate=(5e-7, 1e-7), epochs=(1, 2)),
        pairs=PairsConfig(mix_previous=(False, True)),
    )
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_schedule_of_whole_numbers_stays_whole():
    assert TrainConfig(epochs=(1, 2)).epochs == (1, 2)
    assert isinstance(at(TrainConfig(epochs=(1, 2)).epochs, 1), int)


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (["model.path=''"], "sft_first needs a model to fine-tune: set model.path"),
        ([], r"sft_first needs sft\.train\.learning_rate and sft\.train\.epochs: the defaults are for a new model"),
        (["sft.train.epochs=1"], r"sft_first needs sft\.train\.learning_rate:"),
    ],
)
def test_fine_tuning_first_needs_a_model_and_settings_that_fit_it(sets, line):
    with pytest.raises(ConfigError, match=line):
        resolve("tinystories", sets=["sft_first=true", *sets])
