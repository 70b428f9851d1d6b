"""`spin serve`: OpenAI's own client talks to a version behind each server, with the token and not without."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest

from spin_core.runtime.process import children_of, is_running
from tests.support.lineages.mt_bench_jobs import needs_vllm
from tests.support.lineages.talking import build_talking_lineage
from tests.support.models.vllm_models import save_model
from tests.support.servers.served import free_port, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    lineage = build_talking_lineage(tmp_path_factory.mktemp("talking"))
    save_model(lineage.player(1).path)  # with heads as wide as vLLM's kernels want them
    return lineage


@contextlib.contextmanager
def serving(lineage, *arguments: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`spin serve tale 2` in its own process: its port, once it answers, and its process."""
    port = free_port()
    command = [sys.executable, "-m", "flows.command_line", "serve", "tale", "2", "--port", str(port), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with subprocess.Popen(
        [*command, "--runs", str(lineage.runs)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            printed = ""
            while "answers at" not in printed:
                line = process.stdout.readline()
                assert line, printed + (lineage.runs / ".prefect" / "serve.log").read_text()[-3000:]
                printed += line
            yield port, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def client(lineage, port: int, token: str = "") -> openai.OpenAI:
    file = lineage.runs / ".prefect" / "serve-token"
    assert file.stat().st_mode & 0o077 == 0
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=token or file.read_text().strip(), max_retries=0
    )


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_openais_client_talks_to_a_version(talking, engine):
    with serving(talking, "--engine", engine) as (port, process):
        chat = client(talking, port).chat.completions
        question = [{"role": "user", "content": "hello"}]
        answers = [
            chat.create(model="tale-2", messages=question, temperature=0, max_tokens=8).choices[0].message.content
            for _ in range(2)
        ]
        assert answers[0] == answers[1]
        assert 0 < len(answers[0]) <= 8
        pieces = chat.create(model="tale-2", messages=question, temperature=0, max_tokens=8, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == answers[0]
        assert [model.id for model in client(talking, port).models.list()] == ["tale-2"]
        with pytest.raises(openai.AuthenticationError):
            client(talking, port, "wrong").models.list()
        started = children_of(process.pid)
        assert started
    assert process.returncode == 0
    wait_for(lambda: not any(map(is_running, started)))
