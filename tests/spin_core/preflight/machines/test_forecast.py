"""What a run takes on a machine that is not here."""

import dataclasses
import json

import pytest

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError
from spin_core.preflight import fit
from spin_core.preflight.machines.forecast import Forecast, forecast
from spin_core.preflight.machines.inputs import Lengths, read_inputs
from spin_core.preflight.machines.profiles import machine_of


def forecast_of(machine: str, *sets: str, nodes: int = 1, recipe: str = "zephyr-7b") -> Forecast:
    config = resolve(recipe, sets=sets)
    inputs = read_inputs(config, Lengths())
    return forecast(config, machine_of(machine, nodes), inputs.shape, inputs.texts)


def test_eight_large_gpus_train_all_weights_and_later_stages_need_less_memory():
    result = forecast_of("8xH100")
    full = [option for option in result.options if not option.lora]
    assert [option.stage for option in full] == [0, 1, 2, 3]
    assert [option.fits for option in full] == [False, False, True, True]
    assert result.cheapest(lora=False) == min(full[2:], key=lambda option: option.seconds)
    assert all(option.bytes_each <= fit.MARGIN * 80e9 for option in result.options if option.fits)
    assert all(len(option.iterations) == 4 for option in result.options if option.fits)
    adapters = result.cheapest(lora=True)
    assert adapters.seconds < result.cheapest(lora=False).seconds
    # Iterations after the first train on twice as many pairs.
    first, second, *_ = result.cheapest(lora=False).iterations
    assert second["training"] == pytest.approx(2 * first["training"], rel=0.01)
    assert second["generating"] == first["generating"]


def test_one_small_gpu_trains_adapters_alone_and_a_smaller_one_nothing():
    small = forecast_of("L4")
    assert [(option.lora, option.stage, option.fits) for option in small.options] == [
        (False, 0, False),
        (True, 0, True),
    ]
    assert small.cheapest(lora=False) is None
    assert small.cheapest(lora=True).recomputes, "what does not fit otherwise"
    tiny = forecast_of("T4")
    assert tiny.shape.dtype == "float32", "it has no bfloat16"
    assert (tiny.tensor_parallel, tiny.cheapest(lora=True)) == (0, None)


def test_a_faster_machine_and_more_nodes_take_less_time():
    hours = [forecast_of(name).cheapest(lora=False).seconds for name in ("8xH200", "8xH100", "8xA100-80GB")]
    assert hours == sorted(hours)
    assert forecast_of("8xH100", nodes=2).cheapest(lora=False).seconds < hours[1]


def test_a_model_that_no_gpu_holds_is_divided_for_generation():
    result = forecast_of("8xT4")
    assert result.tensor_parallel == 4
    assert not any(option.fits for option in result.options)


def test_the_settings_of_an_option_are_those_that_differ_from_the_recipes():
    machine = machine_of("8xH100")
    config, result = resolve("zephyr-7b"), forecast_of("8xH100")
    sets = result.cheapest(lora=False).sets(machine, config)
    assert sets[0] == "train.speed.ranks=8"
    assert "train.gradient_checkpointing=false" in sets
    chosen = resolve("zephyr-7b", sets=sets)
    assert result.cheapest(lora=False).sets(machine, chosen) == []
    two = forecast_of("8xH100", nodes=2)
    assert "train.speed.rendezvous=HOST:PORT" in two.cheapest(lora=False).sets(two.machine, config)
    assert "train.lora.rank=16" in result.cheapest(lora=True).sets(machine, config)


def test_a_users_size_of_a_pass_and_adapters_alone_are_respected():
    result = forecast_of("8xH100", "train.micro_batch_tokens=700", "train.lora.rank=8")
    assert {option.tokens for option in result.options} == {700}
    assert all(option.lora for option in result.options)


def test_lengths_are_assumed_within_the_limits_or_the_users():
    config = resolve("zephyr-7b", sets=["prompts.max_prompt_tokens=100", "generate.max_new_tokens=90"])
    inputs = read_inputs(config, Lengths())
    assert inputs.assumed
    assert (inputs.texts.prompt_tokens, inputs.texts.response_tokens, inputs.texts.longest) == (100, 90, 190)
    own = read_inputs(resolve("zephyr-7b"), Lengths(prompt=50, response=60))
    assert not own.assumed
    assert (own.texts.prompt_tokens, own.texts.response_tokens) == (50, 60)


def test_data_and_a_model_that_are_here_are_measured(configured):
    inputs = read_inputs(configured(), Lengths())
    assert not inputs.assumed
    assert inputs.texts.prompts < 60
    assert inputs.shape.layers > 0
    own = read_inputs(configured("prompts.sample=30"), Lengths(prompt=7, response=9))
    assert own.shape == inputs.shape
    assert (own.texts.prompts, own.texts.response_tokens) == (30, 9)


def test_what_is_not_known_without_a_network_is_an_error_with_its_fix():
    with pytest.raises(ConfigError, match=r"set model\.path to a folder with its config\.json"):
        read_inputs(resolve("zephyr-7b", sets=["model.path=some/other"]), Lengths())
    with pytest.raises(ConfigError, match=r"set prompts\.sample"):
        read_inputs(resolve("zephyr-7b", sets=["prompts.sample=null"]), Lengths())


def test_a_forecast_is_json():
    assert json.loads(json.dumps(dataclasses.asdict(forecast_of("L4"))))["machine"]["each"] == 1
