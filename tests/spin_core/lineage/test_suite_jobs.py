"""Suites: what they ask, which jobs they become, and that no model is scored twice."""

import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spin_core.config.evaluate import LmEvalConfig, SuiteName
from spin_core.config.generate import VllmConfig
from spin_core.errors import ConfigError
from spin_core.evaluation import local_tasks, nltk_data, suites
from spin_core.leaderboard.board import averages, difference, items, scores
from spin_core.lineage import suite_jobs
from spin_core.phases.benchmark import run
from spin_core.runtime import interpreter, launch, phase, progress
from spin_core.store.evaluation_jobs import BenchmarkJob
from spin_core.store.records import EvalReport
from tests.support.helpers import character_tokenizer, data_folder
from tests.support.lineages.small_jobs import version_of
from tests.support.lineages.version_scores import identity, jobs_of, settings

BENCHMARKS = ("open-llm-leaderboard", "big-bench", "bbh", "instruct")


def do(job: BenchmarkJob) -> EvalReport:
    return phase.execute(job, EvalReport, run, progress.Progress())


def test_tasks_examples_and_metrics_are_the_papers():
    tasks = {
        suite: {(task.name, task.num_fewshot, task.metric) for task in suites.benchmark_tasks(suite, LmEvalConfig())}
        for suite in ("open-llm-leaderboard", "big-bench")
    }
    assert tasks["open-llm-leaderboard"] == {
        ("arc_challenge", 25, "acc_norm,none"),
        ("truthfulqa_mc2", 0, "acc,none"),
        ("winogrande", 5, "acc,none"),
        ("gsm8k", 5, "exact_match,strict-match"),
        ("hellaswag", 10, "acc_norm,none"),
        ("mmlu", 5, "acc,none"),
    }
    chain = {
        (f"bbh_cot_fewshot_{name}", None, "exact_match,get-answer")
        for name in ("causal_judgement", "formal_fallacies", "sports_understanding")
    }
    assert tasks["big-bench"] == {*chain, ("openbookqa", 1, "acc_norm,none")}


@pytest.mark.parametrize("suite", BENCHMARKS)
def test_a_quick_suite_has_the_same_tasks_with_fewer_items_unless_a_limit_is_set(suite):
    whole, quick, limited = (
        suites.benchmark_tasks(name, LmEvalConfig(limit=limit))
        for name, limit in ((suite, None), (f"{suite}-quick", None), (f"{suite}-quick", 7))
    )
    assert [task.limit for task in whole] == [None] * len(whole)
    assert all(task.limit in (4, 10, 100) for task in quick)
    assert {task.limit for task in limited} == {7}
    assert [task.model_copy(update={"limit": None, "score": ""}) for task in quick] == list(whole)
    assert [task.title for task in quick] == [f"{task.title}-quick" for task in whole]


def test_each_suite_is_a_job_and_single_tasks_are_one(tmp_path, tiny_model):
    named = ["big-bench-quick", "instruct"]
    jobs = jobs_of(tmp_path, version_of(tiny_model), f"evaluate.suites={named}", "evaluate.lm_eval.tasks=[arc_easy]")
    assert [job.output.name for job in jobs] == [*named, "lm-eval"]
    assert [len(job.config.tasks) for job in jobs] == [4, 1, 1]
    assert suites.score_names(settings(f"evaluate.suites={named}").evaluate)[:2] == named


def test_a_job_depends_on_what_it_reads_and_on_nothing_else(tmp_path, tiny_model):
    player, suite = version_of(tiny_model), "evaluate.suites=[instruct]"
    (job,) = jobs_of(tmp_path, player, suite)
    for other in (
        "evaluate.judge.model=another",
        "evaluate.mt_bench.max_new_tokens=7",
        "evaluate.main_metric=instruct",
        "evaluate.lm_eval.batch_size=auto",
        "generate.vllm.max_length=64",
        "generate.max_new_tokens=5",
        "seed=7",
    ):
        (changed,) = jobs_of(tmp_path, player, suite, other)
        assert identity(changed) == identity(job), other
    for own in (
        "evaluate.lm_eval.limit=3",
        "evaluate.lm_eval.apply_chat_template=true",
        "evaluate.lm_eval.engine=vllm",
    ):
        (changed,) = jobs_of(tmp_path, player, suite, own)
        assert identity(changed) != identity(job), own
    on = ("evaluate.self_play=true",)
    first, second = (jobs_of(tmp_path, player, *on, *sets)[0] for sets in ((), (suite, "evaluate.judge.model=another")))
    assert identity(first) == identity(second)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (
            ["evaluate.suites=[open-llm-leaderboard]", "evaluate.lm_eval.tasks=[arc_challenge]"],
            "take it out of evaluate",
        ),
        (
            ["evaluate.suites=[open-llm-leaderboard]", "evaluate.lm_eval.tasks=[mmlu_anatomy]"],
            "both score mmlu_anatomy",
        ),
        (["evaluate.suites=[open-llm-leaderboard]", "evaluate.lm_eval.tasks=[mmlu_stem]"], "both score mmlu_stem"),
        (
            ["evaluate.suites=[instruct]", "evaluate.lm_eval.engine=vllm", "generate.vllm.python=/no/such/python"],
            "set evaluate.lm_eval.engine to transformers",
        ),
    ],
)
def test_incompatible_settings_are_rejected_before_a_run(sets, words):
    with pytest.raises(ConfigError, match=words):
        suites.check(settings(*sets))


