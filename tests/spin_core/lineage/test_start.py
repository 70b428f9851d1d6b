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


def publish_nothing_in(lineage: Lineage, folder: str) -> None:
    """Make a folder count as published."""
    path = lineage.root / folder / identity.MANIFEST
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def test_another_configuration_is_rejected_with_the_field_and_both_values(tmp_path):
    runs = build_lineage(tmp_path, sets=["train.beta=0.1"]).runs
    with pytest.raises(StaleArtifact) as caught:
        start(runs, sets=["train.beta=0.2"])
    reason = "lineage tale was started with train.beta = 0.1, not 0.2"
    assert str(caught.value) == f"{reason}: leave that setting as it was, or choose a new lineage name"


def test_another_recipe_is_rejected_by_its_name_and_not_by_what_differs_in_it(lineage):
    with pytest.raises(StaleArtifact) as caught:
        start_lineage(lineage.runs, "tale", resolve("smollm2-135m"))
    reason = "lineage tale was made from the recipe demo, not smollm2-135m"
    assert str(caught.value) == f"{reason}: continue it with spin next tale, or choose a new name with --lineage"


@pytest.mark.parametrize("change", ["seed=1", "model.dtype=bfloat16", "generate.top_k=5", "prompts.held_out=64"])
def test_changes_of_settings_that_built_results_depend_on_are_rejected(lineage, change):
    before = (lineage.root / "lineage.json").read_bytes()
    with pytest.raises(StaleArtifact, match=change.split("=")[0]):
        start(lineage.runs, sets=[change])
    assert (lineage.root / "lineage.json").read_bytes() == before


def test_a_lineage_that_has_published_nothing_takes_all_settings_and_says_so(tmp_path):
    start(tmp_path)
    warnings: list[str] = []
    other = resolve("smollm2-135m", sets=["model.path=mine"])
    assert start_lineage(tmp_path, "tale", other, warn=warnings.append) == find_lineage(tmp_path, "tale")
    (warning,) = warnings
    assert warning.startswith("lineage tale takes new settings, because nothing that is published depends on them: ")
    assert "\n" not in warning
    start_lineage(tmp_path, "tale", other, warn=pytest.fail)


@pytest.mark.parametrize(
    ("folder", "changes"),
    {
        "iter_00/prompts": ["sft.train.epochs=9", "generate.top_k=5", "pairs.drop_cut=true", "train.beta=0.7"],
        "iter_00/generations": ["pairs.drop_cut=true", "train.beta=0.7"],
        "iter_00/pairs": ["train.beta=0.7"],
    }.items(),
)
def test_settings_are_free_until_the_first_phase_that_depends_on_them_is_published(tmp_path, folder, changes):
    publish_nothing_in(start(tmp_path), folder)
    start(tmp_path, sets=changes)


@pytest.mark.parametrize(
    ("folder", "change"),
    [
        ("base/model", "model.dtype=bfloat16"),
        ("iter_00/prompts", "seed=1"),
        ("iter_00/prompts", "prompts.held_out=64"),
        ("iter_00/prompts", "generate.max_new_tokens=64"),
        ("base/eval/self-play", "sft.train.epochs=9"),
        ("iter_00/generations", "generate.top_k=5"),
        ("iter_00/generations", "play_seed=2"),
        ("iter_00/pairs", "pairs.drop_cut=true"),
        ("iter_00/train", "train.beta=0.7"),
    ],
)
def test_settings_are_kept_once_a_phase_that_depends_on_them_is_published(tmp_path, folder, change):
    publish_nothing_in(start(tmp_path), folder)
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
