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
from tests.support.lineages.small_jobs import CPU, version_of
from tests.support.servers.endpoint import Reply

VLLM = interpreter.vllm_python(VllmConfig())
needs_vllm = pytest.mark.skipif(not VLLM.exists(), reason=f"no vLLM at {VLLM}: make vllm installs it")

CATEGORIES = ("writing", "math", "stem")
PER_CATEGORY = 4
QUESTIONS = 3 * PER_CATEGORY


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """MT-Bench's files: four questions in each of three categories, with references for stem and three of math."""
    folder = tmp_path_factory.mktemp("mt-bench")
    rows = [
        {"question_id": 81 + i, "category": CATEGORIES[i // PER_CATEGORY], "turns": [f"Q{81 + i}.1?", f"Q{81 + i}.2?"]}
        for i in range(QUESTIONS)
    ]
    references = [
        {"question_id": row["question_id"], "choices": [{"index": 0, "turns": ["REF one", "REF two"]}]}
        for row in rows[PER_CATEGORY + 1 :]  # also those of stem, which must not appear in any prompt
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
def human_answers(tmp_path_factory) -> PromptSet:
    """Ten held-out prompts with a human response each."""
    folder, tokenizer = tmp_path_factory.mktemp("prompts"), character_tokenizer()
    texts = [f"say {i}" for i in range(10)]
    columns = {
        "id": [f"{i:016x}" for i in range(10)],
        "prompt": texts,
        "response": [f"PERSON {i}" for i in range(10)],
        "prompt_ids": pa.array([[1, *tokenizer(text)["input_ids"]] for text in texts], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), folder / "held_out.parquet")
    return PromptSet(path=folder, digest="0" * 64, source="x", revision=None, rows=0, held_out=10, drops={})


def mt_bench_job(output: Path, data: Path | None, model: Path, url: str, **fields) -> MtBenchJob:
    """A job whose judge is at `url`. Keyword arguments are fields of the job, or settings of its configurations."""
    config = {"max_new_tokens": 12, "data": data, **fields.pop("config", {})}
    judge = {"base_url": url, "model": "tiny-judge", "speed": {"retries": 2}, **fields.pop("judge", {})}
    generate = {"engine": "transformers", "max_new_tokens": 10, **fields.pop("generate", {})}
    return MtBenchJob(
        output=output,
        suite=fields.pop("suite", "mt-bench"),
        config=MtBenchConfig(**config),
        judge=JudgeConfig(**judge),
        generate=GenerateConfig(**generate),
        model=CPU,
        chat=ChatConfig(template="plain"),
        player=version_of(model, fields.pop("t", 0)),
        speed=fields.pop("speed", {"answers": output.parent / "answers"}),
        **fields,
    )


def run_mt_bench(job: MtBenchJob) -> EvalReport:
    """Run the phase in this process."""
    return phase.execute(job, EvalReport, run, progress.Progress(quiet=True))


def rows_of(report: EvalReport, name: str) -> list[dict]:
    """The rows of one of the report's Parquet files."""
    return pq.read_table(report.path / f"{name}.parquet").to_pylist()


def items_of(report: EvalReport) -> dict[str, dict[str, float]]:
    """The value of each item, by task."""
    items: dict[str, dict[str, float]] = {}
    for row in rows_of(report, "items"):
        items.setdefault(row["task"], {})[row["item"]] = row["value"]
    return items


def last_message(body: dict) -> str:
    """The text of a request's last message: the judge's prompt."""
    return body["messages"][-1]["content"]


def expected_grade(id: int, turn: int) -> int:
    """The grade that `grade_by_question` gives."""
    return 1 + (3 * id + 5 * turn) % 10


def grade_by_question(body, _before) -> Reply:
    """Grade by the question and the turn."""
    (id, turn) = re.findall(r"Q(\d+)\.([12])\?", last_message(body))[-1]
    return Reply(text=f"So. [[{expected_grade(int(id), int(turn))}]]")


def choosing_judge(choose):
    """A judge that chooses between two answers as `choose` does, and grades every single answer with a 5."""

    def reply(body, _before):
        text = last_message(body)
        if "assistant B" not in text:
            return Reply(text="[[5]]")
        fence = text.splitlines()[-1].removesuffix(" end")
        blocks = re.split(rf"{fence} (.*)\n", f"{text}\n")[1:]
        last = {title: answer.removesuffix("\n") for title, answer in zip(blocks[::2], blocks[1::2], strict=False)}
        return Reply(text=f"[[{choose(last['the answer of assistant A'], last['the answer of assistant B'])}]]")

    return reply
