"""The jobs of controls, and of objectives that read more than two responses."""

import dataclasses
from functools import partial

import pytest

from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError
from spin_core.lineage import control_jobs, controls, phase_jobs, suite_jobs
from spin_core.lineage.controls import Control
from spin_core.lineage.lineage import Lineage
from spin_core.store import identity
from tests.support.lineages.small_lineage import build_lineage


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_lineage(tmp_path_factory.mktemp("controls"))


def under(built: Lineage, *sets: str) -> Lineage:
    """The same lineage with other settings."""
    return dataclasses.replace(built, config=resolve("demo", sets=sets))


def pairs_and_scores(lineage: Lineage):
    """The jobs of three iterations."""
    record = lineage.records()[0]
    jobs = []
    for t in range(3):
        pairs = phase_jobs.pairs_job(lineage, t, record.prompts, record.generations, None, record.generations)
        jobs.append((pairs, phase_jobs.score_job(lineage, t, record.player, record.pairs, record.opponent)))
    return record, jobs


def test_t_spin_brings_the_initial_policys_answers_to_all_iterations_but_the_first(built):
    record, jobs = pairs_and_scores(under(built, "train.loss=t-spin", "train.t_spin_weight=[0.1, 0.1, 0.0]"))
    assert [pairs.initial for pairs, _ in jobs] == [None, record.generations, None]
    assert [scores.base for _, scores in jobs] == [None] * 3


def test_an_anchored_reference_scores_the_initial_policy_in_all_iterations_but_the_first(built):
    record, jobs = pairs_and_scores(under(built, "train.anchor=0.3"))
    assert [scores.base for _, scores in jobs] == [None, record.opponent, record.opponent]
    assert [pairs.initial for pairs, _ in jobs] == [None] * 3


def test_other_objectives_have_the_same_jobs_as_before(built):
    _, jobs = pairs_and_scores(under(built))
    for job in (job for both in jobs for job in both):
        now = identity.identity_of(job)
        before = {name: value for name, value in now.items() if name not in ("initial", "base")}
        assert identity.differences(before, now) == []


@pytest.mark.parametrize("loss", ["t-spin", "space"])
def test_an_anchor_is_rejected_where_there_is_no_margin_to_cancel_its_constant(loss):
    with pytest.raises(ConfigError, match=rf"train\.anchor needs a loss of margins, and {loss} is not one"):
        resolve("demo", sets=["train.anchor=0.3", f"train.loss={loss}"])


@pytest.mark.parametrize("setting", ["nll_weight=0.5", "anchor=[0.0, 0.3]", "loss=logistic"])
def test_settings_of_spin_are_rejected_for_the_training_of_the_first_model(setting):
    with pytest.raises(ConfigError, match=rf"sft\.train\.{setting.split('=')[0]} .*: leave it out"):
        resolve("demo", sets=[f"sft.train.{setting}"])


def test_an_anchor_without_cached_scores_is_rejected():
    sets = ("train.anchor=[0.0, 0.3]", "train.speed.cached_scores=false")
    with pytest.raises(ConfigError, match=r"train\.anchor is read from scores: set train\.speed\.cached_scores"):
        resolve("demo", sets=[*sets, "iterations=2"])
    resolve("demo", sets=[*sets, "iterations=1"])


PREFERENCES = "controls.dpo.source.path=p.jsonl"


def planned(lineage: Lineage) -> dict[str, Control]:
    return {control.name: control for control in controls.plan(lineage, lineage.records())}


def job_of(lineage: Lineage, control: Control):
    """The training of a control of a finished lineage."""
    record = lineage.records()[0]
    return control_jobs.train_job(lineage, control, record.opponent, record.prompts, record.pairs, record.scores)


def test_dpo_is_the_logistic_loss_with_its_own_settings_and_the_players_optimizer(built):
    settings = ("train.loss=hinge", "train.nll_weight=0.2", "train.anchor=0.5", "train.learning_rate=[0.02, 0.01]")
    dpo = ("controls={}", PREFERENCES, "controls.dpo.beta=0.3", "controls.dpo.epochs=3")
    lineage, record = under(built, *settings, *dpo), built.records()[0]
    ((name, control),) = planned(lineage).items()
    preferences = control_jobs.preferences_job(lineage, control, record.opponent, record.prompts)
    scores = control_jobs.score_job(lineage, control, record.opponent, record.pairs)
    train = job_of(lineage, control)
    config = train.config
    assert (config.loss, config.beta, config.learning_rate, config.epochs) == ("logistic", 0.3, 0.02, 3)
    assert (config.nll_weight, config.anchor, config.optimizer) == (0.0, 0.0, lineage.config.train.optimizer)
    assert (train.start, scores.opponent, scores.base) == (record.opponent, record.opponent, None)
    assert (train.pairs, train.prompts, train.steps) == (record.pairs, None, None)
    assert (preferences.max_new_tokens, preferences.prompts) == (lineage.config.generate.max_new_tokens, record.prompts)
    assert name == "dpo-beta-0.3-lr-0.02-epochs-3"
    folder = built.root / "controls" / name
    assert [job.output for job in (preferences, scores, train)] == [folder / n for n in ("pairs", "scores", "train")]
    assert (
        controls._dpo_rate(lineage.config, lineage.config.controls.dpo.model_copy(update={"learning_rate": 1e-4}))
        == 1e-4
    )


