"""A run is checked once, before any compute, and by the same checks for every way to start it."""

import functools
import json
import re

import pytest
from click.testing import CliRunner

from flows import compare, nightly, spin
from flows.command_line.main import main
from spin_core.comparison import compare as comparisons
from spin_core.config.resolve import resolve
from spin_core.data.sources import check_demo_is_meant
from spin_core.errors import ConfigError, LineageBusy, SpinError, StaleArtifact, TryAgain
from spin_core.evaluation import suites
from spin_core.lineage.find import find_lineage, lineage_names
from spin_core.preflight import prepare
from spin_core.preflight.check import check_run
from spin_core.preflight.prepare import check_requirements, prepare_run
from spin_core.remote import push as pushes
from spin_core.reports.data_preview import preview_data
from spin_core.store import lock
from spin_core.store.files import write_json
from tests.support.lineages.small_lineage import build_lineage, demo_config

REJECTED = {
    "metric": (["evaluate.main_metric=reward_margin"], "evaluate.main_metric 'reward_margin' is not a score"),
    "gate": (["gate.metric=mmlu"], "gate.metric 'mmlu' is not a score that every version has"),
    "exact": (["prompts.source.path=mine.jsonl"], "evaluate.exact needs data whose distribution is known"),
    "engine": (["generate.engine=vllm", "generate.vllm.python=/no/such"], "generate.engine"),
    "suites": (
        ["evaluate.suites=[big-bench]", "evaluate.lm_eval.tasks=[openbookqa]"],
        "big-bench and lm-eval both score openbookqa",
    ),
    "sinks": (["metrics.sinks=[wandb]"], "metrics.sinks has wandb, which is not installed"),
    "store": (["push.url=nowhere://x"], "nowhere"),
}
"""Settings of the demo that cannot be run, and how the error starts."""


def test_a_folder_with_the_name_of_the_built_in_data_is_not_passed_over(tmp_path, tiny_model, monkeypatch):
    own = resolve("demo", sets=[f"model.path={tiny_model}"])
    check_requirements(own)
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    line = f"prompts.source.path is demo, the built-in data, but {tmp_path}/demo exists too: set prompts.source.path to"
    for check in (check_requirements, lambda config: preview_data(config, 5)):
        with pytest.raises(SpinError, match=re.escape(line)):
            check(own)
    sets = ["controls.dpo.source.path=demo", "prompts.source.path=./demo", "evaluate.exact=false"]
    preferences = resolve("demo", sets=[f"model.path={tiny_model}", *sets])
    with pytest.raises(SpinError, match=re.escape(line.replace("prompts.source", "controls.dpo.source"))):
        check_demo_is_meant(preferences)
    check_requirements(resolve("demo"))


@pytest.fixture
def no_wandb(monkeypatch):
    """W&B is not installed."""
    from spin_core.config import metrics

    find_spec = metrics.find_spec
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == "wandb" else find_spec(name))


@pytest.mark.parametrize(
    ("suite", "package", "extra"), [("big-bench", "lm_eval", "benchmarks"), ("mt-bench", "openai", "judge")]
)
def test_a_suite_whose_package_is_absent_is_rejected_with_the_extra_that_brings_it(monkeypatch, suite, package, extra):
    monkeypatch.setattr(suites, "find_spec", lambda name: None if name == package else name)
    sentence = error_of(lambda: suites.check(resolve("demo", sets=[f"evaluate.suites=[{suite}]"])))
    assert sentence.startswith(f"{suite} needs the package {package}, which is not installed: ")
    assert f"its extra `{extra}`" in sentence


@pytest.fixture
def not_started(monkeypatch):
    """Fail if a run gets past its checks."""

    def run_iterations(*_):
        pytest.fail("the run was started")

    monkeypatch.setattr(spin, "run_iterations", run_iterations)
    monkeypatch.setattr(spin, "get_run_logger", lambda: prepare._logger)
    monkeypatch.setattr(compare, "get_run_logger", lambda: prepare._logger)


def nested(sets):
    """`a.b=c` as the form of a flow gives it: only what differs from the recipe."""
    changed, plain = resolve("demo", sets=sets).model_dump(), resolve("demo").model_dump()

    def difference(new, old):
        return {
            key: difference(new[key], old[key]) if isinstance(new[key], dict) else new[key]
            for key in new
            if new[key] != old[key]
        }

    return spin.Overrides.model_validate(json.loads(json.dumps(difference(changed, plain), default=str)))


def error_of(call) -> str:
    with pytest.raises(SpinError) as raised:
        call()
    return str(raised.value)


def printed_by(*arguments, runs) -> str:
    """The error that the command line prints."""
    result = CliRunner().invoke(main, [*arguments, "--runs", str(runs)])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error  ")


@pytest.mark.usefixtures("no_wandb", "not_started")
@pytest.mark.parametrize(("sets", "says"), REJECTED.values(), ids=REJECTED)
def test_every_way_to_start_a_run_rejects_a_configuration_with_the_same_sentence(tmp_path, monkeypatch, sets, says):
    monkeypatch.setenv("SPIN_RUNS", str(tmp_path))
    arguments = [word for setting in sets for word in ("--set", setting)]
    config = resolve("demo", sets=sets)
    sentence = error_of(lambda: prepare_run(config, tmp_path, "tale"))
    assert says in sentence
    assert "\n" not in sentence
    assert printed_by("run", "demo", *arguments, runs=tmp_path) == sentence
    assert printed_by("compare", "demo", "--seeds", "1", *arguments, runs=tmp_path) == sentence
    assert error_of(functools.partial(spin.spin.fn, recipe="demo", overrides=nested(sets))) == sentence
    assert error_of(functools.partial(compare.compare.fn, "demo", seeds=1, overrides=nested(sets))) == sentence
    wrong = [finding.text for finding in check_run(config, tmp_path).findings if finding.level == "wrong"]
    assert wrong.count(sentence) == 1
    assert lineage_names(tmp_path) == [], "nothing was started"


