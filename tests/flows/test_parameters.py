"""The run form: every setting is in it, bounded and explained, and what is left empty changes nothing."""

import re
from pathlib import Path
from typing import get_args

import pytest
from jsonschema import Draft202012Validator
from prefect.utilities.schema_tools.validation import build_error_obj, validate
from pydantic import BaseModel, ValidationError

from flows.nightly import nightly
from flows.parameters import AS_THE_LINEAGE, Overrides, is_section
from flows.permissions import permitted_values, runs_folder
from flows.spin import spin
from spin_core.config.recipes import RECIPES
from spin_core.config.resolve import resolve
from spin_core.config.run import RunConfig

SCHEMA = Overrides.model_json_schema()


def settings(model: type[BaseModel], *above: str):
    """Path and field of every setting of the configuration, sections included."""
    for name, field in model.model_fields.items():
        yield (*above, name), field
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, *above, name)


SETTINGS = [(path, field) for path, field in settings(RunConfig) if path[0] not in ("recipe", "iterations")]


NOT_IN_A_RECIPE = {
    *(("controls", "dpo"), ("train", "lora"), ("prompts", "held_out_source")),
    *(("prompts", "sources"), ("chat", "template_kwargs")),
}
"""What no recipe has."""


def is_a_section(field) -> bool:
    return any(is_section(kind) for kind in (field.annotation, *get_args(field.annotation)))


def properties(schema: dict) -> dict:
    """The properties of an object in the schema, or of the one object among its choices."""
    for choice in schema.get("anyOf", [schema]):
        if "$ref" in choice:
            return SCHEMA["$defs"][choice["$ref"].rpartition("/")[2]]["properties"]
    return schema["properties"]


def schema_of(path: tuple[str, ...]) -> dict:
    """The schema of one setting."""
    schema = SCHEMA
    for name in path:
        schema = properties(schema)[name]
    return schema


@pytest.mark.parametrize(("path", "field"), SETTINGS, ids=[".".join(path) for path, _ in SETTINGS])
def test_every_setting_is_in_the_form_with_its_help(path, field):
    about = schema_of(path)
    assert field.description
    assert about["description"].startswith(re.split("[Ee]mpty", field.description)[0])
    assert is_a_section(field) or "\n\nIn the recipes: " in about["description"] or path[:2] in NOT_IN_A_RECIPE
    assert about["title"] == path[-1].replace("_", " ")


def test_recipe_and_iterations_are_parameters_of_their_own():
    assert not {"recipe", "iterations"} & set(SCHEMA["properties"])
    parameters = spin.parameters.model_dump()["properties"]
    assert list(parameters) == ["lineage", "iterations", "recipe", "overrides", "runs"]
    assert parameters["recipe"]["enum"] == [AS_THE_LINEAGE, *RECIPES]
    assert all(about["description"] for about in parameters.values())
    assert [about["position"] for about in parameters.values()] == [0, 1, 2, 3, 4]


def test_a_schedule_of_before_may_have_null_as_its_iterations():
    assert spin.validate_parameters({"lineage": "mine", "iterations": None})["iterations"] is None


def test_settings_have_the_order_of_the_configuration():
    # A model in a mapping is not a section: it is given as a whole.
    sections = [about for name, about in SCHEMA["$defs"].items() if name.endswith("Overrides")]
    for about in (SCHEMA, *sections):
        positions = [field["position"] for field in about["properties"].values()]
        assert positions == sorted(positions)
    assert list(properties(schema_of(("train",)))) == list(RunConfig.model_fields["train"].annotation.model_fields)


def test_sections_are_closed_and_settings_empty():
    for path, field in SETTINGS:
        about = schema_of(path)
        assert "default" not in about, path
        if is_a_section(field):
            first, second = about["anyOf"]
            assert first == {"type": "object", "title": "leave as it is", "properties": {}, "maxProperties": 0}
            assert list(second) == ["$ref"]


@pytest.mark.parametrize(
    ("values", "place", "message"),
    [
        ({"train": {"lora": {"rank": 0}}}, ["train", "lora", "rank"], "0 is less than the minimum of 1"),
        ({"generate": {"top_p": 1.5}}, ["generate", "top_p"], "1.5 is greater than the maximum of 1"),
        ({"train": {"beta": "much"}}, ["train", "beta"], "'much' is not valid"),
        ({"train": {"no_such": 1}}, ["train"], "('no_such' was unexpected)"),
        ({"gate": {"rule": "open"}}, ["gate", "rule"], "'open' is not one of"),
    ],
)
def test_prefects_server_names_the_setting_that_is_wrong(values, place, message):
    schema = spin.parameters.model_dump()
    answer = build_error_obj(validate({"overrides": values}, schema))
    for name in ("overrides", *place):
        ((answer),) = answer["errors"]
        assert answer["property"] == name
    (text,) = answer["errors"]
    assert message in text


def test_a_field_of_the_form_knows_the_least_value():
    assert schema_of(("train", "lora", "rank"))["minimum"] == 1
    assert schema_of(("train", "beta"))["anyOf"][0]["minimum"] == 0


def test_a_list_can_be_emptied():
    filled, empty = schema_of(("controls", "temperatures"))["anyOf"]
    assert (filled["title"], filled["items"]["type"]) == ("list", "number")
    assert empty == {"type": "array", "const": [], "maxItems": 0, "title": "empty"}
    assert [choice.get("title") for choice in schema_of(("train", "beta"))["anyOf"]] == ["number", "list"], (
        "never empty"
    )


