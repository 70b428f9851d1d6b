"""Phase `prompts`: read the SFT data, split it, tokenise it: `python -m spin_core.phases.prompts JOB`."""

import logging
from pathlib import Path
from typing import Any

from spin_core.data.chat import Renderer
from spin_core.data.prompts import check_context, divide, load, refuse_empty, trust, write
from spin_core.data.sources import DEMO, demo_rows, read_rows
from spin_core.data.tokenizer import load_tokenizer
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import PromptSet

log = logging.getLogger("spin_core")


def run(job: PromptsJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Read, tokenise, split and write."""
    check_context(job)
    config = job.config
    renderer = Renderer(load_tokenizer(job.tokenizer.path, trust(job)), job.chat)
    revision = None
    if config.source.path == DEMO:
        rows, other_rows = demo_rows(config.sample, config.held_out, job.seed)
        # Repeats are draws from a known distribution, and without them it would be another one.
        train, drops = load(job, DEMO, rows, renderer, progress, repeats=True)
        held_out, _ = load(job, DEMO, other_rows, renderer, progress)
    else:
        rows, revision = read_rows(config.source)
        examples, drops = load(job, config.source.path, rows, renderer, progress)
        train, held_out, moved = divide(job, examples, renderer, progress)
        drops += moved
    if not train:
        refuse_empty(config.source.path, drops)
    write(scratch / "train.parquet", train)
    write(scratch / "held_out.parquet", held_out)
    cut = sum(example.finish_reason == "length" for example in train)
    log.info(
        "%d training prompts (%d responses cut at %d tokens), %d held out",
        len(train),
        cut,
        job.max_new_tokens,
        len(held_out),
    )
    return {
        "source": config.source.path,
        "revision": revision,
        "rows": len(train),
        "held_out": len(held_out),
        "drops": dict(sorted((+drops).items())),
        "stop_ids": renderer.stop_ids,
    }


if __name__ == "__main__":
    main(PromptsJob, PromptSet, run)