def test_dpo_can_have_spins_number_of_steps_and_follow_it(built):
    dpo = ("controls={}", PREFERENCES, "controls.dpo.equal_steps=true", "controls.dpo_after=true")
    lineage = under(built, *dpo)
    own, after = planned(lineage).values()
    assert (own.name, job_of(lineage, own).steps) == ("dpo-beta-0.1-lr-0.001-steps-4", 4)
    assert (after.name, after.after) == ("spin-2-dpo-beta-0.1-lr-0.001-epochs-1", 2)
    train = job_of(lineage, after)
    assert (train.t, train.steps, train.config.epochs) == (2, None, 1)


def test_dpo_after_spin_needs_preference_data():
    with pytest.raises(
        ConfigError, match=r"controls\.dpo_after needs preference data: set controls\.dpo\.source\.path"
    ):
        resolve("demo", sets=["controls.dpo_after=true"])


def test_fine_tuning_runs_at_the_players_own_rate_unless_configured(built):
    def rates(*sets):
        lineage = under(built, "controls.temperatures=[]", *sets)
        return [
            (job.config.loss, job.config.learning_rate, job.steps)
            for job in map(partial(job_of, lineage), plan(lineage))
        ]

    def plan(lineage):
        return controls.plan(lineage, lineage.records())

    own = ("controls.sft_learning_rate=[]", "train.learning_rate=[0.2, 0.1]")
    assert rates(*own) == [("sft", 0.2, 4)]
    assert rates("controls.sft_learning_rate=[0.1, 0.3]") == [("sft", 0.1, 4), ("sft", 0.3, 4)]
    assert rates("controls.sft_continued=false") == []


def test_training_longer_and_on_less_takes_the_pairs_of_iteration_0(built):
    sets = ("controls={}", "controls.longer=[2, 5]", "controls.shares=[0.25]", "train.epochs=[3, 1]")
    lineage, record = under(built, *sets), built.records()[0]
    by_name = planned(lineage)
    assert list(by_name) == [
        "epochs-6",
        "epochs-15",
        "share-0.25",
        "sft-lr-0.001-share-0.25",
        "sft-lr-0.001-share-1",
    ]
    longer, longest, small, sft, whole = (job_of(lineage, control) for control in by_name.values())
    assert [job.config.epochs for job in (longer, longest, small, sft, whole)] == [6, 15, 3, 3, 3]
    assert [job.share for job in (longer, longest, small, sft, whole)] == [None, None, 0.25, 0.25, None]
    own = phase_jobs.train_job(lineage, 0, record.opponent, record.pairs, record.scores).model_dump()
    changed = {key for key, value in longer.model_dump().items() if value != own[key]}
    assert changed == {"output", "weights", "config"}
    assert (sft.prompts, sft.config.loss) == (record.prompts, "sft")


def test_another_seed_from_the_same_start_changes_only_answers_and_trainings(built):
    sets = ("seed=5", "evaluate.frontier=[]", "controls={}", "controls.sft_continued=true")
    same, other = under(built, *sets), under(built, *sets, "play_seed=7")
    record = built.records()[0]

    def jobs(lineage: Lineage):
        (control,) = planned(lineage).values()
        return [
            phase_jobs.base_job(lineage),
            phase_jobs.prompts_job(lineage, record.opponent),
            phase_jobs.sft_job(lineage, record.opponent, record.prompts),
            *suite_jobs.evaluate_jobs(lineage, record.player, record.prompts, None),
            phase_jobs.generate_job(lineage, 1, record.opponent, record.prompts),
            phase_jobs.train_job(lineage, 1, record.player, record.pairs, record.scores),
            job_of(lineage, control),
        ]

    seeds = [(job.seed, other_job.seed) for job, other_job in zip(jobs(same), jobs(other), strict=True)]
    assert seeds == [*[(5, 5)] * 4, (5, 12), (6, 13), (5, 12)]
    assert {job.held_out_seed for job in jobs(other)[-2:]} == {5}
