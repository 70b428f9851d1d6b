"""Progress of a generation over all its workers."""

import time

import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin_core.inference.shards import Shards, shard_name
from spin_core.inference.tally import Tally
from spin_core.runtime.progress import Progress
from tests.support.lineages.generation import EOS, generate_job, prompt_set, run_generation


def test_rates_are_of_all_workers_and_give_the_remaining_time(tmp_path, tiny_model, monkeypatch):
    prompts = prompt_set(tmp_path / "prompts", rows=60, stop_ids=(EOS,))
    generated = run_generation(generate_job(tmp_path / "generations", tiny_model, prompts, shard_size=3))
    (tmp_path / "final").mkdir()
    (tmp_path / "work").mkdir()
    shards = Shards(tmp_path / "final", tmp_path / "work", 20)
    tables = [pq.read_table(generated.path / f"{shard_name(number)}.parquet") for number in range(20)]
    tally = Tally(shards, lambda number: tables[number]["id"].to_pylist(), Progress(total=60))
    for number in range(5):  # finished before the clock starts, so not part of the rates
        shards.path(number).write_bytes((generated.path / shards.path(number).name).read_bytes())
    tokens = sum(pc.sum(pc.list_value_length(table["response_ids"])).as_py() for table in tables[:5])
    tally.update()
    assert tally.rates(15, tokens) == {}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tally.start_clock()
    now += 2.0
    assert tally.rates(25, tokens + 400) == {"tokens/s": 200.0, "answers/s": 5.0, "seconds left": 7}
