"""Memory and time of the phases that handle data, by the number of rows: `make bench-scale`.

Makes synthetic rows of some 1.6 kB, lets the real phases work on them in processes of their own, and prints for each
its peak memory and CPU seconds. No model runs: answers are other rows' responses, scores are random. So of
generation only the counting of its answers is measured, and of scoring and training only what they do with their data.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BENCH_SIZES = (20_000, 200_000, 1_000_000)
SHARD = 512
SEED = 0


class Cost(NamedTuple):
    """What one process took."""

    mebibytes: float
    """The peak of its memory."""
    seconds: float
    """CPU time."""


_WAIT = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)
"""
"""Waits in a small process: the kernel counts a parent's memory as its child's."""


def measure(*command: str) -> Cost:
    """Run a command, which must succeed."""
    waited = subprocess.run([sys.executable, "-c", _WAIT, *command], stdout=subprocess.PIPE, text=True, check=True)
    status, mebibytes, seconds = waited.stdout.split()
    if status != "0":
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return Cost(float(mebibytes), float(seconds))


def source_rows(count: int) -> Iterator[dict[str, str]]:
    """Rows with a prompt of some 400 characters and a response of some 1,200, all different."""
    random = np.random.default_rng(SEED)
    words = ["".join(random.choice(list("abcdefghijklmnoprstuvw"), random.integers(2, 9))) for _ in range(3000)]
    phrases = [" ".join(random.choice(words, 14)) for _ in range(5000)]
    for number in range(count):
        chosen = [phrases[index] for index in random.integers(0, len(phrases), 20)]
        yield {"prompt": f"Question {number}: " + ". ".join(chosen[:5]), "response": ". ".join(chosen[5:])}


