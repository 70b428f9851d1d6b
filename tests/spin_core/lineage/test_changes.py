"""Other settings for an existing lineage, and one more iteration."""

import pytest

from spin_core.errors import ConfigError
from spin_core.lineage.changes import one_more_iteration, with_settings


def test_one_more_iteration_is_one_after_the_head_and_leaves_the_controls(built):
    config = one_more_iteration(built)
    assert config.iterations == len(built.records()) + 1
    assert not config.controls.sft_continued
    assert not config.controls.temperatures


def test_settings_are_laid_over_a_lineages_own(built):
    assert with_settings(built, []) is built
    changes = [{"evaluate": {"suites": ["big-bench"]}}, {"evaluate": {"temperature": 0.9}}]
    config = one_more_iteration(with_settings(built, changes))
    assert (config.evaluate.suites, config.evaluate.temperature) == (("big-bench",), 0.9)
    assert config.model_copy(update={"evaluate": built.config.evaluate}) == one_more_iteration(built)
    with pytest.raises(ConfigError, match=r"evaluate\.temprature is not a setting"):
        with_settings(built, [{"evaluate": {"temprature": 1}}])


def test_a_lineage_that_its_gate_ended_is_not_continued_by_default(lineage):
    record = lineage.records()[-1]
    gate = record.gate.model_copy(update={"outcome": "stop", "reason": "stopped: it fell"})
    lineage.save_record(record.model_copy(update={"gate": gate}))
    with pytest.raises(ConfigError, match=r"stopped: it fell.*--set gate.rule=best"):
        one_more_iteration(lineage)
    assert one_more_iteration(with_settings(lineage, [{"gate": {"rule": "best"}}])).iterations == 3
