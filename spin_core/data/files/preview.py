"""What phase `prompts` will make of its sources, judged before it runs.

Every row of a source is read once, in parts, to count it and to check it. Only rows of so many characters are kept and
tokenised. Of a held-out source of its own all rows are tokenised, since it is small.
"""

import io
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from spin_core.config.data import PromptsConfig
from spin_core.data.chat import Renderer
from spin_core.data.conversations import ConversationReader
from spin_core.data.drops import Drops
from spin_core.data.examples import Example
from spin_core.data.files.division import divide_rows
from spin_core.data.files.ids import Ids, numbers_of
from spin_core.data.files.mixture import mix_rows, mixture_counts
from spin_core.data.files.rows import Rows
from spin_core.data.formats.columns import wanted_columns
from spin_core.data.formats.values import strings_in
from spin_core.data.prompts import ExampleLoader, load_examples, no_prompt_left
from spin_core.data.sources import demo_rows, no_rows, on_hub, open_source
from spin_core.errors import DataError, count
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob


class Beginning(NamedTuple):
    """The first rows of a source, and counts of all."""

    rows: Rows
    number: int
    """The number of rows in the source."""
    conversations: int
    """How many conversations these have."""
    unused_columns: list[str]
    """Columns with values that have no influence."""


class Share(NamedTuple):
    """What is taken of one of several sources."""

    train: int
    held_out: int


class Preview(NamedTuple):
    """What phase `prompts` makes of its sources."""

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
    shares: Mapping[str, Share] = {}
    """What is taken of each source, by its name, if there are several."""


def read_beginning(
    config: PromptsConfig, characters: int, setting: str = "prompts", place: str = "prompts.source"
) -> Beginning:
    """Read a source through, and keep its first rows.

    Args:
        config: names the source and the layout of its rows.
        characters: parts of the source are kept until they have this many characters.
        setting: where the configuration describes the source's rows, for messages.
        place: where it names the source, for messages.

    Raises:
        DataError: the source cannot be read or holds no rows, or a row is not of its layout.
    """
    parts, _ = open_source(config.source, place, wanted_columns(config.columns))
    reader = ConversationReader(config, config.source.path, setting)
    rows, number, conversations, kept = Rows([], config.source.path), 0, 0, 0
    for part in parts:
        number += len(part)
        conversations += len(reader.read(part))
        if kept < characters:
            rows.append_rows(part)
            kept += _characters_in(part)
    if not number:
        raise no_rows(config.source, place)
    return Beginning(rows, number, conversations, sorted(reader.unused))


def demo_beginning(config: PromptsConfig, seed: int) -> Beginning:
    """The training rows of the built-in source."""
    rows = demo_rows(config.sample, config.held_out, seed)[0]
    return Beginning(Rows(rows, config.source.path), len(rows), len(rows), [])