def test_yes_or_no_is_a_choice_that_can_be_left_unset():
    assert schema_of(("pairs", "drop_cut"))["enum"] == [True, False]
    assert schema_of(("pairs", "mix_previous"))["anyOf"][0]["enum"] == [True, False]


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_filled_in_changes_nothing(recipe):
    empty = dict.fromkeys(Overrides.model_fields) | {"train": {}, "prompts": {"source": None}}
    for overrides in (Overrides(), Overrides(**empty)):
        assert permitted_values(overrides) == {}
        assert resolve(recipe, overrides=permitted_values(overrides)) == resolve(recipe)


def test_values_of_the_form_override_the_recipe():
    values = {
        "seed": 3,
        "train": {"beta": [0.1, 0.2], "epochs": 4},
        "pairs": {"drop_cut": False, "mix_previous": True},
        "prompts": {"source": {"split": "test"}, "columns": {"question": "prompt"}},
        "controls": {"temperatures": []},
    }
    config = resolve("demo", overrides=permitted_values(Overrides(**values)), iterations=5)
    sets = [
        "seed=3",
        "train={beta: [0.1, 0.2], epochs: 4}",
        "pairs={drop_cut: false, mix_previous: true}",
        "prompts={source: {split: test}, columns: {question: prompt}}",
        "controls.temperatures=[]",
    ]
    assert config == resolve("demo", sets=sets, iterations=5)
    assert config.train.beta == (0.1, 0.2)
    assert config.prompts.source.split == "test"
    assert config.prompts.sample == RECIPES["demo"]["prompts"]["sample"]


def test_only_settings_that_may_be_null_are_set_to_null():
    overrides = Overrides(prompts={"sample": None, "held_out": None}, evaluate={"lm_eval": {"limit": None}})
    assert permitted_values(overrides) == {"prompts": {"sample": None}, "evaluate": {"lm_eval": {"limit": None}}}
    assert resolve("demo", overrides=permitted_values(overrides)).prompts.sample is None


def test_parameters_survive_the_way_through_the_api():
    overrides = Overrides(train={"beta": [0.1, 0.2]}, evaluate={"lm_eval": {"local_data": "rows"}})
    sent = overrides.model_dump(mode="json")
    assert sent == {"train": {"beta": [0.1, 0.2]}, "evaluate": {"lm_eval": {"local_data": "rows"}}}
    again = Overrides.model_validate(sent)
    assert permitted_values(again) == permitted_values(overrides)
    assert permitted_values(again)["evaluate"]["lm_eval"]["local_data"] == Path("rows")


BAD = [
    {"train": {"beta": -1}},
    {"train": {"beta": []}},
    {"train": {"beta": "much"}},
    {"train": {"optimizer": "lion"}},
    {"train": {"no_such": 1}},
    {"no_such": {}},
    {"evaluate": {"lm_eval": {"limit": 0}}},
    {"pairs": {"drop_cut": "perhaps"}},
    {"generate": {"top_p": 1.5}},
]


@pytest.mark.parametrize("values", BAD, ids=str)
def test_an_invalid_value_is_rejected_by_the_schema_and_by_the_model(values):
    assert not Draft202012Validator(SCHEMA).is_valid(values)
    with pytest.raises(ValidationError):
        Overrides.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [{"evaluate": {"judge": {"base_url": "http://me:hush@host/v1"}}}, {"push": {"url": "s3://key:hush@bucket/x"}}],
    ids=str,
)
def test_a_secret_in_a_url_is_rejected_by_the_schema_and_the_model_and_that_does_not_repeat_it(values):
    assert not Draft202012Validator(SCHEMA).is_valid(values)
    with pytest.raises(ValidationError) as refused:
        Overrides.model_validate(values)
    assert "hush" not in str(refused.value)


def test_the_schema_accepts_all_recipes():
    for recipe in RECIPES.values():
        values = {name: value for name, value in recipe.items() if name != "iterations"}
        assert list(Draft202012Validator(SCHEMA).iter_errors(values)) == []


def test_a_nightly_run_has_no_default_lineage_or_recipe():
    parameters = nightly.parameters.model_dump()["properties"]
    assert (parameters["lineage"]["default"], parameters["recipe"]["default"]) == ("", AS_THE_LINEAGE)
    assert parameters["lineage"]["pattern"]


def test_the_runs_folder_is_an_option_or_an_environment_variable(monkeypatch):
    monkeypatch.setenv("SPIN_RUNS", "/somewhere")
    assert runs_folder() == Path("/somewhere")
    assert runs_folder("within") == Path("/somewhere/within")
    monkeypatch.delenv("SPIN_RUNS")
    assert runs_folder("within") == Path.cwd() / "runs" / "within"
    assert runs_folder() == Path.cwd() / "runs"


def test_several_sources_can_be_filled_in():
    filled = Overrides(
        prompts={"sources": {"a": {"path": "a.jsonl", "weight": 2}, "b": {"path": "b.csv", "weight": 1}}}
    )
    config = resolve("demo", overrides=filled.model_dump(mode="json")).prompts
    assert {name: (source.path, source.weight) for name, source in config.sources.items()} == {
        "a": ("a.jsonl", 2),
        "b": ("b.csv", 1),
    }
