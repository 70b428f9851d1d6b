"""Held-out prompts of the demo on disk."""

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.data import demo
from spin_core.store import identity
from spin_core.store.records import PromptSet


def prompt_set(folder: Path, prompts: list[str]) -> PromptSet:
    """Held-out prompts of the demo with a response each."""
    tokenizer, rng = demo.build_tokenizer(), Random(0)
    responses = [demo.sample(prompt, rng) for prompt in prompts]
    columns = {
        "id": [f"{int(prompt[:-1]):016x}" for prompt in prompts],
        "prompt": prompts,
        "response": responses,
        "prompt_ids": [[1, *tokenizer(prompt)["input_ids"]] for prompt in prompts],
        "response_ids": [[*tokenizer(response)["input_ids"], 2] for response in responses],
    }
    for name in ("prompt_ids", "response_ids"):
        columns[name] = pa.array(columns[name], pa.list_(pa.int32()))
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "held_out.parquet")
    digest = identity.digest_folder(folder)[0]
    return PromptSet(
        path=folder, digest=digest, source="demo", revision=None, rows=0, held_out=len(prompts), drops={}, stop_ids=(2,)
    )
