"""A judge behind a server that others wrote: vLLM's own, with a real model that speaks."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_core.errors import ConfigError
from spin_core.runtime import launch
from spin_core.store.records import EvalReport
from tests.support.lineages.mt_bench_jobs import (
    VLLM,
    data,
    human_answers,
    models,
    mt_bench_job,
    needs_vllm,
    rows_of,
    run_mt_bench,
    short_pauses,
)
from tests.support.models.judge_model import grade, save_judge

NAMES = ("Ann", "Ben", "Cat", "Dan", "Eve", "Fox")
PLACES = ("sea", "wood", "town", "farm", "hill", "lake")

__all__ = ["data", "human_answers", "models", "short_pauses"]

pytestmark = [pytest.mark.slow, needs_vllm]


@contextlib.contextmanager
def vllm_serving(model: Path, log: Path):
    """What `vllm serve` runs, on a free port of this machine. The CPU build's own command does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny-judge", "--dtype", "float32"]
    given += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    words = [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *given]
    with log.open("wb") as file:
        server = subprocess.Popen(
            words, stdout=file, stderr=file, env={**os.environ, **settings}, start_new_session=True
        )
        try:
            wait_until_up(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The address of a judge."""
    folder = tmp_path_factory.mktemp("judge")
    with vllm_serving(save_judge(folder / "model"), folder / "server.log") as url:
        yield url


def test_a_judge_behind_vllms_own_server_grades_and_compares(tmp_path, data, models, human_answers, url):
    brief = {"judge": {"max_tokens": 64}}
    base = run_mt_bench(mt_bench_job(tmp_path / "base", data, models[0], url, **brief))
    settings = {"pairwise_prompts": 4}
    job = mt_bench_job(
        tmp_path / "next", data, models[1], url, t=1, base=base, prompts=human_answers, config=settings, **brief
    )
    report = launch.run_phase(job, EvalReport)
    with pytest.raises(ConfigError, match=r"has no model 'gpt-9'.*tiny-judge"):
        run_mt_bench(mt_bench_job(tmp_path / "unknown", data, models[0], url, judge={"model": "gpt-9"}))
    with pytest.raises(ConfigError, match=r"rejects the request \(400 max_tokens=2048 cannot be greater"):
        run_mt_bench(mt_bench_job(tmp_path / "verbose", data, models[0], url))
    (folder := tmp_path / "long").mkdir()
    question = {"question_id": 1, "category": "stem", "turns": ["why " * 1200, "and why?"]}
    (folder / "question.jsonl").write_text(json.dumps(question))
    (folder / "reference_answer_gpt-4.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"exceed its context: lower evaluate.judge.max_tokens"):
        run_mt_bench(mt_bench_job(tmp_path / "long-answers", folder, models[0], url, **brief))
    for row in rows_of(report, "verdicts"):
        prompt = json.loads(row["prompt"])[-1]["content"]
        want = f"{grade(prompt):g}" if row["task"] == "grade" else "B"
        if row["task"] == "against-human":
            want = {"AB": "B", "BA": "A"}[row["order"]]
        assert (row["value"], row["model"], row["asked"]) == (want, "tiny-judge", 1)
        assert row["prompt_tokens"] > 50
        assert row["completion_tokens"] == 2
    assert report.scores["mt-bench/against-base"].value == 0.5  # it chooses B in both orders
    assert report.scores["mt-bench/against-human"].value == 0
    assert 3 < report.scores["mt-bench"].value < 9


@pytest.fixture(scope="module")
def judged_run(player_in, data, models, url, tmp_path_factory):
    """A run of two versions, to which a judge was added when it had ended, and then one more iteration."""
    folder = tmp_path_factory.mktemp("judged")
    player = player_in(folder / "runs")
    rows = [{"text": f"{name} went to the {place}. PERSON was there."} for name in NAMES for place in PLACES]
    (folder / "tales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model.path": str(models[0]),
        "prompts.source.path": str(folder / "tales.jsonl"),
        "prompts.held_out_source": None,
        "prompts.text_prompt_chars": 20,
        "prompts.sample": 24,
        "prompts.held_out": 6,
        "generate.max_new_tokens": 16,
        "evaluate.lm_eval.tasks": [],
        "gate.rule": "always",
        "controls": {},
    }
    sets = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    player.spin("run", "tinystories", "--lineage", "judged", "--iterations", "1", *sets, one_process=True)
    judged = {
        "evaluate.suites": ["mt-bench-quick"],
        "evaluate.judge": {"base_url": url, "model": "tiny-judge", "max_tokens": 64},
        "evaluate.mt_bench": {
            "data": str(data), "max_new_tokens": 12, "pairwise": ["previous", "base", "human"], "pairwise_prompts": 4
        },
    }  # fmt: skip
    sets = [f"--set={name}={json.dumps(value)}" for name, value in judged.items()]
    before = player.digests("judged")
    out = player.spin("next", "judged", *sets, one_process=True).stdout
    assert before.items() <= player.digests("judged").items()
    return player, out


def test_a_suite_that_is_added_later_is_scored_for_all_versions_and_shown_with_all_scores(judged_run):
    player, out = judged_run
    assert all(f"done    {place} · evaluate mt-bench-quick" in out for place in ("base", "iter 00", "iter 01"))
    assert "reused  base · evaluate self-play" in out
    board = json.loads((player.runs / "judged" / "leaderboard.json").read_text())
    parts = ["writing", "math", "stem", "turn-1", "turn-2", "against-human"]
    for row, wanted in zip(board["rows"], (parts, *[[*parts, "against-previous", "against-base"]] * 2), strict=True):
        scores = {name: score for name, score in row["scores"].items() if name.startswith("mt-bench-quick")}
        assert set(scores) == {"mt-bench-quick", *(f"mt-bench-quick/{part}" for part in wanted)}
        assert 3 <= scores["mt-bench-quick"]["value"] <= 9
        assert scores["mt-bench-quick/against-human"]["value"] == 0, "it likes what a PERSON says, in both orders"
    database = sqlite3.connect(player.runs / ".prefect" / "prefect.db")
    query = "select data from artifact where key = 'leaderboard-judged' order by created desc"
    ((page, *_), *_) = database.execute(query)
    report = (player.runs / "judged" / "report.html").read_text()
    for shown in (out, page, report):
        assert all(name in shown for name in ("mt-bench-quick", "writing", "turn-2", "against-human", "against-base"))
    database.close()
