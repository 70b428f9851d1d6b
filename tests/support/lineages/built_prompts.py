"""Runs phase `prompts` on a few rows."""

import json

import pyarrow.parquet as pq

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.model import ChatConfig
from spin_core.phases import prompts
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import ModelVersion


def rows_of(count):
    return [{"prompt": f"Count to {i}", "response": f"{i}!"} for i in range(count)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def job_of(model, source, *, chat="plain", max_new_tokens=50, seed=0, held_out_source=None, **config):
    sources = {"source": SourceConfig(path=str(source))}
    if held_out_source:
        sources["held_out_source"] = SourceConfig(path=str(held_out_source))
    return PromptsJob(
        output=model / "unused",
        seed=seed,
        config=PromptsConfig(**{"held_out": 1, "max_prompt_tokens": 100, **sources, **config}),
        chat=ChatConfig(template=chat),
        tokenizer=ModelVersion(path=model, digest="0" * 64, t=0, parent=None),
        max_new_tokens=max_new_tokens,
    )


class BuiltPrompts:
    """What the phase made of some rows."""

    def __init__(self, model, folder, source, **kwargs):
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        if isinstance(source, list):
            source = write_jsonl(folder / "rows.jsonl", source)
        self.fields = prompts.run(job_of(model, source, **kwargs), scratch, Progress())
        self.train = pq.read_table(scratch / "train.parquet").to_pylist()
        self.held_out = pq.read_table(scratch / "held_out.parquet").to_pylist()
        self.drops = self.fields["drops"]
        self.bytes = [(scratch / name).read_bytes() for name in ("train.parquet", "held_out.parquet")]

    @property
    def pairs(self):
        """Prompts and responses of all rows, without order."""
        return sorted((row["prompt"], row["response"]) for row in self.train + self.held_out)
