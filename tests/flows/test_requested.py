"""The form's values: a lineage that exists goes on with its own settings, and a new one needs a recipe."""

import pytest

from flows.parameters import AS_THE_LINEAGE
from flows.requested import requested
from spin_core.config.controls import ControlsConfig
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError, StaleArtifact
from spin_core.lineage.changes import one_more_iteration
from spin_core.lineage.find import find_lineage
from spin_core.lineage.start import start_lineage
from tests.support.lineages.small_lineage import build_lineage

WORSE = [[2.0 + item / 10 + t for item in range(8)] for t in range(2)]
"""`heldout_nll` of two versions, of which the second is worse."""


def test_name_and_iterations_alone_continue_a_lineage_as_spin_next_does(tmp_path):
    lineage = build_lineage(tmp_path, sets=["train.beta=0.7", "iterations=2", "controls.sft_continued=true"])
    assert requested(tmp_path, "tale", AS_THE_LINEAGE, 3, {}) == ("tale", one_more_iteration(lineage))
    assert one_more_iteration(lineage).train.beta == 0.7


def test_without_iterations_a_lineage_is_completed_with_its_controls(tmp_path):
    config = build_lineage(tmp_path, sets=["controls.sft_continued=true"]).config
    assert config.controls != ControlsConfig()
    assert requested(tmp_path, "tale", AS_THE_LINEAGE, None, {}) == ("tale", config)
    assert requested(tmp_path, "tale", "demo", None, {}) == ("tale", config), "its own recipe changes nothing"


def test_an_override_is_laid_over_the_lineages_own_settings(tmp_path):
    build_lineage(tmp_path, sets=["train.beta=0.7"])
    _, config = requested(tmp_path, "tale", AS_THE_LINEAGE, 3, {"gate": {"rule": "best"}})
    assert (config.train.beta, config.gate.rule, config.iterations) == (0.7, "best", 3)
    start_lineage(tmp_path, "tale", config)


def test_an_override_that_contradicts_the_lineage_is_rejected_with_its_fix(tmp_path):
    build_lineage(tmp_path, sets=["train.beta=0.7"])
    name, config = requested(tmp_path, "tale", AS_THE_LINEAGE, 3, {"train": {"beta": 0.2}})
    with pytest.raises(StaleArtifact) as caught:
        start_lineage(tmp_path, name, config)
    reason = "lineage tale was started with train.beta = 0.7, not 0.2"
    assert str(caught.value) == f"{reason}: leave that setting as it was, or choose a new lineage name"


def test_another_recipe_than_the_lineages_is_rejected(tmp_path):
    build_lineage(tmp_path)
    with pytest.raises(ConfigError, match="started with recipe demo, not tinystories: leave recipe as the lineage has"):
        requested(tmp_path, "tale", "tinystories", None, {})


def test_a_lineage_that_does_not_exist_needs_a_recipe(tmp_path):
    build_lineage(tmp_path)
    with pytest.raises(ConfigError) as caught:
        requested(tmp_path, "tael", AS_THE_LINEAGE, 1, {})
    assert str(caught.value) == (
        f"there is no lineage 'tael' (did you mean tale?) in {tmp_path}: correct the name, or choose its recipe too"
    )
    with pytest.raises(ConfigError, match="nothing to run: name a lineage to continue it, or choose a recipe"):
        requested(tmp_path, "", AS_THE_LINEAGE, 1, {})


@pytest.mark.parametrize(("lineage", "name"), [("", "demo"), ("new", "new")])
def test_a_recipe_starts_a_lineage_of_its_own_name_or_of_the_one_given(tmp_path, lineage, name):
    result, config = requested(tmp_path, lineage, "demo", 2, {"train": {"beta": 0.3}})
    assert (result, config.recipe, config.iterations, config.train.beta) == (name, "demo", 2, 0.3)


def test_a_lineage_that_has_published_nothing_takes_the_recipe_of_the_next_attempt(tmp_path):
    (tmp_path / "new").mkdir()
    start_lineage(tmp_path, "new", resolve("demo", sets=["train.beta=0.9"]))
    assert requested(tmp_path, "new", "tinystories", None, {})[1] == resolve("tinystories")
    assert requested(tmp_path, "new", AS_THE_LINEAGE, None, {})[1].train.beta == 0.9


def test_a_lineage_that_its_gate_has_ended_names_the_setting_that_continues_it(tmp_path):
    build_lineage(tmp_path, nlls=WORSE, sets=["gate.rule=stop", "gate.metric=heldout_nll"])
    assert find_lineage(tmp_path, "tale").ended_by_gate()
    with pytest.raises(ConfigError, match=r"the gate ended lineage tale .* set gate\.rule to best in overrides"):
        requested(tmp_path, "tale", AS_THE_LINEAGE, 2, {})
    _, config = requested(tmp_path, "tale", AS_THE_LINEAGE, 2, {"gate": {"rule": "best"}})
    assert config.iterations == 2
