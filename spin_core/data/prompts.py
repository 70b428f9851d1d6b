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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from spin_core.config.data import PromptsConfig
from spin_core.config.model import ModelConfig
from spin_core.data.chat import Renderer
from spin_core.data.conversations import Conversation, ConversationReader
from spin_core.data.drops import Drops, list_drops, nothing_left
from spin_core.data.examples import BATCH, CURES, Example, ExampleBuilder
from spin_core.data.files.digests import DigestSet, digests_of
from spin_core.data.files.division import divide_rows
from spin_core.data.files.example_files import ExampleFile, table_of
from spin_core.data.files.ids import numbers_of
from spin_core.data.files.mixture import mixture_counts
from spin_core.data.formats.columns import wanted_columns
from spin_core.data.formats.values import Row, strings_in
from spin_core.data.sources import no_rows, on_hub, open_source, prompt_rows
from spin_core.data.tokenizer import context_length
from spin_core.errors import ConfigError, DataError
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob

log = logging.getLogger("spin_core")

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
    loader = ExampleLoader(job, renderer, keep_duplicates=keep_duplicates)
    reader = reader or ConversationReader(job.config, name)
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
    return LoadedSource(drops, revision, sorted(reader.unused))


def divide(
    job: PromptsJob, examples: list[Example], renderer: Renderer, progress: Progress
) -> tuple[list[Example], list[Example], Drops]:
    """Divide examples in memory as `divide_rows` divides those on disk.

    Returns:
        Training examples, held-out examples, and how many examples are in neither, by reason.
    """
    source, candidates = job.config.held_out_source, None
    if source is not None:
        candidates, _ = load_examples(job, source.path, prompt_rows(job.config, source)[0], renderer, progress)
    other_ids = None if candidates is None else numbers_of(example.id for example in candidates)
    division = divide_rows(job, numbers_of(example.id for example in examples), other_ids)
    held_out = [(examples if candidates is None else candidates)[row] for row in division.held_out]
    return [examples[row] for row in division.train], held_out, division.drops


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples as Parquet."""
    pq.write_table(table_of(examples), path)


def preview(
    job: PromptsJob, rows: Sequence[Row] | Mapping[str, Sequence[Row]], renderer: Renderer, *, characters: int
) -> Preview:
    """What the phase makes of the rows of its source, by its own steps.

    Args:
        job: the phase's job.
        rows: all rows of its source (`prompt_rows`, or the first of `demo_rows`); those of each, if there are several.
        renderer: renders and tokenises conversations.
        characters: the most characters that are tokenised. Of a longer source the beginning is.

    Raises:
        DataError: no row is left, or too few for those to hold out.
    """
    config = job.config
    if isinstance(rows, Mapping):
        return _preview_mixture(job, rows, renderer, characters)
    if config.is_demo:
        examples, drops = load_examples(
            job, config.source.path, rows, renderer, Progress(out=io.StringIO()), keep_duplicates=True
        )
        return Preview(examples, len(examples), config.held_out, drops, [], len(rows))
    examples, drops, unused, read = _load_beginning(job, rows, renderer, characters)
    if read == len(rows):
        train, held_out, moved = divide(job, examples, renderer, Progress(out=io.StringIO()))
        if not train:
            raise no_prompt_left(config.source.path, drops + moved)
        return Preview(train, len(train), len(held_out), drops + moved, unused, read)
    return Preview(
        examples, _left_to_train(config, len(examples) * len(rows) // read), config.held_out, drops, unused, read
    )


def _load_beginning(
    job: PromptsJob, rows: Sequence[Row], renderer: Renderer, characters: int, setting: str = "prompts"
) -> tuple[list[Example], Drops, list[str], int]:
    """The examples, the drops and the unused columns of a source's first rows, and how many rows these are."""
    name = job.config.source.path
    reader = ConversationReader(job.config, name, setting)
    total = sum(len(text) for row in rows for text in strings_in(row))
    read = math.ceil(len(rows) * min(1.0, characters / max(1, total)))
    beginning = rows[:read] if read < len(rows) else rows
    examples, drops = load_examples(job, name, beginning, renderer, Progress(out=io.StringIO()), reader=reader)
    return examples, drops, sorted(reader.unused | getattr(rows, "unread", set())), read


def _preview_mixture(
    job: PromptsJob, rows: Mapping[str, Sequence[Row]], renderer: Renderer, characters: int
) -> Preview:
    """What the phase makes of several sources, each judged by its beginning. Duplicates among them are not known."""
    config = job.config
    assert config.sources is not None
    examples: dict[str, list[Example]] = {}
    available, drops, unused, read = {}, Counter[str](), set[str](), 0
    for name, part in config.parts().items():
        own_job = job.model_copy(update={"config": part})
        own = _load_beginning(own_job, rows[name], renderer, characters // len(rows), f"prompts.sources.{name}")
        examples[name], available[name] = own[0], len(own[0]) * len(rows[name]) // own[3]
        drops, unused, read = drops + own[1], unused | {*own[2]}, read + own[3]
    counts = mixture_counts(config.sources, available)
    left = _left_to_train(config, sum(counts.values()))
    # Equal shares of what was read of each source give the mixture's proportions.
    share = min(1.0, *(len(examples[name]) / count for name, count in counts.items()))
    train = [example for name, count in counts.items() for example in examples[name][: max(1, int(count * share))]]
    return Preview(train, left, config.held_out, drops, sorted(unused), read)


def _left_to_train(config: PromptsConfig, usable: int) -> int:
    """About how many of the usable rows are trained on. Raises `DataError` if too few are left to hold out."""
    left = usable
    if config.held_out_source is None:
        left -= config.held_out
        if left < 1 and config.sources is not None:
            raise DataError(f"prompts.held_out is {config.held_out}, but there are only {usable} usable rows: lower it")
    elif not on_hub(config.held_out_source) and len(prompt_rows(config, config.held_out_source)[0]) < config.held_out:
        raise DataError(f"{config.held_out_source.path} has fewer rows than prompts.held_out: lower that")
    return max(1, min(config.sample or left, left))


def cure_of(reason: str) -> str:
    """What to do about rows that were dropped for a reason; empty if nothing is wrong with them."""
    return _CURES.get(reason, "")


def no_prompt_left(name: str, drops: Drops) -> DataError:
    """The error to raise when all rows of a source were dropped."""
    return nothing_left(f"row of {name}", drops, _CURES)


def _bytes_of(example: Example) -> bytes:
    """An example's token ids, of both sides."""
    prompt, response = example.prompt_ids.tobytes(), example.response_ids.tobytes()
    return b"%d:%b%b" % (len(prompt), prompt, response)
