"""Phase `prompts`: read the SFT data, tokenise it, split it: `python -m spin_core.phases.prompts JOB`.

Writes `train.parquet` and `held_out.parquet`.
"""

import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from spin_core.config.model import ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.files.division import divide_rows
from spin_core.data.files.example_files import ExampleFile
from spin_core.data.files.mixture import mix_rows
from spin_core.data.prompts import (
    ExampleLoader,
    check_context,
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
from spin_core.store.records import PromptSet, SourceSummary

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
    build = _build_demo if job.config.is_demo else _build_from_rows
    fields = build(job, renderer, scratch, progress)
    # The last message is about all rows, not about those of the last source.
    read = fields.pop("read")
    progress.start(read, "row")
    progress.report(read)
    log.info(
        "%d training prompts (%d responses cut at %d tokens), %d held out",
        fields["rows"],
        fields.pop("cut"),
        job.max_new_tokens,
        fields["held_out"],
    )
    drops = dict(sorted((+fields.pop("drops")).items()))
    return {
        "source": ", ".join(job.config.parts()),
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
    read = len(rows) + len(held_out_rows)
    return {"revision": None, "rows": len(train), "held_out": len(held_out), "cut": cut, "drops": drops, "read": read}


def _build_from_rows(job: PromptsJob, renderer: Renderer, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Write the examples of the sources. All are on disk before it is known which to train on."""
    config, loader = job.config, ExampleLoader(job, renderer)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        everything = candidates = ExampleFile(Path(folder) / "all.parquet", with_source=config.sources is not None)
        with everything:
            loaded = {
                name: load_source(part, loader, everything, progress, name if config.sources else "")
                for name, part in config.parts().items()
            }
        read = sum(source.rows for source in loaded.values())
        if config.held_out_source is not None:
            candidates = ExampleFile(Path(folder) / "held_out.parquet")
            held_out = config.model_copy(update={"source": config.held_out_source})
            with candidates:
                read += load_source(held_out, ExampleLoader(job, renderer), candidates, progress).rows
        ids = everything.ids
        rows = np.arange(len(ids))
        if config.sources is not None:
            rows = mix_rows(config.sources, everything.sources, ids, job.seed)
        other_ids = None if candidates is everything else candidates.ids
        dropped = sum((source.drops for source in loaded.values()), Counter())
        division = divide_rows(job, ids[rows], other_ids, dropped)
        train = rows[division.train]
        held_out_rows = rows[division.held_out] if other_ids is None else division.held_out
        drops = dropped + division.drops
        drops["not-in-mixture"] = len(ids) - len(rows)
        if not len(train):
            raise no_prompt_left(", ".join(loaded), drops)
        everything.copy(train.tolist(), scratch / "train.parquet")
        candidates.copy(held_out_rows.tolist(), scratch / "held_out.parquet")
    fields: dict[str, Any] = {
        "revision": next((source.revision for source in loaded.values()), None) if config.sources is None else None,
        "rows": len(train),
        "held_out": len(held_out_rows),
        "cut": int(everything.is_cut[train].sum()),
        "drops": drops,
        "read": read,
        "unused_columns": sorted({column for source in loaded.values() for column in source.unused_columns}),
    }
    if config.sources is not None:
        trained = Counter(everything.sources[row] for row in train)
        kept_out = Counter(candidates.sources[row] for row in held_out_rows) if candidates.sources else Counter()
        fields["sources"] = {
            name: SourceSummary(
                path=config.sources[name].path,
                revision=source.revision,
                rows=trained[name],
                held_out=kept_out[name],
                drops=dict(sorted((+source.drops).items())),
                unused_columns=tuple(source.unused_columns),
            )
            for name, source in loaded.items()
        }
        log.info("training prompts: %s", ", ".join(f"{trained[name]:,} of {name}" for name in loaded))
    return fields


if __name__ == "__main__":
    main(PromptsJob, PromptSet, run)