@pytest.mark.parametrize(("first", "second"), list(combinations(get_args(SuiteName), 2)))
def test_any_two_suites_can_be_combined_and_none_of_their_scores_has_two_settings(first, second, monkeypatch):
    monkeypatch.setattr(nltk_data, "has_punkt", lambda: True)
    config = settings(f"evaluate.suites=[{first}, {second}]", "evaluate.lm_eval.tasks=[arc_easy]")
    suites.check(config)
    settings_of: dict[str, set] = {}
    for suite, tasks in suites.benchmarks(config.evaluate):
        for task in tasks:
            assert task.title != suite
            names = local_tasks.tasks_of(task.name) if task.name in local_tasks.GROUPS else [task.name]
            for name in names:
                settings_of.setdefault(task.part(name), set()).add((name, task.num_fewshot, task.limit))
            settings_of.setdefault(task.title, set()).add((names[0], task.num_fewshot, task.limit))
    assert all(len(settings_seen) == 1 for settings_seen in settings_of.values()), settings_of


@pytest.mark.parametrize("task", ["mmlu_pro", "mmlu_flan_cot_zeroshot", "arc_easy", "arc_challenge_chat", "hellaswag"])
def test_a_single_task_may_be_added_to_suites_that_lack_it_or_have_the_same_settings(task):
    alike = ["evaluate.lm_eval.num_fewshot=10"] if task == "hellaswag" else []
    suites.check(settings("evaluate.suites=[open-llm-leaderboard, bbh]", f"evaluate.lm_eval.tasks=[{task}]", *alike))
    suites.check(settings("evaluate.suites=[open-llm-leaderboard-quick]", f"evaluate.lm_eval.tasks=[{task}]"))


def test_chat_templates_are_for_instruct_unless_the_setting_says_otherwise(tmp_path, tiny_model):
    suites_set = ("evaluate.suites=[instruct-quick, big-bench]", "evaluate.lm_eval.tasks=[arc_easy]")
    for value, expected in (("null", [None, False, False]), ("true", [True] * 3), ("false", [False] * 3)):
        sets = (*suites_set, f"evaluate.lm_eval.apply_chat_template={value}")
        jobs = jobs_of(tmp_path, version_of(tiny_model), *sets)
        assert [job.config.apply_chat_template for job in jobs] == expected


