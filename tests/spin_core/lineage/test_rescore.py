"""Settings of evaluation change during a lineage: earlier scores are kept, and all versions are scored again."""

import shutil

import pytest

from spin_core.errors import StaleArtifact
from spin_core.lineage import history, rescore, suite_jobs
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.lineage.verify import verify
from spin_core.store import artifacts, lock
from spin_core.store.identity import identity_of
from spin_core.store.records import EvalReport, IterationArtifacts
from tests.support.lineages.small_lineage import build_lineage, demo_config, publish

HOTTER = "evaluate.temperature=0.9"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A finished lineage of two iterations; tests must not change it."""
    return build_lineage(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def lineage(built, tmp_path):
    """A copy of it, whose reports were made by the jobs that the lineage writes."""
    shutil.copytree(built.runs, tmp_path / "runs")
    lineage = find_lineage(tmp_path / "runs", built.name)
    for t in range(3):
        shutil.rmtree(lineage.eval_folder(t) / "self-play")
    score_all(lineage, 0.0)
    return lineage


def score_all(lineage: Lineage, value: float) -> list[str]:
    """Score all versions as `tasks.evaluate` does, with a made-up value. Returns the message about each."""
    notes, opponent = [], None
    for t, player in enumerate([lineage.records()[0].opponent, *(record.player for record in lineage.records())]):
        (job,) = suite_jobs.evaluate_jobs(lineage, player, lineage.records()[0].prompts, opponent)
        notes.append(rescore.prepare_folder(job))
        opponent = artifacts.reusable(job.output, identity_of(job), EvalReport) or publish(
            job.output,
            job,
            {"made.txt": f"{t} {value}".encode()},
            {"model": player.digest, "suite": "self-play", "harness": "by hand", "scores": {}},
            EvalReport,
        )
    return notes


def digests(lineage: Lineage) -> list[str]:
    return [report.digest for t in range(3) for report in lineage.reports(t)]


def again(lineage: Lineage, *sets: str) -> Lineage:
    with lock.locked(lineage.root):
        return start_lineage(lineage.runs, lineage.name, demo_config(*sets))


def test_a_changed_setting_scores_all_versions_again_and_keeps_earlier_scores(lineage):
    before = digests(lineage)
    hotter = again(lineage, HOTTER)
    notes = score_all(hotter, 0.9)
    assert notes[0].startswith("base · self-play is scored again: config.temperature = 0.5, not 0.9")
    assert "config.temperature" in notes[2]
    assert not set(before) & set(digests(hotter))
    kept = sorted((lineage.eval_folder(1) / rescore.EARLIER).iterdir())
    assert [artifacts.read_record(folder, EvalReport).digest for folder in kept] == [before[1]]
    assert score_all(hotter, 0.1) == ["", "", ""]


def test_earlier_scores_are_restored_with_their_settings(lineage):
    before = digests(lineage)
    score_all(again(lineage, HOTTER), 0.9)
    changed = digests(lineage)
    notes = score_all(again(lineage), 7.0)
    assert [note.partition(": ")[0].partition(" is ")[2] for note in notes] == ["restored as it was scored before"] * 3
    assert digests(lineage) == before
    score_all(again(lineage, HOTTER), 7.0)
    assert digests(lineage) == changed


def test_a_kill_between_moving_earlier_scores_and_scoring_loses_nothing(lineage):
    before = digests(lineage)
    (job,) = suite_jobs.evaluate_jobs(
        again(lineage, HOTTER), lineage.records()[0].opponent, lineage.records()[0].prompts, None
    )
    rescore.prepare_folder(job)
    assert not lineage.reports(0)
    assert rescore.prepare_folder(job) == ""
    score_all(again(lineage), 7.0)
    assert digests(lineage) == before


def test_a_report_on_another_model_is_never_moved(lineage):
    stranger = lineage.records()[0].player
    (job,) = suite_jobs.evaluate_jobs(lineage, stranger.model_copy(update={"t": 0}), lineage.records()[0].prompts, None)
    assert rescore.prepare_folder(job) == ""
    with pytest.raises(StaleArtifact, match="was built with player"):
        artifacts.reusable(job.output, identity_of(job), EvalReport)


def test_scoring_with_other_settings_is_rejected_if_versions_would_be_incomparable(lineage):
    (job,) = suite_jobs.evaluate_jobs(
        again(lineage, HOTTER), lineage.records()[0].opponent, lineage.records()[0].prompts, None
    )
    with pytest.raises(StaleArtifact, match=r"config.temperature = 0.5, not 0.9.*spin next tale.*score all versions"):
        rescore.check([job], lineage.name)
    assert lineage.reports(0)


def test_controls_that_were_scored_with_other_settings_leave_the_table_until_scored_again(lineage):
    for name in ("sft", "dpo"):
        shutil.copytree(lineage.eval_folder(0) / "self-play", lineage.control(name) / "eval" / "self-play")
    rescore.set_aside_incomparable(lineage, lineage.reports(0))
    assert (lineage.control("sft") / "eval" / "self-play").exists()
    hotter = again(lineage, HOTTER)
    score_all(hotter, 0.9)
    rescore.set_aside_incomparable(hotter, hotter.reports(0))
    assert not (lineage.control("sft") / "eval" / "self-play").exists()
    assert len(list((lineage.control("dpo") / "eval" / rescore.EARLIER).iterdir())) == 1


def test_the_record_has_the_new_scores_and_the_same_versions(lineage):
    def recorded(lineage: Lineage):
        previous = lineage.record(0)
        parts = {name: getattr(previous, name) for name in ("prompts", "opponent", "generations", "pairs", "scores")}
        made = IterationArtifacts(
            **parts,
            train=previous.train,
            player=previous.player,
            evaluations=tuple(lineage.reports(1)),
            gate=previous.gate,
        )
        return history.record_iteration(lineage, 0, made)

    first = recorded(lineage)
    hotter = again(lineage, HOTTER, "iterations=5")
    score_all(hotter, 0.9)
    second = recorded(hotter)
    assert first.scored_with["self-play"]["config"]["temperature"] == 0.5
    assert second.scored_with["self-play"]["config"]["temperature"] == second.config.evaluate.temperature == 0.9
    assert second.environment == first.environment
    assert second.config.model_copy(update={"evaluate": first.config.evaluate}) == first.config
    recorded(hotter)
    assert [problem for problem in verify(hotter)[0] if "iteration 0" in problem] == []


def test_a_decision_that_later_iterations_depend_on_is_kept_under_any_settings(lineage):
    assert history.decision_before(lineage, 0) == lineage.record(0).gate
    assert history.decision_before(lineage, 1) is None, "the head's decision hangs on today's settings"
    assert history.decision_before(lineage, 2) is None
