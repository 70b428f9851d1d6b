"""Starting and continuing a lineage: which settings may change."""

import pytest

from spin_core.config import base
from spin_core.config.push import PushConfig
from spin_core.config.resolve import resolve
from spin_core.errors import StaleArtifact
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.store import identity, lock
from spin_core.store.files import json_values
from tests.support.lineages.small_lineage import build_lineage, demo_config


def start(runs, name="tale", *, sets=()) -> Lineage:
    with lock.locked(runs / name):
        return start_lineage(runs, name, demo_config(*sets))


def test_another_configuration_is_rejected_with_the_field_and_both_values(tmp_path):
    start(tmp_path, sets=["train.beta=0.1"])
    with pytest.raises(StaleArtifact) as caught:
        start(tmp_path, sets=["train.beta=0.2"])
    reason = "lineage tale was started with train.beta = 0.1, not 0.2"
    assert str(caught.value) == f"{reason}: choose a new name with --lineage, or set the value back"


@pytest.mark.parametrize("change", ["seed=1", "model.dtype=bfloat16", "generate.top_k=5", "prompts.held_out=64"])
def test_changes_of_settings_that_built_results_depend_on_are_rejected(tmp_path, change):
    start(tmp_path)
    with pytest.raises(StaleArtifact, match=change.split("=")[0]):
        start(tmp_path, sets=[change])


def test_iterations_gate_controls_evaluation_and_what_saves_memory_may_change(tmp_path):
    start(tmp_path, sets=["iterations=2"])
    free = ["gate.rule=best", "controls.temperatures=[0.9]", "evaluate.suites=[big-bench]", "evaluate.self_play=false"]
    free += ["train.micro_batch_tokens=512", "train.gradient_checkpointing=true", "sft.train.keep_checkpoints=1"]
    changed = start(tmp_path, sets=["iterations=5", *free])
    assert find_lineage(tmp_path, "tale").config == changed.config
    assert changed.config.iterations == 5


def test_a_schedule_may_change_for_iterations_that_have_not_begun(tmp_path):
    runs = build_lineage(tmp_path, sets=["train.beta=[0.1, 0.2]"]).runs  # two iterations
    start(runs, sets=["train.beta=[0.1, 0.2, 5.0]"])
    start(runs, sets=["train.beta=[0.1, 0.2, 0.3, 0.4]"])
    with pytest.raises(StaleArtifact, match=r"train\.beta = 0\.2, not 0\.5"):
        start(runs, sets=["train.beta=[0.1, 0.5]"])
    with pytest.raises(StaleArtifact, match=r"train\.beta = 0\.2, not 0\.1"):
        start(runs, sets=["train.beta=0.1"])


def test_a_schedule_written_in_another_way_is_the_same(tmp_path):
    start(tmp_path, sets=["train.beta=[0.1]"])
    start(tmp_path, sets=["train.beta=0.1"])


def test_resolving_keeps_everything_that_is_no_schedule():
    config = resolve("zephyr-7b-paper")
    resolved = base.at_iteration(config, 3)
    assert (resolved.train.beta, resolved.train.learning_rate) == (5.0, 1e-7)
    changed = {name for name, _, _ in identity.differences(json_values(config), json_values(resolved))}
    assert changed == {"train.beta", "train.learning_rate", "pairs.mix_previous"}


def test_the_address_of_its_copy_may_be_changed(lineage):
    changed = lineage.config.model_copy(update={"push": PushConfig(url="s3://bucket/x")})
    assert start_lineage(lineage.runs, "tale", changed).config.push.url == "s3://bucket/x"
    with pytest.raises(StaleArtifact):
        start_lineage(lineage.runs, "tale", lineage.config.model_copy(update={"seed": 7}))
