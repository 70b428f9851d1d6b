"""Recipes, and the ways in which a user changes them."""

from typing import get_args

import pytest
import yaml

from spin_core.config.base import at
from spin_core.config.controls import ControlsConfig
from spin_core.config.recipes import ABOUT, RECIPES
from spin_core.config.resolve import RecipeName, resolve
from spin_core.config.run import RunConfig
from spin_core.errors import ConfigError
from spin_core.leaderboard import gate
from spin_core.store import identity
from spin_core.store.files import json_values


def refusal(**changes) -> str:
    """The line that a user sees."""
    with pytest.raises(ConfigError) as caught:
        resolve("demo", **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves_and_survives_json(name):
    config = resolve(name)
    assert config.recipe == name
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_every_recipe_has_a_name_in_the_form_and_a_line_about_it():
    assert list(get_args(RecipeName)) == list(RECIPES) == list(ABOUT)


def test_every_recipe_has_a_line_about_it_that_fits_a_line():
    assert [name for name, line in ABOUT.items() if "\n" in line or len(line) > 110] == []


def test_the_paper_preset_holds_the_published_settings():
    config = resolve("zephyr-7b-paper")
    assert config.model.path == "alignment-handbook/zephyr-7b-sft-full"
    assert config.model.dtype == "bfloat16"
    assert config.prompts.source.path == "HuggingFaceH4/ultrachat_200k"
    assert config.prompts.rounds == "first"
    assert config.prompts.sample == 50_000
    assert config.chat.template == "format"
    assert config.chat.format == "### Instruction: {prompt}\n\n### Response: "
    assert config.iterations == 4
    schedule = [(at(config.train.learning_rate, t), at(config.train.beta, t)) for t in range(4)]
    assert schedule == [(5e-7, 0.1), (5e-7, 0.1), (1e-7, 0.1), (1e-7, 5.0)]
    assert [at(config.pairs.mix_previous, t) for t in range(4)] == [False, True, True, True]
    train = config.train
    assert (train.loss, train.optimizer, train.weight_decay) == ("logistic", "rmsprop", 0.0)
    assert (at(train.epochs, 0), train.batch_size, train.warmup, train.lr_schedule) == (2, 64, 0.1, "linear")
    generate = config.generate
    assert (at(generate.temperature, 0), generate.top_p, generate.top_k, generate.max_new_tokens) == (1.0, 1.0, 0, 256)
    assert config.gate.rule == "always"
    hygiene = [getattr(config.pairs, f"drop_{name}") for name in ("identical", "empty", "looping", "duplicates", "cut")]
    assert not any(hygiene)


def test_the_scripts_preset_differs_from_the_papers_only_in_its_epochs():
    paper, scripts = resolve("zephyr-7b-paper"), resolve("zephyr-7b-scripts")
    changed = {name: new for name, _, new in identity.differences(json_values(paper), json_values(scripts))}
    assert changed == {"recipe": "zephyr-7b-scripts", "train.epochs": 6}


@pytest.mark.parametrize("recipe", ["zephyr-7b", "zephyr-7b-paper", "zephyr-7b-scripts"])
def test_the_weights_of_the_paper_are_pinned(recipe):
    assert resolve(recipe).model.revision == "ac6e600eefcce74f5e8bae1035d4f66019e93190"


def test_the_papers_benchmarks_are_evaluated():
    assert resolve("zephyr-7b-paper").evaluate.suites == ("open-llm-leaderboard", "big-bench")


def test_the_fixed_preset_differs_from_the_papers_only_in_corrections():
    paper, fixed = resolve("zephyr-7b-paper"), resolve("zephyr-7b")
    assert fixed.chat.template == "tokenizer"
    assert fixed.generate.max_new_tokens > paper.generate.max_new_tokens
    assert fixed.train == paper.train
    assert fixed.prompts == paper.prompts
    assert fixed.pairs == resolve("demo", sets=["pairs.drop_duplicates=true", "pairs.mix_previous=[false, true]"]).pairs


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipes_gate_uses_the_likelihood_that_spin_lowers(recipe):
    config = resolve(recipe)
    gate.check_metrics(config)
    assert gate.metric_of(config) != "heldout_nll"


def test_an_unknown_recipe_names_the_near_one_and_all_there_are():
    with pytest.raises(
        ConfigError, match=r"no recipe 'demmo' \(did you mean demo\?\): choose one of demo, tinystories"
    ):
        resolve("demmo")


def test_a_misspelled_setting_names_the_near_one():
    assert refusal(sets=["train.betta=1"]).startswith("train.betta is not a setting (did you mean train.beta?): see")
    assert refusal(sets=["tran.beta=1"]).startswith("tran is not a setting (did you mean train?): see")
    assert "(did you mean evaluate.lm_eval.limit?)" in refusal(sets=["evaluate.lm_eval.limt=2"])
    assert "did you mean prompts.held_out_source.path?" in refusal(sets=["prompts.held_out_source.pth=x"])


def test_a_wrong_value_names_the_setting_the_value_and_the_bound():
    assert refusal(sets=["train.beta=0"]) == "train.beta cannot be 0: give a number greater than 0"
    assert refusal(sets=["train.beta=[0.1, -1]"]) == "train.beta cannot be -1: give a number greater than 0"
    assert refusal(iterations=0) == "iterations cannot be 0: give a number greater than 0"
    assert refusal(sets=["generate.temperature=0"]).startswith("generate.temperature cannot be 0")
    assert refusal(sets=["train.epochs=1.5"]).startswith("train.epochs cannot be 1.5")
    wanted = "logistic, hinge, exponential, correlation, t-spin, space, sft"
    assert refusal(sets=["train.loss=dpo"]) == f"train.loss cannot be 'dpo': give one of {wanted}"


def test_incompatible_settings_are_reported_without_the_rest():
    assert refusal(sets=["train.loss=sft"]).startswith("train.loss sft is not a loss for self-play: ")


def test_every_wrong_value_is_reported_at_once():
    line = refusal(sets=["train.beta=0", "generate.top_p=2", "seed=x"])
    assert all(name in line for name in ("train.beta", "generate.top_p", "seed"))


@pytest.mark.parametrize(
    "text",
    ["train.beta", "=3", "train..beta=1", "train=3", "train.beta=", "train.beta={a: 1}", "train.beta=[", "1=2", ".=1"],
)
def test_a_broken_assignment_is_one_line(text):
    assert refusal(sets=[text])


def test_a_later_source_of_settings_wins(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("iterations: 7\ntrain:\n  beta: 0.2\n  epochs: 5\n  batch_size: 3\n")
    config = resolve(
        "tinystories",
        file=file,
        sets=["train.beta=0.3", "train.epochs=6"],
        overrides={"train": {"beta": 0.4}},
        iterations=9,
    )
    train = config.train
    assert (train.optimizer, train.batch_size, train.epochs, train.beta, config.iterations) == ("adamw", 3, 6, 0.4, 9)


def test_an_empty_section_takes_the_recipes_settings_back():
    assert resolve("demo").controls != ControlsConfig()
    assert resolve("demo", sets=["controls={}"]).controls == ControlsConfig()
    assert resolve("demo", overrides={"controls": {}}).controls == ControlsConfig()


def test_settings_come_from_toml_too(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("[train]\nbeta = [0.1, 5.0]\n")
    assert resolve("demo", file=file).train.beta == (0.1, 5.0)


def test_a_resolved_recipe_can_be_read_back(tmp_path):
    config = resolve("zephyr-7b-paper")
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert resolve("zephyr-7b-paper", file=file) == config


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.yaml", "train: [unclosed", "a.yaml is not valid YAML, line 1, column 17: "),
        ("a.yaml", "- a\n- list\n", 'has no settings: write them as "train: {beta: 0.1}"'),
        ("a.yaml", "", 'has no settings: write them as "train: {beta: 0.1}"'),
        ("a.yaml", "\t: x", "a.yaml is not valid YAML, line 1, column 1: "),
        ("a.toml", "train = ", "a.toml is not valid TOML: "),
        ("a.yaml", b"\xff\xfe\xff", "a.yaml is not text in UTF-8 "),
        ("a.yaml", "1: 2", "1"),
        ("a.yaml", "train:\n  1: 2", "line 2, column 3"),
    ],
)
def test_a_broken_settings_file_is_one_line(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in refusal(file=file)


def test_a_settings_file_that_is_not_there_is_one_line(tmp_path):
    assert "cannot be read" in refusal(file=tmp_path / "none.yaml")
    assert "cannot be read" in refusal(file=tmp_path)


def test_numbers_may_be_written_as_in_python():
    assert resolve("demo", sets=["train.learning_rate=1e-6"]).train.learning_rate == 1e-6


def test_environment_variables_have_defaults(monkeypatch):
    monkeypatch.delenv("SPIN_DATA", raising=False)
    assert resolve("tinystories").model.path == "data/models/babyllama-105"
    monkeypatch.setenv("SPIN_DATA", "/data")
    assert resolve("tinystories").model.path == "/data/models/babyllama-105"