def test_vllm_scores_weights_as_they_are(tmp_path, tiny_model):
    sets = [
        "evaluate.suites=[instruct]",
        "evaluate.lm_eval.engine=vllm",
        "generate.vllm={quantization: fp8, python: sh}",
    ]
    (job,) = jobs_of(tmp_path, version_of(tiny_model), *sets)
    assert (job.config.vllm.quantization, job.config.vllm.dtype, job.config.vllm.python) == ("", "model", "sh")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Few rows of a few tasks, in the plain form."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"question": f"Which is {i}?", "choices": ["a", "bb", "ccc", "dd"], "label": i % 4} for i in range(6)]
    for name in ("arc_easy_test", "openbookqa_test", "openbookqa_train"):
        write(folder / f"{name}.jsonl", rows)
    for name, counts in (("mmlu_test", (2, 4)), ("mmlu_dev", (5, 5))):
        subjects = [
            subject for subject, count in zip(("anatomy", "virology"), counts, strict=True) for _ in range(count)
        ]
        write(folder / f"{name}.jsonl", [{"subject": subject, **rows[i % 6]} for i, subject in enumerate(subjects)])
    return folder


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_a_second_lineage_scores_nothing_again_and_a_changed_setting_does(tmp_path, tiny_model, data):
    player = version_of(tiny_model)
    # All computation needs the weights, so a model without weights shows that nothing was computed.
    hollow = player.model_copy(update={"path": tmp_path / "nowhere"})
    base = [f"evaluate.lm_eval.local_data={data}", "evaluate.lm_eval.tasks=[arc_easy, mmlu]"]
    (first,) = jobs_of(tmp_path, player, *base)
    report = do(first)
    for other in ("seed=3", "evaluate.lm_eval.batch_size=2", "evaluate.lm_eval.tasks=[mmlu, arc_easy]"):
        (job,) = jobs_of(tmp_path, hollow, *base, other, name=f"tale-{len(other)}")
        assert do(job).scores == report.scores
    rows = tmp_path / "rows"
    rows.mkdir()
    for path in data.iterdir():
        text = path.read_text("utf-8")
        (rows / path.name).write_text(text.replace("bb", "b b") if path.stem == "arc_easy_test" else text, "utf-8")
    for own in ("limit=2", "num_fewshot=1", f"local_data={rows}", "apply_chat_template=true"):
        (job,) = jobs_of(tmp_path, hollow, *base, f"evaluate.lm_eval.{own}", name="changed")
        with pytest.raises(Exception, match="nowhere"):
            do(job)
    trained_on = hollow.model_copy(update={"digest": "1" * 64})
    (job,) = jobs_of(tmp_path, trained_on, *base, name="trained-on")
    with pytest.raises(Exception, match="nowhere"):
        do(job)
    # The changed rows are those of arc_easy. The scores of mmlu, whose rows are the same, were reused.
    (job,) = jobs_of(tmp_path, player, *base, f"evaluate.lm_eval.local_data={rows}", name="changed")
    there = len(list((tmp_path / suite_jobs.SCORES).glob("*/scores")))
    do(job)
    assert len(list((tmp_path / suite_jobs.SCORES).glob("*/scores"))) == there + 1


def test_a_group_weighs_items_and_a_suite_weighs_tasks(tmp_path, tiny_model, data, monkeypatch):
    small = tuple(task for task in suites.BENCHMARKS["open-llm-leaderboard"] if task.name == "mmlu")
    small += tuple(task for task in suites.BENCHMARKS["big-bench"] if task.name == "openbookqa")
    monkeypatch.setitem(suites.BENCHMARKS, "big-bench", small)
    (job,) = jobs_of(
        tmp_path, version_of(tiny_model), "evaluate.suites=[big-bench]", f"evaluate.lm_eval.local_data={data}"
    )
    report = do(job)
    scores = report.scores
    assert report.averages == {"mmlu": ("mmlu_anatomy", "mmlu_virology"), "big-bench": ("mmlu", "openbookqa")}
    assert scores["mmlu"].value == pytest.approx(
        (2 * scores["mmlu_anatomy"].value + 4 * scores["mmlu_virology"].value) / 6
    )
    assert scores["big-bench"].value == pytest.approx((scores["mmlu"].value + scores["openbookqa"].value) / 2)
    error = (scores["mmlu"].stderr ** 2 + scores["openbookqa"].stderr ** 2) ** 0.5 / 2
    assert scores["big-bench"].stderr == pytest.approx(error)
    assert error > 0
    assert scores["big-bench"].n == 12
    # What the leaderboard pairs: all items of a group, and an average part by part.
    values, means = items([report]), averages([report])
    assert len(values["mmlu"]) == 6
    assert "big-bench" not in values
    nothing = {task: dict.fromkeys(task_values, 0.0) for task, task_values in values.items()}
    for name in ("mmlu", "big-bench"):
        assert difference(name, values, nothing, means).mean == pytest.approx(scores[name].value)


def test_part_of_a_group_is_noted_and_an_unknown_task_is_rejected(tmp_path, tiny_model, data):
    sets = [f"evaluate.lm_eval.local_data={data}", "evaluate.lm_eval.tasks=[mmlu]"]
    (job,) = jobs_of(tmp_path, version_of(tiny_model), *sets)
    assert do(job).notes == ("mmlu: 2 of its 57 tasks have rows, and the score is theirs alone",)
    rows = tmp_path / "rows"
    shutil.copytree(data, rows)
    with (rows / "mmlu_test.jsonl").open("a") as file:
        file.write(json.dumps({"subject": "alchemy", "question": "?", "choices": ["a"], "label": 0}) + "\n")
    (job,) = jobs_of(tmp_path, version_of(tiny_model), *sets, f"evaluate.lm_eval.local_data={rows}", name="other")
    with pytest.raises(
        ConfigError, match=r"mmlu_test.jsonl has rows whose subject is 'alchemy', which lm-eval does not"
    ):
        do(job)


