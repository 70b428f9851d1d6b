"""SFT data as examples, split into training and held-out prompts: the steps of phase `prompts`.

A prompt's `id` is a digest of its token ids, so prompts that the model cannot tell apart are one prompt: no id is in
both files, and no id is twice in the held-out file. In the training file an id occurs more than once if people gave its
prompt several responses.

The split depends on each prompt's digest and the seed, and on nothing else. So rows that are added to the source later
move as few prompts as possible from one side to the other, and a smaller sample is part of a larger one.
"""

import io
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.config.model import ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.conversations import ConversationReader
from spin_core.data.drops import Drops, list_drops, nothing_left
from spin_core.data.examples import BATCH, CURES, Example, ExampleBuilder, random_rank, sample
from spin_core.data.formats.values import Row, strings_in
from spin_core.data.sources import DEMO, on_hub, prompt_rows
from spin_core.data.tokenizer import context_length
from spin_core.errors import ConfigError, DataError
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob

log = logging.getLogger("spin_core")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)
"""The columns of `train.parquet` and `held_out.parquet`: the fields of `Example`."""

_CURES = {**CURES, "in-held-out": "give training prompts that are not in prompts.held_out_source"}


class Preview(NamedTuple):
    """What phase `prompts` makes of a source, judged by the beginning of a long one."""

    train: list[Example]
    """Training examples; of a long source, those from its beginning."""
    prompts: int
    """The number of training prompts in the whole source."""
    held_out: int
    drops: Drops
    """Rows left out, by reason."""
    unused_columns: list[str]
    """Columns with values that have no influence."""
    read: int
    """The number of rows that were tokenised."""


def check_context(job: PromptsJob) -> None:
    """Raise `ConfigError` unless the longest prompt and the longest response fit into the model's context together."""
    context = context_length(job.tokenizer.path, ModelConfig(trust_remote_code=job.trust_remote_code))
    prompt, response = job.config.max_prompt_tokens, job.max_new_tokens
    if context is None or prompt + response <= context:
        return
    cure = (
        f"lower prompts.max_prompt_tokens to {context - response}"
        if response < context
        else f"lower generate.max_new_tokens below {context}, and both together to at most {context}"
    )
    raise ConfigError(
        f"prompts of {prompt} tokens and responses of {response} exceed the model's context of {context}: {cure}"
    )


def load_examples(
    job: PromptsJob,
    name: str,
    rows: Sequence[Row],
    renderer: Renderer,
    progress: Progress,
    *,
    keep_duplicates: bool = False,
    reader: ConversationReader | None = None,
) -> tuple[list[Example], Drops]:
    """The examples in a source's rows, in their order, and how many rows were dropped, by reason.

    Args:
        job: the limits and the format of the rows.
        name: the source's name, for messages.
        rows: what the source holds.
        renderer: renders and tokenises conversations.
        progress: counts the rows.
        keep_duplicates: whether rows with the same token ids are all kept.
        reader: reads the conversations; a new one by default.

    Raises:
        DataError: no row is left.
    """
    builder = ExampleBuilder(renderer, job.config.max_prompt_tokens, job.max_new_tokens, job.config.too_long)
    reader = reader or ConversationReader(job.config, name)
    items, drops = reader.read(rows), reader.drops
    progress.start(len(items), "row")
    examples: list[Example] = []
    seen: set[tuple[bytes, bytes]] = set()
    for first in range(0, len(items), BATCH):
        batch = items[first : first + BATCH]
        faults = [builder.fault_of(conversation) for conversation in batch]
        drops.update(fault for fault in faults if fault)
        clean = [conversation for conversation, fault in zip(batch, faults, strict=True) if not fault]
        for example, reason in builder.build(clean):
            key = example.prompt_ids.tobytes(), example.response_ids.tobytes()
            if reason is None and key in seen and not keep_duplicates:
                reason = "duplicate"
            if reason is None:
                seen.add(key)
                examples.append(example)
            else:
                drops[reason] += 1
        progress.report(min(first + BATCH, len(items)))
    builder.remarks.log(name)
    if not examples:
        raise no_prompt_left(name, drops)
    log.info("%s: kept %d of %d rows%s", name, len(examples), len(examples) + drops.total(), list_drops(drops))
    return examples, drops


