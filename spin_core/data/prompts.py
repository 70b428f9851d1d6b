"""SFT data as examples, split into training and held-out prompts: the steps of phase `prompts`.

A prompt's `id` is a digest of its token ids, so prompts that the model cannot tell apart are one prompt: no id is in
both files, and no id is twice in the held-out file. In the training file an id occurs more than once if people gave its
prompt several responses.

The split depends on each prompt's digest and the seed, and on nothing else. So rows that are added to the source later
move as few prompts as possible from one side to the other, and a smaller sample is part of a larger one.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from spin_core.config.data import PromptsConfig
from spin_core.config.model import ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.conversations import Conversation, ConversationReader
from spin_core.data.drops import Drops, list_drops, nothing_left
from spin_core.data.examples import BATCH, FIXES, Example, ExampleBuilder
from spin_core.data.files.digests import DigestSet, digests_of
from spin_core.data.files.example_files import ExampleFile, table_of
from spin_core.data.formats.columns import wanted_columns
from spin_core.data.formats.values import Row
from spin_core.data.sources import no_rows, open_source
from spin_core.data.tokenizer import context_length
from spin_core.errors import ConfigError, DataError
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob

log = logging.getLogger("spin_core")

_FIXES = {**FIXES, "in-held-out": "give training prompts that are not in prompts.held_out_source"}


def check_context(job: PromptsJob) -> None:
    """Raise `ConfigError` unless the longest prompt and the longest response fit into the model's context together."""
    context = context_length(job.tokenizer.path, ModelConfig(trust_remote_code=job.trust_remote_code))
    prompt, response = job.config.max_prompt_tokens, job.max_new_tokens
    if context is None or prompt + response <= context:
        return
    fix = (
        f"lower prompts.max_prompt_tokens to {context - response}"
        if response < context
        else f"lower generate.max_new_tokens below {context}, and both together to at most {context}"
    )
    raise ConfigError(
        f"prompts of {prompt} tokens and responses of {response} exceed the model's context of {context}: {fix}"
    )


def load_examples(
    job: PromptsJob,
    name: str,
    rows: Sequence[Row],
    renderer: Renderer,
    progress: Progress,
    *,
    keep_duplicates: bool = False,
) -> tuple[list[Example], Drops]:
    """The examples in a source's rows, in their order, and how many rows were dropped, by reason.

    Args:
        job: the limits and the format of the rows.
        name: the source's name, for messages.
        rows: what the source holds.
        renderer: renders and tokenises conversations.
        progress: counts the rows.
        keep_duplicates: whether rows with the same token ids are all kept.

    Raises:
        DataError: no row is left.
    """
    loader = ExampleLoader(job, renderer, keep_duplicates=keep_duplicates)
    reader = ConversationReader(job.config, name)
    progress.start(len(rows), "row")
    examples = [example for batch in loader.load(rows, reader, progress) for example in batch]
    return examples, loader.end_source(name, reader, len(examples))


