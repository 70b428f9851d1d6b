"""Jobs of objectives that read more than two responses, and of DPO beside the game."""

import dataclasses

import pytest
from small_lineage import build

from spin_core import controls, store
from spin_core.config import DpoConfig, SourceConfig
from spin_core.errors import ConfigError
from spin_core.lineage import Lineage
from spin_core.recipes import resolve


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("controls"))


def under(built: Lineage, *sets: str) -> Lineage:
    """The same lineage, played otherwise."""
    return dataclasses.replace(built, config=resolve("demo", sets=sets))


def pairs_and_scores(game: Lineage):
    """The jobs of three iterations."""
    record = game.records()[0]
    found = []
    for t in range(3):
        pairs = game.pairs_job(t, record.prompts, record.generations, None, record.generations)
        found.append((pairs, game.score_job(t, record.player, record.pairs, record.opponent)))
    return record, found


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
        asked = store.identity_of(job.model_dump(mode="json"))
        before = {name: value for name, value in asked.items() if name not in ("initial", "base")}
        assert store.differences(before, asked) == []


@pytest.mark.parametrize("loss", ["t-spin", "space"])
def test_an_anchor_is_refused_where_there_is_no_margin_to_cancel_its_constant(loss):
    with pytest.raises(ConfigError, match=rf"train\.anchor needs a loss of margins, and {loss} is none"):
        resolve("demo", sets=["train.anchor=0.3", f"train.loss={loss}"])


def test_an_anchor_without_cached_scores_is_refused():
    sets = ("train.anchor=[0.0, 0.3]", "train.speed.cached_scores=false")
    with pytest.raises(ConfigError, match=r"train\.anchor is read from scores: set train\.speed\.cached_scores"):
        resolve("demo", sets=[*sets, "iterations=2"])
    resolve("demo", sets=[*sets, "iterations=1"])


def test_dpo_is_the_logistic_loss_with_its_own_settings_and_the_players_optimizer(built):
    settings = ("train.loss=hinge", "train.nll_weight=0.2", "train.anchor=0.5", "train.learning_rate=[0.02, 0.01]")
    game, record = under(built, *settings), built.records()[0]
    dpo = DpoConfig(source=SourceConfig(path="p.jsonl"), beta=0.3, epochs=3)
    preferences = controls.preferences_job(game, dpo, record.opponent, record.prompts)
    scores = controls.dpo_score_job(game, dpo, record.opponent, record.pairs)
    train = controls.dpo_train_job(game, dpo, record.opponent, record.pairs, record.scores)
    config = train.config
    assert (config.loss, config.beta, config.learning_rate, config.epochs) == ("logistic", 0.3, 0.02, 3)
    assert (config.nll_weight, config.anchor, config.optimizer) == (0.0, 0.0, game.config.train.optimizer)
    assert (train.start, scores.opponent, scores.base) == (record.opponent, record.opponent, None)
    assert (preferences.max_new_tokens, preferences.prompts) == (game.config.generate.max_new_tokens, record.prompts)
    folder = built.root / "controls" / "dpo-beta-0.3-lr-0.02-epochs-3"
    assert [job.output for job in (preferences, scores, train)] == [folder / n for n in ("pairs", "scores", "train")]
    assert controls.learning_rate(game, dpo.model_copy(update={"learning_rate": 1e-4})) == 1e-4