def make_model(folder: Path) -> Path:
    """A model's folder with a configuration and a tokenizer; no phase here reads weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    trainer.special_tokens = ["<pad>", "</s>"]
    texts = (text for row in source_rows(500) for text in row.values())
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    LlamaConfig(vocab_size=3000, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=4096).save_pretrained(folder)  # fmt: skip
    return folder


class Bench:
    """The phases of one iteration on some rows, in a folder."""

    def __init__(self, folder: Path, rows: int) -> None:
        from spin_core.config.model import ModelConfig
        from spin_core.store.records import ModelVersion

        self.folder, self.rows = folder, rows
        folder.mkdir(parents=True)
        self.opponent = ModelVersion(path=make_model(folder / "model"), digest="0" * 64, t=0, parent=None)
        self.model = ModelConfig(device="cpu")
        self.costs: dict[str, Cost] = {}

    def run(self) -> dict[str, Cost]:
        """Cost by phase."""
        prompts = self._prompts()
        generations = self._generations(prompts)
        pairs = self._pairs(prompts, generations)
        self._reading(pairs)
        return self.costs

    def _phase(self, job: Any, record: Any) -> Any:
        from spin_core.store import artifacts

        path = self.folder / f"{job.phase}.json"
        path.write_text(job.model_dump_json())
        self.costs[job.phase] = measure("-m", f"spin_core.phases.{job.phase}", str(path))
        return artifacts.read_record(job.output, record)

    def _prompts(self) -> Any:
        from spin_core.config.data import PromptsConfig, SourceConfig
        from spin_core.config.model import ChatConfig
        from spin_core.store.jobs import PromptsJob
        from spin_core.store.records import PromptSet

        source = self.folder / "rows.jsonl"
        with source.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in source_rows(self.rows))
        config = PromptsConfig(source=SourceConfig(path=str(source)), held_out=300, max_prompt_tokens=1024)
        job = PromptsJob(output=self.folder / "prompts", config=config, chat=ChatConfig(template="plain"),
                         tokenizer=self.opponent, max_new_tokens=2048)  # fmt: skip
        return self._phase(job, PromptSet)

    def _generations(self, prompts: Any) -> Any:
        """Put all shards where an interrupted generation leaves them, so that the phase only counts."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from spin_core.config.generate import GenerateConfig
        from spin_core.data.files.answer_files import SCHEMA
        from spin_core.inference.shards import shard_name
        from spin_core.runtime.phase import workspace
        from spin_core.store.identity import identity_of
        from spin_core.store.jobs import GenerateJob
        from spin_core.store.records import GenerationBatch

        job = GenerateJob(output=self.folder / "generations", t=0, config=GenerateConfig(shard_size=SHARD),
                          model=self.model, opponent=self.opponent, prompts=prompts)  # fmt: skip
        scratch = workspace(job.output, identity_of(job))
        with pq.ParquetFile(prompts.path / "train.parquet") as file:
            for number, batch in enumerate(file.iter_batches(SHARD)):
                others = pa.array([*range(1, len(batch)), 0])
                answers = batch.select(["response", "response_ids", "finish_reason"]).take(others)
                zeros = pa.array([0] * len(batch), pa.int32())
                columns = [batch["id"], zeros, zeros, *answers.columns]
                pq.write_table(pa.table(columns, schema=SCHEMA), scratch / f"{shard_name(number)}.parquet")
        return self._phase(job, GenerationBatch)

    def _pairs(self, prompts: Any, generations: Any) -> Any:
        from spin_core.config.data import PairsConfig
        from spin_core.store.jobs import PairsJob
        from spin_core.store.records import PairDataset

        job = PairsJob(output=self.folder / "pairs", t=0, config=PairsConfig(), prompts=prompts,
                       generations=generations, previous=None)  # fmt: skip
        return self._phase(job, PairDataset)

    def _reading(self, pairs: Any) -> None:
        """What scoring and training do with their data, without a model."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from spin_core.config.train import TrainConfig
        from spin_core.store.jobs import TrainJob
        from spin_core.store.records import ScoredPairs

        scores = self.folder / "scores"
        scores.mkdir()
        zeros = np.zeros(pairs.rows, np.float32)
        pq.write_table(pa.table({"real_logps": zeros, "generated_logps": zeros}), scores / "logps.parquet")
        record = ScoredPairs(path=scores, digest="0" * 64, pairs=pairs.digest, opponent=self.opponent.digest)
        job = TrainJob(output=self.folder / "train", weights=self.folder / "weights", t=0,
                       config=TrainConfig(held_out=0.01), model=self.model, start=self.opponent, pairs=pairs,
                       scores=record)  # fmt: skip
        path = self.folder / "train.json"
        path.write_text(job.model_dump_json())
        for part in ("score", "train"):
            self.costs[f"{part}, its data"] = measure(__file__, "--read", part, str(path))


def read(part: str, path: Path) -> None:
    """Read the data as scoring or training does, in this process; torch is loaded as it is there."""
    from spin_core.data.batches import DataOrder
    from spin_core.data.files.token_file import TokenFile
    from spin_core.phases import score
    from spin_core.phases import train as _  # so that the same modules are in memory
    from spin_core.runtime.ranks import Ranks
    from spin_core.store.jobs import TrainJob
    from spin_core.training import held_out
    from spin_core.training.train_data import batch_of, batches, read_data

    job = TrainJob.model_validate_json(path.read_text())
    assert job.pairs is not None
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if part == "score":
            tokens = TokenFile.write(Path(folder), job.pairs.path / "pairs.parquet", "prompt_ids", *score.SIDES)
            _, first = score.distinct(tokens)
            responses = score.Responses(tokens, first)
            for begin in range(0, len(first), score.BLOCK):
                responses.read(begin, begin + score.BLOCK)
            return
        data = read_data(job, Path(folder))
        items, held = held_out.split(data, job.config.held_out, job.held_out_seed)
        order = DataOrder(items, job.config.batch_size, job.seed)
        lay_out = partial(batch_of, data, ranks=Ranks(), max_tokens=16384, packed=True, prefix_sharing=True)
        for _batch in batches(lambda step: lay_out(order.batch(step)), 0, 50, ahead=True):
            pass
        for _micro_batch in lay_out(held).micro_batches:
            pass


def show(costs: dict[int, dict[str, Cost]]) -> None:
    """Print the table: memory and time of each phase by the number of rows."""
    from rich.console import Console
    from rich.table import Table

    smallest = min(costs)
    headers = [f"{rows:,} rows: {figure}" for rows in costs for figure in ("MiB", "ratio", "CPU s", "µs a row")]
    table = Table("phase", *headers)
    for name in costs[smallest]:
        cells = []
        for rows, by_phase in costs.items():
            cost, base = by_phase[name], costs[smallest][name]
            cells += [f"{cost.mebibytes:,.0f}", f"{cost.mebibytes / base.mebibytes:.2f}", f"{cost.seconds:,.0f}",
                      f"{cost.seconds / rows * 1e6:,.0f}"]  # fmt: skip
        table.add_row(name, *cells)
    Console(width=200).print(table)


def main() -> None:
    """Measure each size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=BENCH_SIZES)
    parser.add_argument("--folder", type=Path, help="where files are written, 12 GB for a million rows")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read[0], Path(arguments.read[1]))
        return
    costs = {}
    for rows in sorted(arguments.rows):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            costs[rows] = Bench(Path(folder) / "bench", rows).run()
        show(costs)


if __name__ == "__main__":
    main()
