"""Phase `prompts`: read the SFT data, tokenise it, split it: `python -m spin_core.phases.prompts JOB`.

Writes `train.parquet` and `held_out.parquet`.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

from spin_core.config.model import ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.files.example_files import ExampleFile
from spin_core.data.prompts import (
    ExampleLoader,
    check_context,
    divide_rows,
    load_examples,
    load_source,
    no_prompt_left,
    write_examples,
)
from spin_core.data.sources import DEMO, demo_rows
from spin_core.data.tokenizer import load_tokenizer, model_ends
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import PromptSet

log = logging.getLogger("spin_core")


def run(job: PromptsJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Read, tokenise, split and write."""
    check_context(job)
    tokenizer = load_tokenizer(job.tokenizer.path, ModelConfig(trust_remote_code=job.trust_remote_code))
    renderer = Renderer(tokenizer, job.chat, model_ends(job.tokenizer.path))
    for end in renderer.ends.strings:
        log.warning(
            "the tokenizer has no token for %r, the chat template's end of turn: answers end where this text ends. "
            "If the model was trained with such a token, set model.tokenizer to the tokenizer that has it",
            end,
        )
    build = _build_demo if job.config.source.path == DEMO else _build_from_rows
    fields = build(job, renderer, scratch, progress)
    log.info(
        "%d training prompts (%d responses cut at %d tokens), %d held out",
        fields["rows"],
        fields.pop("cut"),
        job.max_new_tokens,
        fields["held_out"],
    )
    drops = dict(sorted((+fields.pop("drops")).items()))
    return {
        "source": job.config.source.path,
        **fields,
        "drops": drops,
        "stop_ids": renderer.ends.ids,
        "stop_strings": renderer.ends.strings,
    }


def _build_demo(job: PromptsJob, renderer: Renderer, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Write the examples of the built-in source, which has a split of its own."""
    rows, held_out_rows = demo_rows(job.config.sample, job.config.held_out, job.seed)
    # Repeated rows are draws from a known distribution. Without the repeats it would be another distribution.
    train, drops = load_examples(job, DEMO, rows, renderer, progress, keep_duplicates=True)
    held_out, _ = load_examples(job, DEMO, held_out_rows, renderer, progress)
    write_examples(scratch / "train.parquet", train)
    write_examples(scratch / "held_out.parquet", held_out)
    cut = sum(example.finish_reason == "length" for example in train)
    return {"revision": None, "rows": len(train), "held_out": len(held_out), "cut": cut, "drops": drops}


def _build_from_rows(job: PromptsJob, renderer: Renderer, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Write the examples of a source. All are on disk before it is known which to train on."""
    config = job.config
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        everything = candidates = ExampleFile(Path(folder) / "all.parquet")
        with everything:
            loaded = load_source(config, config.source, ExampleLoader(job, renderer), everything, progress)
        if config.held_out_source is not None:
            candidates = ExampleFile(Path(folder) / "held_out.parquet")
            with candidates:
                load_source(config, config.held_out_source, ExampleLoader(job, renderer), candidates, progress)
        division = divide_rows(job, everything.ids, None if candidates is everything else candidates.ids)
        drops = loaded.drops + division.drops
        if not division.train:
            raise no_prompt_left(config.source.path, drops)
        everything.copy(division.train, scratch / "train.parquet")
        candidates.copy(division.held_out, scratch / "held_out.parquet")
    return {
        "revision": loaded.revision,
        "rows": len(division.train),
        "held_out": len(division.held_out),
        "cut": sum(everything.is_cut[row] for row in division.train),
        "drops": drops,
        "unused_columns": loaded.unused_columns,
    }


if __name__ == "__main__":
    main(PromptsJob, PromptSet, run)