def divide(
    job: PromptsJob, examples: list[Example], renderer: Renderer, progress: Progress
) -> tuple[list[Example], list[Example], Drops]:
    """Divide the examples, and sample from those to train on.

    Held-out prompts come from a source of their own where the configuration names one; the training prompts then lose
    those that are in it.

    Returns:
        Training examples, held-out examples, and how many examples are in neither, by reason.
    """
    config = job.config
    if config.held_out_source is None:
        train, held_out, left_out = _split(examples, config.held_out, job.seed, leave=1)
    else:
        rows, _ = prompt_rows(config, config.held_out_source)
        candidates, _ = load_examples(job, config.held_out_source.path, rows, renderer, progress)
        _, held_out, _ = _split(candidates, config.held_out, job.seed, leave=0)
        ids = {example.id for example in held_out}
        train = [example for example in examples if example.id not in ids]
        left_out = Counter({"in-held-out": len(examples) - len(train)})
    if config.sample is not None:
        chosen = sample([example.id for example in train], config.sample, job.seed)
        left_out["not-sampled"] += len(train) - len(chosen)
        train = [train[row] for row in chosen]
    return train, held_out, left_out


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as Parquet."""
    columns = zip(*examples, strict=True)
    table = pa.table([pa.array(c, type=f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    pq.write_table(table, path)


def preview(job: PromptsJob, rows: Sequence[Row], renderer: Renderer, *, characters: int) -> Preview:
    """What the phase makes of the rows of its source, by its own steps.

    Args:
        job: the phase's job.
        rows: all rows of its source (`prompt_rows`, or the first of `demo_rows`).
        renderer: renders and tokenises conversations.
        characters: the most characters that are tokenised. Of a longer source the beginning is.

    Raises:
        DataError: no row is left, or too few for those to hold out.
    """
    config, silent, name = job.config, Progress(out=io.StringIO()), job.config.source.path
    reader = ConversationReader(config, name)
    if name == DEMO:
        examples, drops = load_examples(job, name, rows, renderer, silent, keep_duplicates=True, reader=reader)
        return Preview(examples, len(examples), config.held_out, drops, [], len(rows))
    total = sum(len(text) for row in rows for text in strings_in(row))
    read = math.ceil(len(rows) * min(1.0, characters / max(1, total)))
    beginning = rows[:read] if read < len(rows) else rows
    examples, drops = load_examples(job, name, beginning, renderer, silent, reader=reader)
    unused = sorted(reader.unused | getattr(rows, "unread", set()))
    if read < len(rows):
        left = len(examples) * len(rows) // read
        if config.held_out_source is None:
            left -= config.held_out
        elif (
            not on_hub(config.held_out_source) and len(prompt_rows(config, config.held_out_source)[0]) < config.held_out
        ):
            raise DataError(f"{config.held_out_source.path} has fewer rows than prompts.held_out: lower that")
        return Preview(examples, max(1, min(config.sample or left, left)), config.held_out, drops, unused, read)
    train, held_out, moved = divide(job, examples, renderer, silent)
    if not train:
        raise no_prompt_left(name, drops + moved)
    return Preview(train, len(train), len(held_out), drops + moved, unused, read)


def cure_of(reason: str) -> str:
    """What to do about rows that were dropped for a reason; empty if nothing is wrong with them."""
    return _CURES.get(reason, "")


def no_prompt_left(name: str, drops: Drops) -> DataError:
    """The error to raise when all rows of a source were dropped."""
    return nothing_left(f"row of {name}", drops, _CURES)


def _split(
    examples: Sequence[Example], held_out: int, seed: int, *, leave: int
) -> tuple[list[Example], list[Example], Drops]:
    """Training examples, held-out examples with one response to each prompt, and how many other responses were dropped.

    Raises `DataError` if fewer than `leave` prompts would be left for training.
    """
    first_by_id = {example.id: example for example in reversed(examples)}
    most = len(first_by_id) - leave
    if most < held_out:
        cure = f"lower it to at most {most}" if most > 0 else "give more rows"
        raise DataError(
            f"prompts.held_out is {held_out}, but there are only {len(first_by_id)} different prompts: {cure}"
        )
    chosen = set(sorted(first_by_id, key=lambda id: random_rank(id, seed))[:held_out])
    train = [example for example in examples if example.id not in chosen]
    kept_out = [example for example in examples if example.id in chosen and first_by_id[example.id] is example]
    return train, kept_out, Counter({"other-response-held-out": len(examples) - len(train) - len(kept_out)})
