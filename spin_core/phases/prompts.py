"""Phase `prompts`: read the SFT data, tokenise it, split it: `python -m spin_core.phases.prompts JOB`.

Writes `train.parquet` and `held_out.parquet`.
"""

import logging
from pathlib import Path
from typing import Any

from spin_core.config.model import ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.conversations import ConversationReader
from spin_core.data.prompts import check_context, divide, load_examples, no_prompt_left, write_examples
from spin_core.data.sources import DEMO, demo_rows, prompt_rows
from spin_core.data.tokenizer import load_tokenizer, model_ends
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import PromptSet

log = logging.getLogger("spin_core")


def run(job: PromptsJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Read, tokenise, split and write."""
    check_context(job)
    config, name = job.config, job.config.source.path
    tokenizer = load_tokenizer(job.tokenizer.path, ModelConfig(trust_remote_code=job.trust_remote_code))
    renderer = Renderer(tokenizer, job.chat, model_ends(job.tokenizer.path))
    for end in renderer.ends.strings:
        log.warning(
            "the tokenizer has no token for %r, the chat template's end of turn: answers end where this text ends. "
            "If the model was trained with such a token, set model.tokenizer to the tokenizer that has it",
            end,
        )
    reader, revision = ConversationReader(config, name), None
    if name == DEMO:
        rows, held_out_rows = demo_rows(config.sample, config.held_out, job.seed)
        # Repeated rows are draws from a known distribution. Without the repeats it would be another distribution.
        train, drops = load_examples(job, name, rows, renderer, progress, keep_duplicates=True)
        held_out, _ = load_examples(job, name, held_out_rows, renderer, progress)
    else:
        rows, revision = prompt_rows(config)
        examples, drops = load_examples(job, name, rows, renderer, progress, reader=reader)
        train, held_out, left_out = divide(job, examples, renderer, progress)
        drops += left_out
    if not train:
        raise no_prompt_left(name, drops)
    write_examples(scratch / "train.parquet", train)
    write_examples(scratch / "held_out.parquet", held_out)
    cut = sum(example.finish_reason == "length" for example in train)
    log.info(
        "%d training prompts (%d responses cut at %d tokens), %d held out",
        len(train),
        cut,
        job.max_new_tokens,
        len(held_out),
    )
    if reader.unused:
        log.info("%s: columns without influence: %s", name, ", ".join(sorted(reader.unused)))
    return {
        "source": name,
        "revision": revision,
        "rows": len(train),
        "held_out": len(held_out),
        "drops": dict(sorted((+drops).items())),
        "stop_ids": renderer.ends.ids,
        "stop_strings": renderer.ends.strings,
        "unused_columns": sorted(reader.unused),
    }


if __name__ == "__main__":
    main(PromptsJob, PromptSet, run)
