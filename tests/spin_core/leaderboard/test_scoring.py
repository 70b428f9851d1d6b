"""What `spin evaluate` scores: which versions, on which suites, with which settings."""

import pytest

from spin_core.errors import ConfigError
from spin_core.leaderboard.scoring import prepare, versions
from spin_core.lineage.find import find_lineage
from tests.support.lineages.small_lineage import build_lineage

QUICK = "open-llm-leaderboard-quick"


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    """A finished lineage; tests must not change it."""
    return build_lineage(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def model(tmp_path):
    """A folder that could hold a model."""
    folder = tmp_path / "models" / "My_SFT-7b"
    folder.mkdir(parents=True)
    return folder


def test_a_lineage_is_scored_on_the_suites_named_and_on_nothing_else(lineage):
    before = lineage.config.evaluate
    config = prepare(lineage.runs, "tale", [QUICK]).config
    assert (config.evaluate.suites, config.evaluate.self_play, config.evaluate.exact) == ((QUICK,), False, False)
    assert config.model_copy(update={"evaluate": before}) == lineage.config
    assert find_lineage(lineage.runs, "tale").config.evaluate == before


def test_without_a_suite_a_lineage_is_scored_as_its_configuration_says(lineage):
    assert prepare(lineage.runs, "tale").config == lineage.config


def test_self_play_is_a_suite_to_name_and_single_tasks_are_a_setting(lineage):
    changes = [{"evaluate": {"lm_eval": {"tasks": ["arc_easy"]}}}, {"evaluate": {"lm_eval": {"limit": 7}}}]
    evaluate = prepare(lineage.runs, "tale", ["self-play"], changes).config.evaluate
    assert (evaluate.self_play, evaluate.suites, evaluate.lm_eval.tasks, evaluate.lm_eval.limit) == (
        True,
        (),
        ("arc_easy",),
        7,
    )


@pytest.mark.parametrize(
    ("names", "changes", "more", "message"),
    [
        (["beauty"], [], {}, r"evaluate\.suites cannot be 'beauty'"),
        ([QUICK], [{"train": {"beta": 1.0}}], {}, "cannot change train of lineage tale: set only evaluate and gen"),
        ([QUICK], [], {"recipe": "demo"}, "tale is a lineage, which has its recipe and its name: leave out --recipe"),
        ([], [{"evaluate": {"self_play": False, "exact": False}}], {}, "no suite is named: name one"),
        (["big-bench"], [{"evaluate": {"lm_eval": {"tasks": ["openbookqa"]}}}], {}, "both score openbookqa, in diff"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_scored_is_a_one_line_error(lineage, names, changes, more, message):
    with pytest.raises(ConfigError, match=message) as refused:
        prepare(lineage.runs, "tale", names, changes, **more)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_no_lineage_and_no_folder_is_rejected(lineage):
    with pytest.raises(ConfigError, match=r"tail is neither a lineage in .* \(there: tale\) nor a model's folder"):
        prepare(lineage.runs, "tail", [QUICK])


def test_versions_are_all_or_those_named(lineage):
    assert versions(lineage, ()) == [0, 1, 2]
    assert versions(lineage, (2, 0, 2)) == [0, 2]
    with pytest.raises(ConfigError, match="lineage tale has no θ_3: choose from 0 to 2"):
        versions(lineage, (3,))


def score_something(runs, name):
    """Something of a lineage is published."""
    folder = runs / name / "base" / "model"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()


def test_a_model_becomes_a_lineage_that_without_iterations(tmp_path, model):
    lineage = prepare(tmp_path, str(model), [QUICK])
    assert (lineage.name, versions(lineage, ())) == ("my-sft-7b", [0])
    assert lineage.config.model.path == str(model)
    assert not lineage.config.evaluate.self_play
    assert lineage.config.evaluate.main_metric == QUICK
    score_something(tmp_path, "my-sft-7b")
    again = prepare(tmp_path, str(model), ["bbh-quick"])
    assert again.config.evaluate.suites == ("bbh-quick",)
    assert prepare(tmp_path, "my-sft-7b", [QUICK]).config.evaluate.suites == (QUICK,)


def test_a_suite_that_would_give_a_score_of_the_leaderboard_another_value_is_rejected(tmp_path, model):
    prepare(tmp_path, str(model), ["bbh-quick"], [{"evaluate": {"lm_eval": {"tasks": ["hellaswag"]}}}])
    score_something(tmp_path, "my-sft-7b")
    with pytest.raises(ConfigError, match="lm-eval and open-llm-leaderboard both score hellaswag, in different ways"):
        prepare(tmp_path, str(model), ["open-llm-leaderboard"])
    for suite in (QUICK, "bbh", "big-bench-quick"):
        assert prepare(tmp_path, str(model), [suite]).config.evaluate.suites == (suite,)


def test_a_first_try_that_failed_may_be_repeated_with_other_settings(tmp_path, model):
    prepare(tmp_path, str(model), [QUICK], [{"chat": {"template": "plain"}}])
    assert prepare(tmp_path, str(model), [QUICK], [{"chat": {"template": "format"}}]).config.chat.template == "format"
    score_something(tmp_path, "my-sft-7b")
    with pytest.raises(ConfigError, match="scoring cannot change chat"):
        prepare(tmp_path, str(model), [QUICK], [{"chat": {"template": "plain"}}])


def test_a_model_under_a_recipe_is_scored_on_the_recipes_prompts(tmp_path, model):
    lineage = prepare(tmp_path, str(model), ["self-play"], recipe="tinystories", name="mine")
    assert (lineage.name, lineage.config.recipe, lineage.config.model.path) == ("mine", "tinystories", str(model))
    assert lineage.config.evaluate.self_play
    assert lineage.config.evaluate.lm_eval.tasks == ()


def test_a_name_that_another_model_has_is_rejected_once_that_is_published(tmp_path, model):
    lineage = prepare(tmp_path, str(model), [QUICK], name="mine")
    other = tmp_path / "other"
    other.mkdir()
    assert prepare(tmp_path, str(other), [QUICK], name="mine").config.model.path == str(other)
    prepare(tmp_path, str(model), [QUICK], name="mine")
    published = lineage.root / "base" / "model" / "manifest.json"
    published.parent.mkdir(parents=True)
    published.write_text("{}")
    with pytest.raises(ConfigError, match="the name mine is taken by another model: choose another with --lineage"):
        prepare(tmp_path, str(other), [QUICK], name="mine")
