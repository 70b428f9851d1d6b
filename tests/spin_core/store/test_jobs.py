"""Jobs: the same after a trip through JSON, and what the runtime and people learn from them."""

import json

from spin_core.config import base
from spin_core.evaluation import suites
from spin_core.lineage import control_jobs, controls, phase_jobs, suite_jobs
from spin_core.store import identity
from spin_core.store.files import json_values
from spin_core.store.job_types import JOB_TYPES
from tests.support.lineages.small_lineage import build_lineage


def test_every_job_survives_json_and_its_identity_has_no_path(tmp_path):
    lineage = build_lineage(tmp_path, sets=["controls.dpo.source.path=preferences.jsonl"])
    record = lineage.records()[1]
    generations = record.generations
    (control,) = controls.plan(lineage, [record])
    made = [
        phase_jobs.base_job(lineage),
        phase_jobs.prompts_job(lineage, record.opponent),
        phase_jobs.sft_job(lineage, record.opponent, record.prompts),
        phase_jobs.generate_job(lineage, 1, record.opponent, record.prompts),
        phase_jobs.pairs_job(lineage, 1, record.prompts, generations, generations),
        phase_jobs.score_job(lineage, 1, record.opponent, record.pairs),
        phase_jobs.train_job(lineage, 1, record.opponent, record.pairs, record.scores),
        control_jobs.preferences_job(lineage, control, record.opponent, record.prompts),
        control_jobs.score_job(lineage, control, record.opponent, record.pairs),
        control_jobs.train_job(lineage, control, record.opponent, record.prompts, record.pairs, record.scores),
        *suite_jobs.evaluate_jobs(lineage, record.player, record.prompts, record.evaluations[0]),
    ]
    tasks = suites.benchmark_tasks("instruct", lineage.config.evaluate.lm_eval)
    made.append(suite_jobs.benchmark_job(lineage, record.player, "instruct", tasks, tmp_path / "instruct"))
    made.append(suite_jobs.frontier_job(lineage, record.player, record.prompts, tmp_path / "frontier"))
    made.append(suite_jobs.mt_bench_job(lineage, record.player, record.prompts, {}, tmp_path / "mt-bench"))
    assert {type(job) for job in made} == {*JOB_TYPES.values()}
    for job in made:
        assert json_values(type(job).model_validate_json(job.model_dump_json())) == json_values(job)
        assert str(tmp_path) not in json.dumps(identity.identity_of(job))


def test_a_job_holds_no_schedule(tmp_path):
    lineage = build_lineage(tmp_path, sets=["train.beta=[0.1, 5.0]", "generate.temperature=[1.0, 0.5]"])
    record = lineage.records()[1]
    assert phase_jobs.train_job(lineage, 1, record.opponent, record.pairs, record.scores).config.beta == 5.0
    assert phase_jobs.generate_job(lineage, 0, record.opponent, record.prompts).config.temperature == 1.0
    assert base.at_iteration(lineage.config, 7).train.beta == 5.0


def test_the_title_says_for_which_version_or_control_a_job_is(tmp_path):
    lineage = build_lineage(tmp_path, sets=["controls.dpo.source.path=preferences.jsonl"])
    record = lineage.records()[1]
    (control,) = controls.plan(lineage, [record])
    made = [
        phase_jobs.base_job(lineage),
        phase_jobs.sft_job(lineage, record.opponent, record.prompts),
        phase_jobs.generate_job(lineage, 1, record.opponent, record.prompts),
        phase_jobs.train_job(lineage, 1, record.opponent, record.pairs, record.scores),
        control_jobs.train_job(lineage, control, record.opponent, record.prompts, record.pairs, record.scores),
        *suite_jobs.evaluate_jobs(lineage, record.player, record.prompts, record.evaluations[0]),
        *suite_jobs.evaluate_jobs(lineage, record.opponent.model_copy(update={"t": 0}), record.prompts, None),
    ]
    assert [job.title for job in made] == [
        "sft · init",
        "sft · train",
        "iter 01 · generations",
        "iter 01 · train",
        f"{control.name} · train",
        "iter 01 · evaluate self-play",
        "base · evaluate self-play",
    ]


def test_a_job_says_how_many_devices_and_ranks_it_has(tmp_path):
    vllm = ["generate.engine=vllm", "generate.vllm.speed.tensor_parallel=2", "generate.speed.workers=3"]
    lineage = build_lineage(tmp_path, sets=["train.speed.ranks=4", *vllm])
    record = lineage.records()[1]
    generate = phase_jobs.generate_job(lineage, 1, record.opponent, record.prompts)
    score = phase_jobs.score_job(lineage, 1, record.opponent, record.pairs)
    train = phase_jobs.train_job(lineage, 1, record.opponent, record.pairs, record.scores)
    pairs = phase_jobs.pairs_job(lineage, 1, record.prompts, record.generations, None)
    (evaluate,) = suite_jobs.evaluate_jobs(lineage, record.player, record.prompts, record.evaluations[0])
    assert [job.devices for job in (generate, pairs, score, train, evaluate)] == [6, 0, None, None, 1]
    assert [job.rank_settings is None for job in (generate, pairs, score, train, evaluate)] == [1, 1, 0, 0, 1]
    assert [job.loaded_model is None for job in (generate, pairs, score, train, evaluate)] == [0, 1, 0, 0, 0]
