"""The real vLLM, its CPU build, in the environment of `make vllm`. Skipped where that does not exist."""

import json
import math
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from spin_core.config.generate import GenerateConfig, VllmConfig
from spin_core.config.model import ModelConfig
from spin_core.config.resolve import resolve
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, TryAgain
from spin_core.inference.engine import Request
from spin_core.inference.factory import make_engine
from spin_core.inference.sampling import probabilities
from spin_core.inference.vllm_engine import start_error
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.models.loading import load_model
from spin_core.preflight.prepare import check_requirements
from spin_core.runtime import interpreter, launch
from spin_core.runtime.launch import run_phase
from spin_core.store import files, identity
from spin_core.store.records import GenerationBatch, PromptSet
from tests.support.lineages.small_jobs import CPU, version_of
from tests.support.models import vllm_probe
from tests.support.models.vllm_models import EOS, save_model, save_stacked

PYTHON = interpreter.vllm_python(VllmConfig())
without_vllm = pytest.mark.skipif(not PYTHON.exists(), reason=f"no vLLM at {PYTHON}: make vllm installs it")


def needs_vllm(test):
    """A test that is slow, and is skipped where vLLM is not installed."""
    return pytest.mark.slow(without_vllm(test))


GREEDY = {"temperature": 1e-6, "max_new_tokens": 16}
STRINGS = ["a", "xy", "B"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stacked(model, tmp_path_factory) -> Path:
    return save_stacked(model, tmp_path_factory.mktemp("stacked") / "model")


def some_requests(count=24, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(4, 100, rng.integers(1, 30)).tolist(), int(rng.integers(2**62))) for _ in range(count)]


def many_requests():
    """Prompts with more tokens than vLLM reads at a time."""
    return [([*prompt, *range(4, 94)], seed) for prompt, seed in some_requests(120, seed=2)]


def requests_with_common_prefix():
    """Prompts that have two blocks of vLLM's cache in common."""
    return [([*(list(range(4, 90)) * 3), *prompt[:8]], seed) for prompt, seed in some_requests(8, seed=3)]


