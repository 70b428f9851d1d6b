"""The generate phase, on a tiny real model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spin_core.config.data import PairsConfig, PromptsConfig, SourceConfig
from spin_core.config.generate import GenerateConfig
from spin_core.config.model import ChatConfig
from spin_core.data.answer_statistics import answer_statistics
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ModelError, Stopped
from spin_core.inference.answering import answer_requests, requests_for
from spin_core.inference.engine import Answer, Request
from spin_core.inference.factory import make_engine
from spin_core.inference.transformers_engine import TransformersEngine
from spin_core.phases import pairs as make_pairs
from spin_core.phases import prompts as make_prompts
from spin_core.phases.generate import run
from spin_core.runtime import phase
from spin_core.runtime import progress as runtime_progress
from spin_core.store import artifacts
from spin_core.store.jobs import GenerateJob, PairsJob, PromptsJob
from spin_core.store.records import GenerationBatch, PairDataset, PromptSet
from tests.support.helpers import character_tokenizer, data_folder, save_tiny_model
from tests.support.lineages.generation import END_OF_TURN, EOS, generate_job, prompt_set, rows_of, run_generation
from tests.support.lineages.small_jobs import CPU, version_of


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return prompt_set(tmp_path_factory.mktemp("prompts") / "prompts")


def answers_of(record: GenerationBatch) -> list[tuple]:
    return [(row["id"], tuple(row["response_ids"])) for row in rows_of(record)]


def test_every_prompt_is_answered_once_in_order_and_counted(tmp_path, tiny_model, prompts):
    record = run_generation(generate_job(tmp_path / "generations", tiny_model, prompts, t=1))
    rows = rows_of(record)
    assert [row["id"] for row in rows] == pq.read_table(prompts.path / "train.parquet")["id"].to_pylist()
    assert [pq.read_metadata(record.path / f"shard-{i:05d}.parquet").num_rows for i in range(4)] == [6, 6, 6, 2]
    assert (record.t, record.rows, record.shards) == (1, 20, 4)
    assert record.opponent == version_of(tiny_model).digest
    assert record.tokens == sum(len(row["response_ids"]) for row in rows)
    reasons = [row["finish_reason"] for row in rows]
    assert record.finish_reasons == {reason: reasons.count(reason) for reason in ("length", "stop")}
    assert min(record.finish_reasons.values()) > 0
    tables = pq.read_table(prompts.path / "train.parquet"), pa.Table.from_pylist(rows)
    assert record.statistics == answer_statistics(*([table] for table in tables), rows=20)
    assert artifacts.verify(record.path) == []


def test_answers_end_in_a_stop_token_unless_they_are_cut(tmp_path, tiny_model, prompts):
    tokenizer = load_tokenizer(tiny_model, CPU)
    for row in rows_of(run_generation(generate_job(tmp_path / "generations", tiny_model, prompts))):
        stopped = row["response_ids"][-1] in (EOS, END_OF_TURN)
        assert row["finish_reason"] == ("stop" if stopped else "length")
        assert stopped or len(row["response_ids"]) == 24
        assert not {EOS, END_OF_TURN} & set(row["response_ids"][:-1])
        text = row["response_ids"][:-1] if stopped else row["response_ids"]
        assert row["response"] == tokenizer.decode(text, skip_special_tokens=True)


def test_an_end_of_turn_that_is_text_ends_an_answer_and_is_not_in_its_text(tmp_path, tiny_model, prompts):
    tokenizer = load_tokenizer(tiny_model, CPU)
    prompts = prompts.model_copy(update={"stop_strings": ("e", "Q")})
    rows = rows_of(run_generation(generate_job(tmp_path / "generations", tiny_model, prompts)))
    ended = [row for row in rows if tokenizer.decode(row["response_ids"])[-1] in "eQ"]
    assert ended
    for row in rows:
        assert not {"e", "Q"} & set(row["response"])
    for row in ended:
        assert row["finish_reason"] == "stop"
        assert row["response"] == tokenizer.decode(row["response_ids"][:-1], skip_special_tokens=True)


def test_without_stop_ids_of_the_prompts_the_tokenizers_eos_ends_an_answer(tmp_path, tiny_model):
    record = run_generation(
        generate_job(tmp_path / "generations", tiny_model, prompt_set(tmp_path / "prompts", stop_ids=()))
    )
    assert {row["response_ids"][-1] for row in rows_of(record) if row["finish_reason"] == "stop"} <= {EOS}


def test_answers_depend_on_neither_shards_nor_batches(tmp_path, tiny_model, prompts):
    record = run_generation(generate_job(tmp_path / "one", tiny_model, prompts))
    other = run_generation(generate_job(tmp_path / "other", tiny_model, prompts, shard_size=9, batch_size=1))
    assert answers_of(record) == answers_of(other)


def test_the_same_job_gives_the_same_bytes_and_another_seed_or_iteration_does_not(tmp_path, tiny_model, prompts):
    job = generate_job(tmp_path / "one", tiny_model, prompts)
    first, same = run_generation(job), run_generation(job.model_copy(update={"output": tmp_path / "same"}))
    assert first.digest == same.digest
    seed = run_generation(generate_job(tmp_path / "seed", tiny_model, prompts, seed=1))
    later = run_generation(generate_job(tmp_path / "later", tiny_model, prompts, t=1))
    assert len({tuple(answers_of(record)) for record in (first, seed, later)}) == 3


def test_a_prompt_that_comes_twice_gets_two_answers(tmp_path, tiny_model, prompts):
    rows = rows_of(run_generation(generate_job(tmp_path / "generations", tiny_model, prompts)))
    assert rows[0]["id"] == rows[-1]["id"]
    assert rows[0]["response_ids"] != rows[-1]["response_ids"]


def test_a_small_model_answers_on_one_thread(tiny_model):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_engine(tiny_model, CPU, (EOS,), GenerateConfig(engine="transformers"), 0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_more_answers_a_prompt_do_not_change_the_first(tmp_path, tiny_model, prompts):
    single = run_generation(generate_job(tmp_path / "one", tiny_model, prompts))
    triple = run_generation(generate_job(tmp_path / "three", tiny_model, prompts, answers=3))
    assert (triple.rows, triple.answers, triple.shards, triple.opponents) == (60, 3, 4, {"0": 60})
    rows = rows_of(triple)
    assert [row["answer"] for row in rows] == [0, 1, 2] * 20
    assert {row["opponent"] for row in rows} == {0}
    assert [(row["id"], tuple(row["response_ids"])) for row in rows[::3]] == answers_of(single)
    by_prompt = [{tuple(row["response_ids"]) for row in rows[i : i + 3]} for i in range(0, 60, 3)]
    assert sum(map(len, by_prompt)) > 55  # they differ


TURNS = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "what people said"},
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_conversation_of_several_turns_is_answered_and_paired_as_one_prompt(tmp_path):
    model = save_tiny_model(tmp_path / "model", character_tokenizer(chat_template=TEMPLATE))
    source = tmp_path / "rows.jsonl"
    rows = [{"messages": [{**turn, "content": f"{i} {turn['content']}"} for turn in TURNS]} for i in range(6)]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prompts_job = PromptsJob(
        output=tmp_path / "prompts",
        config=PromptsConfig(source=SourceConfig(path=str(source)), held_out=1),
        chat=ChatConfig(),
        tokenizer=version_of(model),
        max_new_tokens=24,
    )
    prompts = phase.execute(prompts_job, PromptSet, make_prompts.run, runtime_progress.Progress())
    generations = run_generation(generate_job(tmp_path / "generations", model, prompts, answers=2))
    pairs_job = PairsJob(
        output=tmp_path / "pairs", t=0, config=PairsConfig(), prompts=prompts, generations=generations, previous=None
    )
    record = phase.execute(pairs_job, PairDataset, make_pairs.run, runtime_progress.Progress())
    tokenizer = load_tokenizer(model, CPU)
    pairs = pq.read_table(record.path / "pairs.parquet").to_pylist()
    assert len(pairs) == 10
    for pair in pairs:
        turns = json.loads(pair["messages"])
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        rendered = "".join(f"<{turn['role']}>{turn['content']}|" for turn in turns) + "<assistant>"
        assert tokenizer.decode(pair["prompt_ids"]).endswith(rendered)
        assert pair["real"].endswith("what people said")
        assert pair["generated_ids"] != pair["real_ids"]


def test_seeds_belong_to_the_prompt_and_not_to_its_position():
    ids = ["a", "b", "a"]
    seeds = [request.seed for request in requests_for(ids, [[1]] * 3, 0, "iteration 0")]
    assert len(set(seeds)) == 3
    moved = [request.seed for request in requests_for(["c", "a", "a", "b"], [[1]] * 4, 0, "iteration 0")]
    assert moved[1:] == [seeds[0], seeds[2], seeds[1]]
    # The numbers of a published run must not move: this is the digest of (0, "iteration 0", "a", 0).
    assert seeds[0] == 8605844640351311853


def test_timings_are_not_part_of_the_digest(tmp_path, tiny_model, prompts):
    record = run_generation(generate_job(tmp_path / "generations", tiny_model, prompts))
    lines = [json.loads(line) for line in (record.path / "log" / "timing.jsonl").read_text().splitlines()]
    assert [line["shard"] for line in lines] == [f"shard-{i:05d}" for i in range(4)]
    assert sum(line["tokens"] for line in lines) == record.tokens
    assert all(line["seconds"] > 0 for line in lines)


def test_progress_counts_prompts_and_tokens_a_second(tmp_path, tiny_model, prompts, capfd):
    run_generation(generate_job(tmp_path / "generations", tiny_model, prompts))
    messages = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith('{"done"')]
    assert messages[-1]["done"] == messages[-1]["total"] == 20
    assert messages[-1]["unit"] == "prompt"
    assert messages[-1]["metrics"]["tokens/s"] > 0


class StoppedWithin(runtime_progress.Progress):
    """Asked to stop as soon as there is an answer."""

    def show(self, done, **metrics):
        super().show(done, **metrics)
        if done:
            self.stop()


def test_a_stop_finishes_the_shard_and_the_next_run_continues(tmp_path, tiny_model, prompts):
    whole = run_generation(generate_job(tmp_path / "whole", tiny_model, prompts))
    job, progress = generate_job(tmp_path / "stopped", tiny_model, prompts), StoppedWithin()
    with pytest.raises(Stopped):
        phase.execute(job, GenerationBatch, run, progress)
    scratch = tmp_path / ".stopped.partial"
    assert [path.name for path in scratch.glob("shard-*")] == ["shard-00000.parquet"]
    before = (scratch / "shard-00000.parquet").stat()
    record = run_generation(job)
    after = (record.path / "shard-00000.parquet").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # read, not written again
    assert record.digest == whole.digest


def start(job: GenerateJob, folder: Path) -> subprocess.Popen:
    """The phase in its own process."""
    path = folder / "job.json"
    path.write_text(job.model_dump_json())
    command = [sys.executable, "-m", "spin_core.phases.generate", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_a_terminated_and_then_killed_run_ends_with_the_same_digest(tmp_path, tiny_model):
    # Many shards, so that each process is still running when its signal arrives.
    prompts = prompt_set(tmp_path / "prompts", rows=50, stop_ids=(EOS,))
    config = {"shard_size": 2, "max_new_tokens": 100}
    whole = run_generation(generate_job(tmp_path / "whole", tiny_model, prompts, **config))
    job = generate_job(tmp_path / "broken", tiny_model, prompts, **config)
    scratch = tmp_path / ".broken.partial"

    process = start(job, tmp_path)
    wait_for(scratch / "shard-00000.parquet", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.strip().splitlines()[-1].startswith("Stopped: ")
    terminated = len(list(scratch.glob("shard-*.parquet")))
    assert 1 <= terminated < whole.shards

    process = start(job, tmp_path)
    wait_for(scratch / f"shard-{terminated:05d}.parquet", process)
    process.kill()
    process.communicate(timeout=60)
    kept = {path.name: path.stat().st_mtime_ns for path in scratch.glob("shard-*.parquet")}
    assert terminated < len(kept) < whole.shards
    assert not job.output.exists()

    record = run_generation(job)
    assert record.digest == whole.digest
    assert {name: (record.path / name).stat().st_mtime_ns for name in kept} == kept
    assert artifacts.verify(record.path) == []


class Cramped:
    """An engine with room for two prompts at a time."""

    def __init__(self, batch_size, error=torch.OutOfMemoryError, room=2):
        self.batch_size, self.error, self.room = batch_size, error, room
        self.calls = []

    def answer(self, requests):
        self.calls.append((self.batch_size, len(requests)))
        for i, request in enumerate(requests):
            if self.batch_size > self.room and i == 3:
                raise self.error("DefaultCPUAllocator: can't allocate memory")
            yield i, Answer([request.seed], "length")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_when_memory_runs_out_the_batch_is_halved_and_answers_are_kept(error, caplog):
    engine = Cramped(8, error)
    answered = answer_requests(engine, [Request([1], seed) for seed in range(10)])
    assert [answer.response_ids for answer in answered] == [[seed] for seed in range(10)]
    assert engine.calls == [(8, 10), (4, 7), (2, 4)]
    assert "continuing with 2 prompts at a time" in caplog.text


def test_a_halved_batch_is_recorded_and_changes_no_answer(tmp_path, tiny_model, prompts, monkeypatch):
    whole = run_generation(generate_job(tmp_path / "whole", tiny_model, prompts, batch_size=8))
    forward = TransformersEngine.forward

    def cramped(self, cache, input_ids_NT, **inputs):
        if len(input_ids_NT) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, cache, input_ids_NT, **inputs)

    monkeypatch.setattr(TransformersEngine, "forward", cramped)
    record = run_generation(generate_job(tmp_path / "cramped", tiny_model, prompts, batch_size=8))
    assert answers_of(record) == answers_of(whole)
    assert (whole.smallest_batch, record.smallest_batch) == (None, 2)
    assert artifacts.read_record(record.path, GenerationBatch).smallest_batch == 2
    lines = [json.loads(line) for line in (record.path / "log" / "timing.jsonl").read_text().splitlines()]
    assert {(line["batch_size"], line["halved"]) for line in lines} == {(2, True)}


def test_a_batch_that_the_machine_chooses_changes_no_answer_and_no_folder(tmp_path, tiny_model, prompts):
    whole = run_generation(generate_job(tmp_path / "whole", tiny_model, prompts, batch_size=8))
    chosen = run_generation(generate_job(tmp_path / "chosen", tiny_model, prompts, batch_size="auto"))
    assert answers_of(chosen) == answers_of(whole)
    lines = [json.loads(line) for line in (chosen.path / "log" / "timing.jsonl").read_text().splitlines()]
    assert {line["batch_size"] for line in lines} == {128}
    assert not list(chosen.path.parent.glob(".*.work"))


def test_memory_for_less_than_one_prompt_is_an_error_for_the_user():
    with pytest.raises(ModelError, match="one prompt at a time"):
        answer_requests(Cramped(4, room=0), [Request([1], seed) for seed in range(10)])


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    engine = Cramped(8, ValueError)
    with pytest.raises(ValueError, match="allocate"):
        answer_requests(engine, [Request([1], seed) for seed in range(10)])
    assert engine.batch_size == 8


def test_the_real_small_model_answers_real_stories():
    folder = data_folder("models", "babyllama-105")
    with data_folder("tinystories", "val.jsonl").open(encoding="utf-8") as file:
        stories = [json.loads(file.readline())["text"] for _ in range(8)]
    tokenizer = load_tokenizer(folder, CPU)
    config = GenerateConfig(engine="transformers", max_new_tokens=40, temperature=0.5, batch_size=4)
    engine = make_engine(folder, CPU, (tokenizer.eos_token_id,), config, 0)
    prompts = [tokenizer(story[:60].replace("\n", " "))["input_ids"] for story in stories]
    answered = answer_requests(engine, requests_for([str(i) for i in range(8)], prompts, 0, "test"))
    letters = "".join(tokenizer.batch_decode([answer.response_ids for answer in answered], skip_special_tokens=True))
    real_words = sum(word in " ".join(stories) for word in letters.split())
    assert real_words > 0.5 * len(letters.split())  # it writes words, not letters
