"""MT-Bench in miniature: twelve questions, tiny random models, jobs on them, and judges that answer by rule."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.evaluate import JudgeConfig, MtBenchConfig
from spin_core.config.generate import GenerateConfig, VllmConfig
from spin_core.config.model import ChatConfig
from spin_core.evaluation.mt_bench import retries
from spin_core.phases.mt_bench import run
from spin_core.runtime import interpreter, phase, progress
from spin_core.store.evaluation_jobs import MtBenchJob
from spin_core.store.records import EvalReport, PromptSet
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.small_game import CPU, version_of
from tests.support.servers.endpoint import Reply

VLLM = interpreter.vllm_python(VllmConfig())
needs_vllm = pytest.mark.skipif(not VLLM.exists(), reason=f"no vLLM at {VLLM}: make vllm installs it")

CATEGORIES = ("writing", "math", "stem")
EACH = 4
QUESTIONS = 3 * EACH


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder in MT-Bench's form: four questions in each of three categories, one of math without a reference."""
    folder = tmp_path_factory.mktemp("mt-bench")
    rows = [
        {"question_id": 81 + i, "category": CATEGORIES[i // EACH], "turns": [f"Q{81 + i}.1?", f"Q{81 + i}.2?"]}
        for i in range(QUESTIONS)
    ]
    references = [
        {"question_id": row["question_id"], "choices": [{"index": 0, "turns": ["REF one", "REF two"]}]}
        for row in rows[EACH + 1 :]  # those of stem too, which no prompt must show
    ]
    for name, table in (("question", rows), ("reference_answer_gpt-4", references)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two random models with a vocabulary of characters."""
    root = tmp_path_factory.mktemp("models")
    return [save_tiny_model(root / str(seed), character_tokenizer(), seed) for seed in range(2)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Milliseconds between attempts instead of seconds."""
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.02)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> PromptSet:
    """Ten held-out prompts with a human response each."""
    folder, tokenizer = tmp_path_factory.mktemp("prompts"), character_tokenizer()
    asked = [f"say {i}" for i in range(10)]
    columns = {
        "id": [f"{i:016x}" for i in range(10)],
        "prompt": asked,
        "response": [f"PERSON {i}" for i in range(10)],
        "prompt_ids": pa.array([[1, *tokenizer(text)["input_ids"]] for text in asked], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), folder / "held_out.parquet")
    return PromptSet(path=folder, digest="0" * 64, source="x", revision=None, rows=0, held_out=10, drops={})


def job_of(output: Path, data: Path | None, model: Path, url: str, **fields) -> MtBenchJob:
    config = {"max_new_tokens": 12, "data": data, **fields.pop("config", {})}
    judged = {"base_url": url, "model": "tiny-judge", "speed": {"retries": 2}, **fields.pop("judge", {})}
    generate = {"engine": "transformers", "max_new_tokens": 10, **fields.pop("generate", {})}
    return MtBenchJob(
        output=output,
        suite=fields.pop("suite", "mt-bench"),
        config=MtBenchConfig(**config),
        judge=JudgeConfig(**judged),
        generate=GenerateConfig(**generate),
        model=CPU,
        chat=ChatConfig(template="plain"),
        player=version_of(model, fields.pop("t", 0)),
        speed=fields.pop("speed", {"answers": output.parent / "answers"}),
        **fields,
    )


def do(job: MtBenchJob) -> EvalReport:
    return phase.execute(job, EvalReport, run, progress.Progress(quiet=True))


def rows_of(report: EvalReport, name: str) -> list[dict]:
    return pq.read_table(report.path / f"{name}.parquet").to_pylist()


def items_of(report: EvalReport) -> dict[str, dict[str, float]]:
    items: dict[str, dict[str, float]] = {}
    for row in rows_of(report, "items"):
        items.setdefault(row["task"], {})[row["item"]] = row["value"]
    return items


def shown(body: dict) -> str:
    return body["messages"][-1]["content"]


def grade_of(id: int, turn: int) -> int:
    return 1 + (3 * id + 5 * turn) % 10


def grades(body, _before) -> Reply:
    """Grade by the question and the turn."""
    (id, turn) = re.findall(r"Q(\d+)\.([12])\?", shown(body))[-1]
    return Reply(text=f"So. [[{grade_of(int(id), int(turn))}]]")


def likes(wanted):
    """Choose between two answers as `wanted` does; grade every single answer with a 5."""

    def reply(body, _before):
        text = shown(body)
        if "assistant B" not in text:
            return Reply(text="[[5]]")
        fence = text.splitlines()[-1].removesuffix(" end")
        blocks = re.split(rf"{fence} (.*)\n", f"{text}\n")[1:]
        last = {title: answer.removesuffix("\n") for title, answer in zip(blocks[::2], blocks[1::2], strict=False)}
        return Reply(text=f"[[{wanted(last['the answer of assistant A'], last['the answer of assistant B'])}]]")

    return reply