def changed(model: Path, folder: Path, **config) -> Path:
    """A copy of the model with a changed configuration."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.fixture(scope="module")
def results(model, stacked, tmp_path_factory) -> dict:
    """The answers to all questions, from one process, since it takes long to start."""
    folder = tmp_path_factory.mktemp("probe")
    questions = {}

    def ask(name, groups, at=model, stops=(EOS,), **settings):
        extra = {key: settings.pop(key) for key in ("fails_at_step",) if key in settings}
        settings = {"max_new_tokens": 24, **settings}
        questions[name] = {"model": str(at), "stops": stops, "groups": groups, "settings": settings, **extra}

    requests, others = some_requests(), some_requests(seed=1)
    ask(
        "plain",
        [requests, others, requests, *([request] for request in requests), [(prompt, 5) for prompt, _ in requests]],
    )
    ask("small batch", [requests], vllm={"speed": {"cache_gb": 0.0625, "batch_size": 3}})
    ask("many", [many_requests()])
    ask("strings", [requests], stop_strings=STRINGS)
    ask("ids", [requests], stop_ids=[70, 71])
    ask("greedy", [requests], stop_strings=STRINGS, repetition_penalty=1.3, **GREEDY)
    cuts = {"temperature": 1.3, "top_p": 0.9, "top_k": 20, "min_p": 0.05}
    ask("cuts", [[([5, 9, 11], seed) for seed in range(1500)]], **{**cuts, "max_new_tokens": 1})
    ask("memory", [requests], fails_at_step=5)
    ask("merged", [requests], at=stacked, **GREEDY)
    ask("applied", [requests], at=stacked, vllm={"adapters": "apply"}, **GREEDY)
    ask("long", [[([5] * 128, 0)]])
    ask("foreign", [[([5, 100], 0)]])
    ask("unknown", [requests], at=changed(model, folder / "unknown", architectures=["NoSuchForCausalLM"]))
    ask("misfit", [requests], at=changed(model, folder / "misfit", intermediate_size=128))
    ask("greedy for memory", [requests], vllm={"speed": {"cache_gb": 4000}})
    ask("nonsense", [requests], vllm={"quantization": "nonsense"})
    long = save_model(folder / "long", context=512)
    for caching in (True, False):
        speed = {"cache_gb": 0.0625, "batch_size": 2, "prefix_caching": caching}
        ask(
            f"prefix {caching}",
            [requests_with_common_prefix(), requests_with_common_prefix()],
            at=long,
            vllm={"max_length": 300, "speed": speed},
            **GREEDY,
        )
    ask("set", [requests], vllm={"dtype": "bfloat16", "max_length": 96})
    return probe(folder, questions)


def probe(folder: Path, questions: dict) -> dict:
    """Ask these questions in vLLM's own environment."""
    (folder / "questions.json").write_text(json.dumps(questions))
    done = subprocess.run(
        [PYTHON, vllm_probe.__file__, folder / "questions.json", folder / "results.json"],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def transformers_answers(folder: Path, requests, **settings):
    """The transformers engine's answers to the same requests."""
    config = GenerateConfig(engine="transformers", **{"max_new_tokens": 24, **settings})
    engine = make_engine(folder, CPU, (EOS,), config, 0)
    by_index = dict(engine.answer([Request(*request) for request in requests]))
    return [[by_index[i].response_ids, by_index[i].finish_reason] for i in range(len(requests))]


@needs_vllm
def test_vllms_environment_needs_neither_prefect_nor_datasets_nor_lm_eval(results):
    assert results["heavy"] == []


@needs_vllm
def test_the_same_requests_give_the_same_answers_after_any_others_and_another_seed_gives_others(results):
    first, _, again, *_, seeded = results["plain"]["answers"]
    assert first == again
    assert first != seeded
    assert {reason for _, reason in first} == {"stop", "length"}
    for ids, reason in first:
        assert (ids[-1] == EOS) == (reason == "stop")
        assert EOS not in ids[:-1]
        assert reason == "stop" or len(ids) == 24


@needs_vllm
def test_answers_do_not_depend_on_the_batch_up_to_rounding(results):
    first, _, _, *rest = results["plain"]["answers"]
    alone = [group[0] for group in rest[:-1]]
    # In float32 a token can change where two candidates are nearly equal; none does here.
    assert alone == first
    assert results["small batch"]["answers"][0] == first


@needs_vllm
def test_prompts_that_need_several_steps_to_read_are_answered(results):
    answers = results["many"]["answers"][0]
    assert sum(len(prompt) for prompt, _ in many_requests()) > 10_000
    assert len(answers) == 120
    assert {reason for _, reason in answers} == {"stop", "length"}


@needs_vllm
def test_a_stop_string_ends_the_tokens_with_the_one_that_completes_it(results, model):
    tokenizer = load_tokenizer(model, CPU)
    ends = Counter()
    for ids, reason in results["strings"]["answers"][0]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        contained = [string for string in STRINGS if string in text]
        assert not any(string in tokenizer.decode(ids[:-1], skip_special_tokens=True) for string in STRINGS)
        assert reason == ("stop" if contained or ids[-1] == EOS else "length")
        ends.update(string for string in contained if text.endswith(string))
    assert len(ends) >= 2


@needs_vllm
def test_stop_ids_are_added_to_those_of_the_chat_format(results):
    answers = results["ids"]["answers"][0]
    assert {ids[-1] for ids, reason in answers if reason == "stop"} == {EOS, 70, 71}
    assert all(not {EOS, 70, 71} & set(ids[:-1]) for ids, _ in answers)


@needs_vllm
def test_both_engines_give_the_same_greedy_answers(results, model):
    settings = {"stop_strings": STRINGS, "repetition_penalty": 1.3, **GREEDY}
    answers = results["greedy"]["answers"][0]
    assert answers == transformers_answers(model, some_requests(), **settings)
    assert {reason for _, reason in answers} == {"stop", "length"}


@needs_vllm
def test_first_tokens_are_spread_as_our_own_probabilities(results, model):
    network = load_model(model, CPU)
    with torch.inference_mode():
        logits = network(torch.tensor([[5, 9, 11]])).logits[:, -1]
    probs = probabilities(logits, 1.3, top_p=0.9, top_k=20, min_p=0.05)[0].double().numpy()
    drawn = np.zeros(len(probs))
    for ids, _ in results["cuts"]["answers"][0]:
        drawn[ids[0]] += 1
    kept = probs > 0
    assert 5 < kept.sum() < 20
    assert drawn[~kept].sum() == 0
    expected = 1500 * probs[kept]
    freedom = kept.sum() - 1
    # A chi-square has mean `freedom` and variance twice that; the seeds are fixed.
    assert ((drawn[kept] - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)


@needs_vllm
def test_memory_that_runs_out_halves_the_batch_and_loses_no_answer(results):
    assert results["memory"]["batch_size"] == 4
    assert results["memory"]["answers"][0] == results["plain"]["answers"][0]


@needs_vllm
def test_settings_reach_the_engine(results):
    plain = {"dtype": "torch.float32", "context": 128, "prefix_caching": True}
    assert results["plain"]["settings"] == plain
    assert results["set"]["settings"] == {**plain, "dtype": "torch.bfloat16", "context": 96}
    assert results["prefix False"]["settings"] == {**plain, "context": 300, "prefix_caching": False}


@needs_vllm
def test_a_common_prefix_is_computed_once_and_changes_no_answer(results, tmp_path):
    expected = transformers_answers(save_model(tmp_path / "long", context=512), requests_with_common_prefix(), **GREEDY)
    assert results["prefix True"]["answers"] == results["prefix False"]["answers"] == [expected, expected]
    assert results["prefix True"]["cached"] > 0
    assert results["prefix False"]["cached"] == 0


@needs_vllm
def test_stacked_adapters_are_merged_or_applied(results, stacked, model):
    expected = transformers_answers(stacked, some_requests(), **GREEDY)
    assert results["merged"]["answers"][0] == expected
    assert results["applied"]["answers"][0] == expected
    assert expected != transformers_answers(model, some_requests(), **GREEDY)


@needs_vllm
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("long", "DataError", "a prompt of 128 tokens leaves no room in the model's context of 128"),
        ("foreign", "ModelError", "a prompt has token 100, and the model knows tokens 0 to 99"),
        ("unknown", "ModelError", "vLLM does not run the architecture ['NoSuchForCausalLM']"),
        ("misfit", "ModelError", "vLLM cannot load"),
        ("greedy for memory", "ModelError", "there is not enough memory to start vLLM"),
        ("nonsense", "ModelError", "Unknown quantization method: nonsense"),
    ],
)
def test_invalid_requests_and_models_are_rejected_in_one_line(results, name, kind, words):
    assert results[name]["error"] == kind
    assert words in results[name]["message"]
    assert ": " in results[name]["message"]
    assert "\n" not in results[name]["message"]
    assert len(results[name]["message"]) < 500