class ExampleLoader:
    """Makes examples of rows, which may come in parts and from several sources, and drops duplicates among all."""

    def __init__(self, job: PromptsJob, renderer: Renderer, *, keep_duplicates: bool = False) -> None:
        """Take the limits of the job; `keep_duplicates` keeps rows with the same token ids."""
        self._job, self._renderer, self._keep_duplicates = job, renderer, keep_duplicates
        self._seen = DigestSet()
        self.begin_source()

    def begin_source(self) -> None:
        """Count again from here; examples of earlier sources stay known."""
        limits = self._job.config.max_prompt_tokens, self._job.max_new_tokens, self._job.config.too_long
        self._builder = ExampleBuilder(self._renderer, *limits)
        self.drops: Drops = Counter()
        """Conversations that were left out, by reason."""

    def end_source(self, name: str, reader: ConversationReader, kept: int) -> Drops:
        """Log what became of a source's rows, and return how many were left out, by reason.

        Raises `DataError` if none is left.
        """
        self._builder.remarks.log(name)
        drops = self.drops + reader.drops
        if not kept:
            raise no_prompt_left(name, drops)
        log.info("%s: kept %d of %d rows%s", name, kept, kept + drops.total(), list_drops(drops))
        if reader.unused:
            log.info("%s: columns without influence: %s", name, ", ".join(sorted(reader.unused)))
        return drops

    def load(
        self, rows: Sequence[Row], reader: ConversationReader, progress: Progress, done: int = 0
    ) -> Iterator[list[Example]]:
        """The examples in some rows, a batch at a time.

        Args:
            rows: some rows of a source.
            reader: reads the conversations of this source.
            progress: counts the rows.
            done: the number of rows before these.
        """
        items = reader.read(rows)
        for first in range(0, len(items), BATCH):
            batch = items[first : first + BATCH]
            yield self._examples_of(batch)
            progress.report(done + len(rows) * min(first + BATCH, len(items)) // len(items))

    def _examples_of(self, batch: Sequence[Conversation]) -> list[Example]:
        faults = [self._builder.fault_of(conversation) for conversation in batch]
        self.drops.update(fault for fault in faults if fault)
        clean = [conversation for conversation, fault in zip(batch, faults, strict=True) if not fault]
        built = self._builder.build(clean)
        digests = digests_of(_bytes_of(example) for example, _ in built)
        was_seen, seen_here = self._seen.contains(digests).tolist(), set[int]()
        examples = []
        for (example, fault), digest, is_known in zip(built, digests.tolist(), was_seen, strict=True):
            is_duplicate = not self._keep_duplicates and (is_known or digest in seen_here)
            if reason := fault or ("duplicate" if is_duplicate else None):
                self.drops[reason] += 1
            else:
                seen_here.add(digest)
                examples.append(example)
        self._seen.add(np.fromiter(seen_here, np.uint64, len(seen_here)))
        return examples


class LoadedSource(NamedTuple):
    """What was read of a source."""

    drops: Drops
    """Rows that were left out, by reason."""
    revision: str | None
    """The hub's commit, if the source is there."""
    unused_columns: list[str]
    rows: int
    """The number of its rows."""


def load_source(
    config: PromptsConfig,
    loader: ExampleLoader,
    file: ExampleFile,
    progress: Progress,
    name: str = "",
) -> LoadedSource:
    """Write the examples of a source into a file, a part at a time.

    Args:
        config: names the source and the layout of its rows.
        loader: makes the examples.
        file: receives them.
        progress: counts the rows.
        name: the source's name among several; empty where it is the only one.

    Raises:
        DataError: the source cannot be read, or no row is left.
    """
    source, setting = config.source, f"prompts.sources.{name}" if name else "prompts"
    place = setting if name else f"{setting}.source"
    parts, revision = open_source(source, place, wanted_columns(config.columns))
    reader, before = ConversationReader(config, source.path, setting), len(file)
    loader.begin_source()
    done, done_before_file, current = 0, 0, ""
    for part in parts:
        if part.file != current:
            current, done_before_file = part.file, done
        total = max(done_before_file + part.total, done + len(part))
        if total != progress.total:
            progress.start(total, "row")
        for batch in loader.load(part, reader, progress, done):
            file.add(batch, name)
        done += len(part)
    if not done:
        raise no_rows(source, place)
    progress.start(done, "row")
    progress.report(done)
    kept = len(file) - before
    drops = loader.end_source(source.path, reader, kept)
    return LoadedSource(drops, revision, sorted(reader.unused), done)


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples as Parquet."""
    pq.write_table(table_of(examples), path)


def fix_of(reason: str) -> str:
    """What to do about rows that were dropped for a reason; empty if nothing is wrong with them."""
    return _FIXES.get(reason, "")


def no_prompt_left(name: str, drops: Drops) -> DataError:
    """The error to raise when all rows of a source were dropped."""
    # Only rows of other sources can make duplicates of all.
    return nothing_left(f"row of {name}", drops, {**_FIXES, "duplicate": "give rows that no other source has"})


def _bytes_of(example: Example) -> bytes:
    """An example's token ids, of both sides."""
    prompt, response = example.prompt_ids.tobytes(), example.response_ids.tobytes()
    return b"%d:%b%b" % (len(prompt), prompt, response)