def test_a_suite_and_its_quick_form_have_scores_of_their_own(tmp_path, tiny_model, data, monkeypatch):
    monkeypatch.setitem(suites.BENCHMARKS, "big-bench", suites.BENCHMARKS["open-llm-leaderboard"][2:3])
    monkeypatch.setitem(suites.FEW_OF, "mmlu", 1)
    sets = ["evaluate.suites=[big-bench, big-bench-quick]", f"evaluate.lm_eval.local_data={data}"]
    reports = [do(job) for job in jobs_of(tmp_path, version_of(tiny_model), *sets)]
    by_name = scores(reports)
    names = {"mmlu": 6, "mmlu_anatomy": 2, "mmlu_virology": 4, "mmlu-quick": 2, "mmlu-quick_anatomy": 1}
    assert {name: by_name[name].n for name in names} == names
    assert {name: len(values) for name, values in items(reports).items() if name in names} == names
    assert averages(reports)["big-bench-quick"] == ("mmlu-quick",)
    assert averages(reports)["mmlu-quick"] == ("mmlu-quick_anatomy", "mmlu-quick_virology")
    assert set(suites.score_names(settings(*sets).evaluate)) <= set(by_name)


@pytest.mark.parametrize("suite", ["open-llm-leaderboard-quick", "big-bench-quick", "bbh-quick"])
@pytest.mark.slow
def test_every_suite_runs_on_real_rows_and_a_real_small_model(tmp_path, suite):
    data, model = data_folder("benchmarks").parent, data_folder("models", "babyllama-105")
    sets = [f"evaluate.suites=[{suite}]", f"evaluate.lm_eval={{local_data: {data}, limit: 1, batch_size: 32}}"]
    (job,) = jobs_of(tmp_path, version_of(model), *sets)
    report = do(job)
    names = {task.name for task in job.config.tasks}
    titles = [task.title for task in job.config.tasks]
    assert {suite, *titles} <= set(report.scores)
    assert all(0 <= score.value <= 1 for score in report.scores.values())
    samples = pq.read_table(report.path / "samples.parquet")
    assert len(samples) == len({part for title in titles for part in report.averages.get(title, (title,))})
    cut = [note.split(":")[0] for note in report.notes if "lost their beginning" in note]
    assert cut
    assert len(set(cut)) == len(cut)
    assert set(cut) <= names, "a group's tasks are counted together"


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory) -> Path:
    """A random Llama with heads as wide as vLLM's kernels want them."""
    folder, tokenizer = tmp_path_factory.mktemp("wide-model"), character_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def has_vllm() -> bool:
    python = interpreter.vllm_python(VllmConfig())
    return python.exists() and any(python.parents[1].glob("lib/python*/site-packages/lm_eval"))


@pytest.mark.skipif(not has_vllm(), reason="vLLM's environment with lm-eval is not installed: make vllm")
@pytest.mark.slow
def test_both_engines_give_the_same_scores(tmp_path, wide_model, data):
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(4)]
    write(data / "gsm8k_test.jsonl", rows)
    reports = []
    for engine in ("transformers", "vllm"):
        settings = {"local_data": str(data), "tasks": ["arc_easy", "gsm8k"], "num_fewshot": 1, "engine": engine}
        given = [f"evaluate.lm_eval={json.dumps(settings)}", "generate.vllm.speed.cache_gb=0.0625"]
        (job,) = jobs_of(tmp_path / engine, version_of(wide_model), *given)
        reports.append(launch.run_phase(job, EvalReport))
    transformers_rows, vllm_rows = (pq.read_table(report.path / "samples.parquet").to_pylist() for report in reports)
    assert len(transformers_rows) == 10
    for row, vllm_row in zip(transformers_rows, vllm_rows, strict=True):
        assert row["prompt"] == vllm_row["prompt"]
        # lm-eval's class for vLLM keeps special tokens that are no end in an answer.
        assert row["answer"] == re.sub(r"<(s|pad|unk)>", "", vllm_row["answer"])
        assert row["logps"] == pytest.approx(vllm_row["logps"], abs=1e-3)
    assert reports[0].scores == reports[1].scores
    environment = json.loads((reports[1].path / "manifest.json").read_text())["usage"]["environment"]
    assert "vllm" in environment