def test_a_taken_port_is_an_error_that_allows_a_retry(tmp_path):
    with socket.create_server(("", 0)) as taken, pytest.raises(RuntimeError) as caught:
        torch.distributed.TCPStore("127.0.0.1", taken.getsockname()[1], 1, is_master=True)
    error = start_error(caught.value, tmp_path)
    assert isinstance(error, TryAgain)
    assert re.fullmatch("vLLM needs a port that is taken .*: the same command may find another", str(error))


@needs_vllm
def test_a_model_on_two_workers_answers_as_on_one(results, model, tmp_path):
    requests = [list(request) for request in some_requests()]
    settings = {**GREEDY, "stop_strings": STRINGS, "repetition_penalty": 1.3}
    settings["vllm"] = {"speed": {"cache_gb": 0.0625, "tensor_parallel": 2}}
    question = {"model": str(model), "stops": [EOS], "groups": [requests], "settings": settings}
    assert probe(tmp_path, {"two": question})["two"]["answers"] == results["greedy"]["answers"]


@needs_vllm
def test_an_unknown_finish_reason_is_an_error(results):
    assert results["unknown finish reason"] == "vLLM ended an answer with 'abort'"


def job_of(runs: Path, model: Path, **config):
    """The job of a lineage with these settings of generation."""
    prompts = PromptSet(path=runs, digest="0" * 64, source="", revision=None, rows=0, held_out=0, drops={})
    settings = resolve("demo").model_copy(update={"generate": GenerateConfig(**config)})
    return phase_jobs.generate_job(Lineage(runs, "tale", settings), 0, version_of(model), prompts)


