"""Lineages: what may change, what is rejected, where files are, and whether they are whole."""

import json
import shutil

import pytest
from small_lineage import build, settings

from spin_core.config import base
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError, DamagedArtifact, StaleArtifact
from spin_core.lineage import phase_jobs, suite_jobs
from spin_core.lineage.changes import one_more_iteration, with_settings
from spin_core.lineage.find import find_lineage, lineage_names
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.lineage.verify import verify
from spin_core.store import identity, lock
from spin_core.store.files import dump
from spin_core.store.records import EvalReport


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A finished lineage of two iterations; tests must not change it."""
    return build(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def game(built, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(built.runs, tmp_path / "runs")
    return find_lineage(tmp_path / "runs", built.name)


def start(runs, name="tale", *, sets=()) -> Lineage:
    with lock.locked(runs / name):
        return start_lineage(runs, name, settings(*sets))


def test_a_lineage_is_found_as_it_was_started(tmp_path):
    begun = start(tmp_path, sets=["train.beta=0.3"])
    found = find_lineage(tmp_path, "tale")
    assert found.config == begun.config
    assert lineage_names(tmp_path) == ["tale"]


def test_a_lineage_that_is_not_there_is_one_line_naming_those_that_are(tmp_path):
    start(tmp_path, "one")
    start(tmp_path, "two")
    with pytest.raises(ConfigError, match=r"no lineage 'three' in .* \(there: one, two\): start it with spin run"):
        find_lineage(tmp_path, "three")
    with pytest.raises(ConfigError, match="there: none yet"):
        find_lineage(tmp_path / "elsewhere", "three")


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "", ".hidden", "-x", "A", "a b", "a" * 64, "a\n", "ä", "a.b"])
def test_a_name_that_could_leave_the_folder_is_rejected(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a lineage: use lower-case letters, digits and -"):
        find_lineage(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "7b", "my-run-2", "a" * 63])
def test_a_plain_name_is_taken(tmp_path, name):
    assert start(tmp_path, name).root == tmp_path / name


def test_another_configuration_is_rejected_naming_the_field_and_both_values(tmp_path):
    start(tmp_path, sets=["train.beta=0.1"])
    with pytest.raises(StaleArtifact) as caught:
        start(tmp_path, sets=["train.beta=0.2"])
    said = "lineage tale was started with train.beta = 0.1, not 0.2"
    assert str(caught.value) == f"{said}: choose a new name with --lineage, or set the value back"


@pytest.mark.parametrize("change", ["seed=1", "model.dtype=bfloat16", "generate.top_k=5", "prompts.held_out=64"])
def test_whatever_touches_what_is_built_is_rejected(tmp_path, change):
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
    runs = build(tmp_path, sets=["train.beta=[0.1, 0.2]"]).runs  # two iterations
    start(runs, sets=["train.beta=[0.1, 0.2, 5.0]"])
    start(runs, sets=["train.beta=[0.1, 0.2, 0.3, 0.4]"])
    with pytest.raises(StaleArtifact, match=r"train\.beta = 0\.2, not 0\.5"):
        start(runs, sets=["train.beta=[0.1, 0.5]"])
    with pytest.raises(StaleArtifact, match=r"train\.beta = 0\.2, not 0\.1"):
        start(runs, sets=["train.beta=0.1"])


def test_a_schedule_written_in_another_way_is_the_same(tmp_path):
    start(tmp_path, sets=["train.beta=[0.1]"])
    start(tmp_path, sets=["train.beta=0.1"])


def test_a_damaged_lineage_file_says_how_to_fix_it(game):
    (game.root / "lineage.json").write_bytes(b"\xff{")
    with pytest.raises(DamagedArtifact, match=r"lineage.json is damaged \(.*\): restore it, or remove"):
        find_lineage(game.runs, game.name)


def test_a_damaged_record_says_how_to_fix_it(game):
    path = game.iteration(0) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "t": "zero"}))
    with pytest.raises(DamagedArtifact, match=r"record.json is damaged"):
        game.records()


def test_records_come_in_order_and_end_at_a_gap(game):
    assert [record.t for record in game.records()] == [0, 1]
    (game.iteration(0) / "record.json").unlink()
    assert game.records() == []


def test_the_parts_of_an_iteration_know_each_other(built):
    first, second = built.records()
    assert second.opponent == first.player
    assert second.player.parent == first.player.digest
    assert second.generations.opponent == second.scores.opponent == first.player.digest
    assert second.scores.pairs == second.pairs.digest
    assert second.train.model == second.player.digest
    assert built.player(1) == second.player


def test_jobs_take_each_iterations_settings(built):
    config = settings("train.beta=[0.1, 5.0]", "pairs.mix_previous=[false, true]", "seed=10")
    game = Lineage(built.runs, "tale", config)
    record = game.records()[0]
    jobs = [phase_jobs.train_job(game, t, record.opponent, record.pairs, record.scores) for t in range(3)]
    assert [job.config.beta for job in jobs] == [0.1, 5.0, 5.0]
    assert [job.seed for job in jobs] == [10, 11, 12]
    pairs = [phase_jobs.pairs_job(game, t, record.prompts, record.generations, record.generations) for t in range(2)]
    assert [job.previous is not None for job in pairs] == [False, True]


def test_models_that_recipes_train_are_shared_by_what_made_them(tmp_path):
    one, same = start(tmp_path, "one"), start(tmp_path, "same", sets=["train.beta=0.7"])
    other = start(tmp_path, "other", sets=["sft.hidden_size=48"])
    assert phase_jobs.base_job(one) == phase_jobs.base_job(same)
    assert phase_jobs.base_job(one).output != phase_jobs.base_job(other).output
    assert phase_jobs.base_job(one).output.parent.parent == tmp_path / ".sft"
    assert lineage_names(tmp_path) == ["one", "other", "same"]


def test_weights_that_are_gone_say_what_else_to_remove(game):
    shutil.rmtree(game.iteration(0) / "model")
    with pytest.raises(DamagedArtifact, match=r"iter_00/model is gone.*: remove .*iter_00/train too"):
        game.player(0)


def test_a_whole_lineage_verifies(built):
    problems, folders = verify(built)
    assert problems == []
    assert folders == 1 + 2 * 6 + 1 + 1, "prompts; two iterations; θ_0's evaluation; θ_0 itself"


@pytest.mark.parametrize(
    "name",
    [
        "tale/iter_01/model/model.safetensors",
        "tale/iter_00/prompts/train.parquet",
        "tale/iter_01/train/log/timing.jsonl",
        "tale/base/eval/self-play/items.parquet",
    ],
)
def test_a_flipped_byte_is_found_wherever_it_is(game, name):
    path = game.runs / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    problems, _ = verify(game)
    assert problems == [f"{path}: changed since it was published"]


def test_a_flipped_byte_in_a_shared_model_is_found(game):
    path = game.records()[0].opponent.path / "model.safetensors"
    assert path.is_relative_to(game.runs / ".sft")
    path.write_bytes(b"zerO")
    assert verify(game)[0] == [f"{path}: changed since it was published"]


def test_a_folder_that_is_missing_or_another_is_found(game):
    pairs = game.iteration(1) / "pairs"
    shutil.rmtree(pairs)
    assert verify(game)[0] == [f"{pairs}: nothing is published here"]
    shutil.copytree(game.iteration(0) / "pairs", pairs)
    assert verify(game)[0] == [f"{pairs}: not what the record of iteration 1 names"]


def test_a_damaged_manifest_does_not_hide_what_else_is_wrong(game):
    (game.iteration(0) / "pairs" / "manifest.json").write_text("{")
    (game.iteration(1) / "model" / "model.safetensors").write_bytes(b"other")
    problems, _ = verify(game)
    assert len(problems) == 2
    assert "manifest.json is not JSON" in problems[0]
    assert problems[1].endswith("model.safetensors: changed since it was published")


def test_what_a_kill_left_half_published_is_no_part_of_a_lineage(game):
    shutil.copytree(game.eval_folder(1) / "self-play", game.eval_folder(1) / ".self-play.partial")
    shutil.copytree(game.iteration(0) / "train", game.iteration(0) / ".train.partial")
    assert len(game.reports(1)) == 1
    assert not any(folder.name.startswith(".") for folder in game.published())
    assert verify(game)[0] == []


def test_a_runs_folder_that_was_moved_is_whole_where_it_is(game, tmp_path):
    before = game.records()[1]
    shutil.move(game.runs, tmp_path / "moved")
    moved = find_lineage(tmp_path / "moved", "tale")
    assert verify(moved) == ([], 15)
    record = moved.records()[1]
    assert record.pairs.path == tmp_path / "moved" / "tale" / "iter_01" / "pairs"
    assert record.pairs.digest == before.pairs.digest
    assert moved.records()[0].opponent.path.is_relative_to(tmp_path / "moved" / ".sft")


def test_reports_are_those_of_the_version(built):
    reports = [built.reports(t) for t in range(3)]
    assert [report.model for (report,) in reports] == [
        built.records()[0].opponent.digest,
        *(record.player.digest for record in built.records()),
    ]
    assert all(isinstance(report, EvalReport) for (report,) in reports)
    assert built.reports(3) == []


def test_suites_follow_the_configuration(built):
    record = built.records()[0]

    def named(*sets, temperature=None):
        game = Lineage(built.runs, "tale", settings("evaluate.exact=false", *sets))
        jobs = suite_jobs.evaluate_jobs(game, record.player, record.prompts, None, temperature=temperature)
        return [job.output.name for job in jobs]

    assert named() == ["self-play"]
    assert named("evaluate.self_play=false") == []
    assert named("evaluate.lm_eval.tasks=[arc_easy]") == ["self-play", "lm-eval"]
    assert named("evaluate.lm_eval.tasks=[arc_easy]", temperature=0.7) == ["self-play"], "benchmarks have their own"


def test_resolving_keeps_everything_that_is_no_schedule():
    config = resolve("zephyr-7b-paper")
    resolved = base.resolved(config, 3)
    assert (resolved.train.beta, resolved.train.learning_rate) == (5.0, 1e-7)
    changed = {name for name, _, _ in identity.differences(dump(config), dump(resolved))}
    assert changed == {"train.beta", "train.learning_rate", "pairs.mix_previous"}


def test_one_more_iteration_is_one_after_the_head_and_leaves_the_controls(built):
    config = one_more_iteration(built)
    assert config.iterations == len(built.records()) + 1
    assert not config.controls.sft_continued
    assert not config.controls.temperatures


def test_settings_are_laid_over_a_lineages_own(built):
    assert with_settings(built, []) is built
    changes = [{"evaluate": {"suites": ["big-bench"]}}, {"evaluate": {"temperature": 0.9}}]
    asked = one_more_iteration(with_settings(built, changes))
    assert (asked.evaluate.suites, asked.evaluate.temperature) == (("big-bench",), 0.9)
    assert asked.model_copy(update={"evaluate": built.config.evaluate}) == one_more_iteration(built)
    with pytest.raises(ConfigError, match=r"evaluate\.temprature is not a setting"):
        with_settings(built, [{"evaluate": {"temprature": 1}}])


def test_a_game_that_its_gate_ended_does_not_go_on_unasked(game):
    record = game.records()[-1]
    gate = record.gate.model_copy(update={"outcome": "stop", "reason": "stopped: it fell"})
    game.save_record(record.model_copy(update={"gate": gate}))
    with pytest.raises(ConfigError, match=r"stopped: it fell.*--set gate.rule=best"):
        one_more_iteration(game)
    assert one_more_iteration(with_settings(game, [{"gate": {"rule": "best"}}])).iterations == 3