def preview(
    job: PromptsJob, source: Beginning | Mapping[str, Beginning], renderer: Renderer, *, characters: int
) -> Preview:
    """What the phase makes of its source, by its own steps.

    Args:
        job: the phase's job.
        source: the beginning of its source; of each, if there are several.
        renderer: renders and tokenises conversations.
        characters: the most characters that are tokenised. Of a longer source the beginning is.

    Raises:
        DataError: no row is left, or too few for those to hold out.
    """
    config = job.config
    if isinstance(source, Mapping):
        return _preview_mixture(job, source, renderer, characters)
    if config.is_demo:
        examples, drops = load_examples(
            job, config.source.path, source.rows, renderer, Progress(out=io.StringIO()), keep_duplicates=True
        )
        return Preview(examples, len(examples), config.held_out, drops, [], source.number)
    examples, drops, read = load_beginning(job, source, renderer, characters)
    if read == source.number:
        division = divide_rows(job, numbers_of(example.id for example in examples), _held_out_ids(job, renderer), drops)
        train = [examples[row] for row in division.train]
        if not train:
            raise no_prompt_left(config.source.path, drops + division.drops)
        held_out = len(division.held_out)
        return Preview(train, len(train), held_out, drops + division.drops, source.unused_columns, read)
    left = _left_to_train(config, len(examples) * source.number // read)
    return Preview(examples, left, config.held_out, drops, source.unused_columns, read)


def load_beginning(
    job: PromptsJob,
    source: Beginning,
    renderer: Renderer,
    characters: int,
    setting: str = "prompts",
    loader: ExampleLoader | None = None,
) -> tuple[list[Example], Drops, int]:
    """The examples and the drops of a source's first rows, and how many rows these are.

    Args:
        job: the phase's job, for this source.
        source: the beginning of the source.
        renderer: renders and tokenises conversations.
        characters: the most characters that are tokenised.
        setting: where the configuration describes the source's rows, for messages.
        loader: knows the examples of other sources, to count duplicates among them.

    Raises:
        DataError: no row is left.
    """
    name, rows = job.config.source.path, source.rows
    read = math.ceil(len(rows) * min(1.0, characters / max(1, _characters_in(rows))))
    reader = ConversationReader(job.config, name, setting)
    first = rows[:read] if read < len(rows) else rows
    loader, progress = loader or ExampleLoader(job, renderer), Progress(out=io.StringIO())
    loader.begin_source()
    progress.start(len(first), "row")
    examples = [example for batch in loader.load(first, reader, progress) for example in batch]
    return examples, loader.end_source(name, reader, len(examples)), read


def _held_out_ids(job: PromptsJob, renderer: Renderer) -> Ids | None:
    """The id of each example of the held-out source; None without one."""
    source = job.config.held_out_source
    if source is None:
        return None
    loader, progress = ExampleLoader(job, renderer), Progress(out=io.StringIO())
    config = job.config.model_copy(update={"source": source})
    reader = ConversationReader(config, source.path)
    batches = (batch for part in _held_out_parts(config) for batch in loader.load(part, reader, progress))
    ids = numbers_of(example.id for batch in batches for example in batch)
    loader.end_source(source.path, reader, len(ids))
    return ids


def _held_out_parts(config: PromptsConfig) -> Iterator[Rows]:
    """The rows of the held-out source, which `config` has in the place of its own, in parts."""
    return open_source(config.source, "prompts.held_out_source", wanted_columns(config.columns))[0]


def _preview_mixture(job: PromptsJob, sources: Mapping[str, Beginning], renderer: Renderer, characters: int) -> Preview:
    """What the phase makes of several sources, each judged by its beginning."""
    config, loader = job.config, ExampleLoader(job, renderer)
    assert config.sources is not None
    examples: dict[str, list[Example]] = {}
    available, drops, unused, read = {}, Counter[str](), set[str](), 0
    for name, part in config.parts().items():
        own_job, source = job.model_copy(update={"config": part}), sources[name]
        own, lost, first = load_beginning(
            own_job, source, renderer, characters // len(sources), f"prompts.sources.{name}", loader
        )
        examples[name], available[name] = own, len(own) * source.number // first
        drops, unused, read = drops + lost, unused | {*source.unused_columns}, read + first
    if read == sum(source.number for source in sources.values()):
        return _divide_mixture(job, examples, renderer, drops, unused)._replace(read=read)
    counts = mixture_counts(config.sources, available)
    left = _left_to_train(config, sum(counts.values()))
    # Equal shares of what was read of each source give the mixture's proportions.
    share = min(1.0, *(len(examples[name]) / count for name, count in counts.items()))
    train = [example for name, count in counts.items() for example in examples[name][: max(1, int(count * share))]]
    total, held_out = sum(counts.values()), 0 if config.held_out_source else config.held_out
    shares = {
        name: Share(round(left * count / total), round(held_out * count / total)) for name, count in counts.items()
    }
    return Preview(train, left, config.held_out, drops, sorted(unused), read, shares)


def _divide_mixture(
    job: PromptsJob, examples: Mapping[str, list[Example]], renderer: Renderer, dropped: Drops, unused: Collection[str]
) -> Preview:
    """What the phase makes of several sources that were tokenised as a whole: the very rows that it takes."""
    assert job.config.sources is not None
    names = [name for name, own in examples.items() for _ in own]
    everything = [example for own in examples.values() for example in own]
    ids = numbers_of(example.id for example in everything)
    rows = mix_rows(job.config.sources, names, ids, job.seed)
    other_ids = _held_out_ids(job, renderer)
    division = divide_rows(job, ids[rows], other_ids, dropped)
    train = rows[division.train]
    drops = dropped + division.drops
    drops["not-in-mixture"] = len(ids) - len(rows)
    if not len(train):
        raise no_prompt_left(", ".join(examples), drops)
    trained = Counter(names[row] for row in train)
    held_out = Counter(names[row] for row in rows[division.held_out]) if other_ids is None else Counter()
    shares = {name: Share(trained[name], held_out[name]) for name in examples}
    kept = [everything[row] for row in train]
    return Preview(kept, len(kept), len(division.held_out), drops, sorted(unused), 0, shares)


def _left_to_train(config: PromptsConfig, usable: int) -> int:
    """About how many of the usable rows are trained on. Raises `DataError` if too few are left to hold out."""
    left, source = usable, config.held_out_source
    if source is None:
        left -= config.held_out
        if left < 1:
            raise DataError(
                f"prompts.held_out is {config.held_out}, but the data have only {count(usable, 'usable row')}: lower it"
            )
    elif not on_hub(source):
        number = sum(map(len, _held_out_parts(config.model_copy(update={"source": source}))))
        if number < config.held_out:
            raise DataError(f"{source.path} has fewer rows than prompts.held_out: lower that")
    return max(1, min(config.sample or left, left))


def _characters_in(rows: Rows) -> int:
    return sum(len(text) for row in rows for text in strings_in(row))
