"""The help of settings in the form, with the recipes' values."""

from flows.form_help import form_help, recipe_values


def test_the_value_of_most_recipes_comes_first_and_then_those_of_the_others():
    assert recipe_values(("train", "weight_decay")) == "In the recipes: 0.0"
    assert recipe_values(("train", "batch_size")) == "In the recipes: 64; demo: 256; tinystories: 32"
    assert recipe_values(("sft", "train", "epochs")) != recipe_values(("train", "epochs"))


def test_a_setting_of_a_section_that_no_recipe_has_has_no_values():
    assert recipe_values(("train", "lora", "rank")) == ""
    assert form_help("Its rank.", ("train", "lora", "rank"), is_list=False) == "Its rank."


def test_an_empty_value_is_not_called_an_empty_field():
    text = form_help("The model. Empty: train one.", ("model", "path"), is_list=False)
    assert text.startswith('The model. `""`: train one.\n\nIn the recipes: ')
    rates = form_help("Rates; empty takes the player's.", ("controls", "sft_learning_rate"), is_list=True)
    assert rates.startswith("Rates; `[]` takes the player's.")