def test_a_missing_environment_is_reported_before_anything_runs(tmp_path, tiny_model):
    config = resolve("demo", sets=["generate.engine=vllm", "generate.vllm.python=/no/such/python"])
    with pytest.raises(ConfigError, match="run `make vllm`"):
        check_requirements(config)
    job = job_of(tmp_path, tiny_model, engine="vllm", vllm=VllmConfig(python="/no/such/python"))
    with pytest.raises(ConfigError, match="run `make vllm`"):
        run_phase(job, GenerationBatch)


def test_the_path_and_memory_of_vllm_are_not_part_of_the_identity(tmp_path, tiny_model):
    vllm_job = job_of(tmp_path, tiny_model, engine="vllm")
    moved = job_of(
        tmp_path, tiny_model, engine="vllm", vllm=VllmConfig(python="/elsewhere", speed={"memory_fraction": 0.5})
    )
    other = job_of(tmp_path, tiny_model, engine="transformers")
    identities = [identity.identity_of(job) for job in (vllm_job, moved, other)]
    assert identities[0] == identities[1]
    assert identities[0]["config"]["engine"] == "vllm"
    assert identities[2]["config"]["engine"] == "transformers"


def test_auto_is_vllm_where_gpu_and_environment_are_there(tmp_path, tiny_model, monkeypatch):
    there = VllmConfig(python=shutil.which("sh"))
    auto, cpu = GenerateConfig(vllm=there), ModelConfig(device="cpu")
    monkeypatch.setattr(interpreter, "sees_gpu", lambda: True)
    assert interpreter.choose_engine(auto, ModelConfig()) == "vllm"
    assert interpreter.choose_engine(auto, cpu) == "transformers"
    assert (
        interpreter.choose_engine(GenerateConfig(vllm=VllmConfig(python="/no/such")), ModelConfig()) == "transformers"
    )
    monkeypatch.setattr(interpreter, "sees_gpu", lambda: False)
    assert interpreter.choose_engine(auto, ModelConfig()) == "transformers"
    # Published answers name their engine, and a run that continues elsewhere keeps it.
    job = job_of(tmp_path, tiny_model, engine="vllm", vllm=there)
    built = {"identity": identity.identity_of(job), "record": {}, "usage": {}, "files": {}}
    job.output.mkdir(parents=True)
    files.dump_json(job.output / identity.MANIFEST, built)
    assert interpreter.choose_engine(auto, ModelConfig(), job.output) == "vllm"


def test_a_vllm_job_is_started_with_its_own_interpreter(tmp_path, tiny_model):
    for engine, python in (("vllm", shutil.which("sh")), ("transformers", sys.executable)):
        job = job_of(tmp_path, tiny_model, engine=engine, vllm=VllmConfig(python=shutil.which("sh")))
        path = launch.write_job(job)
        assert launch.command(path, "generate")[0] == python
        assert launch.command(path, "join")[0] == python
