"""The jobs that score versions at several temperatures: what they measure, and what their identity depends on."""

import pytest

from spin_core.errors import ConfigError
from spin_core.evaluation import suites
from spin_core.store.records import ModelVersion
from tests.support.lineages.version_scores import identity, jobs_of, settings

SWEPT = "evaluate.frontier=[0.3, 0.5, 0.7]"


def jobs_at(tmp_path, *sets: str):
    """The suites of θ_1, with the demo's distances."""
    player = ModelVersion(path=tmp_path / "model", digest="1" * 64, t=1, parent=None)
    return jobs_of(tmp_path, player, "evaluate.exact=true", SWEPT, *sets)


def test_a_frontier_has_the_temperature_of_use_and_those_configured(tmp_path):
    _, job = jobs_at(tmp_path, "evaluate.frontier=[1.0, 0.6, 0.3, 0.6]", "evaluate.temperature=0.5")
    assert job.output.name == "frontier"
    assert job.config.temperatures == (0.3, 0.5, 0.6, 1.0)
    assert [job.output.name for job in jobs_at(tmp_path, "evaluate.frontier=[]")] == ["self-play"]


def test_a_frontier_changes_the_identity_of_no_other_suite(tmp_path):
    (plain,) = jobs_at(tmp_path, "evaluate.frontier=[]")
    others, *_ = jobs_at(tmp_path, "evaluate.frontier=[0.1, 0.2, 0.3]")
    assert identity(others) == identity(plain)


def test_what_the_frontier_does_not_measure_is_not_in_its_identity(tmp_path):
    _, plain = jobs_at(tmp_path)
    _, other = jobs_at(tmp_path, "generate.max_new_tokens=7", "evaluate.batch_size=3", "seed=4")
    assert identity(plain) == identity(other)


@pytest.mark.parametrize("temperatures", ["[0.5]", "[0.5, 0.7, 0.5]"])
def test_two_temperatures_are_not_a_curve(temperatures):
    with pytest.raises(ConfigError, match=r"evaluate\.frontier has [12] temperatures, which is not a curve: give at"):
        settings(f"evaluate.frontier={temperatures}")


def test_only_the_base_model_shares_its_frontier(tmp_path):
    base = ModelVersion(path=tmp_path / "model", digest="1" * 64, t=0, parent=None)
    assert jobs_of(tmp_path, base, "evaluate.exact=true", SWEPT)[1].speed.scores == tmp_path / ".scores"
    assert jobs_at(tmp_path)[1].speed.scores is None


def text_job(tmp_path, *sets: str):
    """The sweep of θ_1 without the demo's distances."""
    player = ModelVersion(path=tmp_path / "model", digest="1" * 64, t=1, parent=None)
    (job,) = jobs_of(tmp_path, player, SWEPT, *sets)
    return job


def test_a_frontier_of_texts_depends_on_how_the_model_answers_and_on_the_reference(tmp_path):
    plain = text_job(tmp_path)
    assert (plain.generate.temperature, plain.generate.engine, plain.config.reference) == (1.0, "transformers", None)
    axes = ("evaluate.frontier_quality=text_classifier", "evaluate.frontier_diversity=self_bleu")
    same = text_job(
        tmp_path, *axes, "generate.temperature=0.9", "generate.engine=transformers", "evaluate.batch_size=3"
    )
    assert identity(same) == identity(plain)
    changes = ("generate.max_new_tokens=7", "generate.top_p=0.5", "seed=4", f"evaluate.frontier_reference={tmp_path}")
    assert len({identity(text_job(tmp_path, change)) for change in changes} | {identity(plain)}) == 1 + len(changes)


def test_a_schedule_of_sampling_has_its_value_in_the_versions_iteration(tmp_path):
    assert text_job(tmp_path, "generate.temperature=[1.0, 0.5]", "generate.top_p=0.9").generate.top_p == 0.9


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["evaluate.frontier_quality=reference_nll"], "reference_nll needs a model that scores the answers: name its"),
        (["evaluate.frontier_reference=/nowhere"], "evaluate.frontier_reference /nowhere is not a model's folder"),
        (["evaluate.frontier_reference=MODEL", "model.path=MODEL"], "is θ_0 itself, whose likelihood favours its own"),
    ],
)
def test_a_reference_that_cannot_score_is_rejected_in_one_line(tmp_path, sets, message):
    (tmp_path / "config.json").touch()
    config = settings(SWEPT, *(value.replace("MODEL", str(tmp_path)) for value in sets))
    with pytest.raises(ConfigError, match=message) as refused:
        suites.check(config)
    assert "\n" not in str(refused.value)
    suites.check(config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"frontier": ()})}))