@pytest.mark.usefixtures("no_wandb", "not_started")
@pytest.mark.parametrize(
    ("sets", "says"), [REJECTED["gate"], REJECTED["sinks"], REJECTED["store"]], ids=["gate", "sinks", "store"]
)
def test_another_iteration_is_checked_as_a_first_one_is(tmp_path, sets, says):
    lineage = build_lineage(tmp_path)
    config = demo_config(*sets)
    write_json(lineage.root / "lineage.json", {"lineage": "tale", "config": config.model_dump(mode="json")})
    sentence = error_of(lambda: prepare_run(config, tmp_path, "tale"))
    assert says in sentence
    assert printed_by("next", "tale", "--anyway", runs=tmp_path) == sentence
    night = functools.partial(nightly.nightly.fn, "tale", until_converged=False, runs=str(tmp_path))
    assert error_of(night) == sentence


def test_a_run_that_can_start_is_started_with_its_settings(tmp_path):
    lineage = prepare_run(demo_config("iterations=2"), tmp_path, "tale")
    assert lineage == find_lineage(tmp_path, "tale")
    assert prepare_run(demo_config("iterations=3"), tmp_path, "tale").config.iterations == 3


def test_settings_that_the_versions_depend_on_are_compared_before_any_compute(tmp_path):
    build_lineage(tmp_path)
    with pytest.raises(StaleArtifact, match=r"lineage tale was started with train\.beta"):
        prepare_run(demo_config("train.beta=0.7"), tmp_path, "tale")


ROWS = '{"prompt": "1+1=", "response": "2"}\n'

WRONG_DATA = {
    "no such file": ({}, ["prompts.source.path=no.jsonl"], "no.jsonl does not exist: set prompts.source.path to"),
    "columns": ({"a.jsonl": '{"ask": "x"}\n'}, ["prompts.source.path=a.jsonl"], "prompts.columns"),
    "no rows": ({"a.jsonl": ""}, ["prompts.source.path=a.jsonl"], "a.jsonl holds no rows: set prompts.source.path"),
    "one of several": (
        {"a.jsonl": ROWS},
        ["prompts.sources={a: a.jsonl, b: b.jsonl}"],
        "b.jsonl does not exist: set prompts.sources.b.path to",
    ),
    "held out": (
        {"a.jsonl": ROWS},
        ["prompts.source.path=a.jsonl", "prompts.held_out_source={path: b.jsonl}"],
        "b.jsonl does not exist: set prompts.held_out_source.path to",
    ),
    "preferences": (
        {"a.jsonl": ROWS},
        ["prompts.source.path=a.jsonl", "controls.dpo={source: {path: b.jsonl}}"],
        "b.jsonl does not exist: set controls.dpo.source.path to",
    ),
    "model": ({"a.jsonl": ROWS}, ["prompts.source.path=a.jsonl", "model.path=./no"], "./no is not a folder: set model"),
}
"""Files, settings of the demo that name data or a model, and a part of the error."""


@pytest.mark.parametrize(("files", "sets", "says"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_data_that_cannot_be_read_end_a_run_before_it_starts(tmp_path, monkeypatch, files, sets, says):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    sentence = error_of(lambda: prepare_run(demo_config("evaluate.exact=false", *sets), tmp_path / "runs", "tale"))
    assert says in sentence
    assert "\n" not in sentence
    assert lineage_names(tmp_path / "runs") == []


def test_data_that_are_published_are_not_read_again(tmp_path, monkeypatch):
    config = build_lineage(tmp_path).config
    monkeypatch.setattr(prepare, "check_first_rows", lambda _: pytest.fail("the data were read"))
    prepare_run(config, tmp_path, "tale")


def test_an_invalid_name_is_rejected_before_the_store_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "check_copy", lambda *_: pytest.fail("the store was asked"))
    with pytest.raises(ConfigError, match="cannot name a lineage"):
        prepare_run(demo_config(), tmp_path, "../up")


def test_a_store_that_is_not_reachable_is_a_warning(tmp_path, monkeypatch):
    def unreachable(_url):
        raise TryAgain("s3://bucket cannot be reached (timeout)")

    monkeypatch.setattr(pushes.storage, "check", unreachable)
    warnings: list[str] = []
    lineage = prepare_run(demo_config("push.url=s3://bucket"), tmp_path, "tale", warn=warnings.append)
    assert warnings == ["s3://bucket cannot be reached (timeout); the run starts anyway"]
    assert lineage == find_lineage(tmp_path, "tale")
    config = demo_config("push.url=s3://bucket", "controls={}")
    comparisons.prepare_comparison(tmp_path, "trial", config, 1, ["sft-steps"], warn=warnings.append)
    assert len(warnings) == 2


def test_a_lineage_in_use_is_not_started(tmp_path):
    with lock.locked(tmp_path / "tale"), pytest.raises(LineageBusy, match="lineage tale is in use by process"):
        prepare_run(demo_config(), tmp_path, "tale")
