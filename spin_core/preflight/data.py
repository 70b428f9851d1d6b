"""The part of `spin check` that reads the data."""

import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spin_core.config.data import SourceConfig
from spin_core.config.run import RunConfig
from spin_core.config.train import TrainConfig
from spin_core.errors import DataError
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.preflight.estimate import Texts
from spin_core.preflight.estimate import sides as sides_of
from spin_core.preflight.findings import Looks
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import ModelVersion

CHARACTERS = 8_000_000
"""So much text is tokenised; of a longer source, so much from its beginning."""

PADDED = 8192
"""Prompts of which it is tried how their rows would be padded."""

CUT = 0.25
"""A larger share of human responses that are cut is a warning."""


class Source(NamedTuple):
    """What is known of the data before a tokenizer has read them."""

    rows: list[dict[str, Any]]
    """All rows, if they are here."""
    number: int | None
    """How many there are; None if the hub does not say."""


def look_at_source(looks: Looks, config: RunConfig) -> Source:
    """The data can be read, and each row is of the format that the configuration says."""
    from spin_core.data.conversations import conversations
    from spin_core.data.sources import DEMO, demo_rows, on_hub, read_rows

    settings = config.prompts
    if on_hub(settings.source):
        number = rows_on_hub(settings.source)
        known = f"has {number:,} rows" if number is not None else "does not say how many rows it has"
        looks.add("data", f"{settings.source.path} is on the hub and {known}; they are read when the run begins")
        return Source([], number)
    if settings.source.path == DEMO:
        rows, _ = demo_rows(settings.sample, settings.held_out, config.seed)
    else:
        rows, _ = read_rows(settings.source)
    found, _ = conversations(rows, settings, settings.source.path)
    looks.add(
        "data", f"{settings.source.path} has {len(rows):,} rows, of which {len(found):,} are a prompt and a response"
    )
    return Source(rows, len(rows))


def look_at_preferences(looks: Looks, config: RunConfig) -> int:
    """DPO's data can be read and are preferences: how many there are. 0 without DPO, or if nobody says."""
    from spin_core.data.preferences import SETTING, no_preference_left, preferences
    from spin_core.data.sources import on_hub, preference_rows

    dpo = config.controls.dpo
    if dpo is None:
        return 0
    name = dpo.source.path
    if on_hub(dpo.source):
        number = rows_on_hub(dpo.source, f"{SETTING}.source")
        known = f"has {number:,} rows" if number is not None else "does not say how many rows it has"
        looks.add("data", f"{name} is on the hub and {known}; DPO reads them when the iterations are done")
        return min(number or 0, dpo.sample or number or 0)
    rows = preference_rows(dpo.source, f"{SETTING}.source")
    found, drops = preferences(rows, dpo.columns, name)
    if not found:
        raise no_preference_left(name, drops)
    looks.add("data", f"{name} has {len(rows):,} rows, of which {len(found):,} are preferences for DPO")
    return min(len(found), dpo.sample or len(found))


def look_at_texts(looks: Looks, config: RunConfig, source: Source, folder: Path, renderer: Any) -> Texts | None:
    """The data as phase `prompts` will leave them. None if nobody says how many there are."""
    tokenizer = ModelVersion(path=folder, digest="", t=0, parent=None)
    job = phase_jobs.prompts_job(Lineage(Path(), "check", config), tokenizer)
    looks.at("context", look_at_context, job)
    return (
        look_at_rows(looks, job, source.rows, renderer, config.train)
        if source.rows
        else as_long_as_allowed(looks, job, source.number)
    )


def look_at_context(looks: Looks, job: PromptsJob) -> None:
    """The longest prompt and the longest response fit into the model's context together."""
    from spin_core.data.prompts import check_context

    check_context(job)
    looks.add(
        "context", f"holds prompts of {job.config.max_prompt_tokens} and responses of {job.max_new_tokens} tokens"
    )


def look_at_rows(looks: Looks, job: PromptsJob, rows: list[dict[str, Any]], renderer: Any, train: TrainConfig) -> Texts:
    """Rows that are here: how many are kept, how long they are, and how many responses are cut."""
    found = tokenised(job, rows, renderer)
    tokens = [(len(example.prompt_ids), len(example.response_ids)) for example in found.train]
    texts = Texts(
        prompts=found.prompts,
        held_out=found.held_out,
        prompt_tokens=sum(prompt for prompt, _ in tokens) / len(tokens),
        response_tokens=sum(response for _, response in tokens) / len(tokens),
        longest_prompt=max(prompt for prompt, _ in tokens),
        longest=max(prompt + response for prompt, response in tokens),
        padding=padding(tokens, train),
    )
    part = f", judged by the first {found.read:,} rows" if found.read < len(rows) else ""
    lost = ", ".join(f"{number:,} {reason}" for reason, number in sorted(found.drops.items()) if number)
    left_out = f"; left out: {lost}" if lost else ""
    looks.add("prompts", f"{texts.prompts:,} to train on and {texts.held_out:,} held out{part}{left_out}")
    cut = sum(example.finish_reason == "length" for example in found.train) / len(found.train)
    means = f"{texts.prompt_tokens:.0f} tokens a prompt and {texts.response_tokens:.0f} a response"
    said = f"{means} on average, at most {texts.longest} together; {cut:.0%} of the responses are cut"
    cure = f": raise generate.max_new_tokens above {job.max_new_tokens}, so that the player sees how responses end"
    looks.add("lengths", said + cure if cut > CUT else said, "warn" if cut > CUT else "ok")
    return texts


def padding(tokens: list[tuple[int, int]], train: TrainConfig) -> float:
    """Tokens of padded rows over those of their sequences, from the lengths of prompts and human responses.

    As `batches.deal_padded` cuts a batch. The opponent's responses are taken to be as long as another prompt's.
    """
    from spin_core.data.batches import micro_batches

    sides = sides_of(train)
    tokens_N2 = np.random.default_rng(0).permutation(np.array(tokens, np.int64))[:PADDED]
    lengths_PN = np.stack([tokens_N2[:, 0] + np.roll(tokens_N2[:, 1], side) for side in range(sides)])
    longest_N, held = lengths_PN.max(axis=0), 0
    for start in range(0, len(longest_N), train.batch_size):
        longest_B = longest_N[start : start + train.batch_size]
        for cut in micro_batches(longest_B, sides, train.micro_batch_tokens):
            held += sides * len(cut) * int(longest_B[cut[0]])
    return held / int(lengths_PN.sum())


class Tokenised(NamedTuple):
    """What phase `prompts` makes of the rows."""

    train: list[Any]
    """Examples to train on, `examples.Example` each; of a long source, those in its beginning."""
    prompts: int
    """How many there will be in all."""
    held_out: int
    drops: Counter[str]
    """Rows left out, by reason."""
    read: int
    """Rows that were tokenised."""


def tokenised(job: PromptsJob, rows: list[dict[str, Any]], renderer: Any) -> Tokenised:
    """Go through the phase's own steps with all rows, or with the beginning of many."""
    from spin_core.data import prompts
    from spin_core.data.sources import DEMO, on_hub, read_rows
    from spin_core.runtime.progress import Progress

    settings, silent = job.config, Progress(out=io.StringIO())
    name = settings.source.path
    if name == DEMO:
        examples, drops = prompts.load_examples(job, name, rows, renderer, silent, keep_duplicates=True)
        return Tokenised(examples, len(examples), settings.held_out, drops, len(rows))
    characters = sum(len(text) for row in rows for text in texts_in(row))
    read = math.ceil(len(rows) * min(1.0, CHARACTERS / max(1, characters)))
    examples, drops = prompts.load_examples(job, name, rows[:read], renderer, silent)
    if read < len(rows):
        left = len(examples) * len(rows) // read
        if settings.held_out_source is None:
            left -= settings.held_out
        elif not on_hub(settings.held_out_source) and len(read_rows(settings.held_out_source)[0]) < settings.held_out:
            raise DataError(f"{settings.held_out_source.path} has fewer rows than prompts.held_out: lower that")
        return Tokenised(examples, max(1, min(settings.sample or left, left)), settings.held_out, drops, read)
    train, held_out, moved = prompts.divide(job, examples, renderer, silent)
    if not train:
        raise prompts.no_prompt_left(name, drops + moved)
    return Tokenised(train, len(train), len(held_out), drops + moved, read)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def as_long_as_allowed(looks: Looks, job: PromptsJob, number: int | None) -> Texts | None:
    """Rows that are still on the hub, each taken to be as long as the configuration allows."""
    settings = job.config
    prompts = settings.sample if number is None else min(settings.sample or number, number)
    if prompts is None:
        looks.add("lengths", "unknown, and so are memory, disk and time: set prompts.sample, or fetch the data", "warn")
        return None
    prompt, response = settings.max_prompt_tokens, job.max_new_tokens
    looks.add(
        "lengths", f"unknown: {prompts:,} prompts of {prompt} and responses of {response} tokens are reckoned with"
    )
    return Texts(prompts, settings.held_out, prompt, response, prompt, prompt + response)


def rows_on_hub(source: SourceConfig, setting: str = "prompts.source") -> int | None:
    """How many rows a data set of the hub has, as its card says; None if it does not. `DataError` if there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    from spin_core.errors import first_line

    try:
        card = HfApi().dataset_info(source.path, revision=source.revision, timeout=5).card_data
    except (OSError, ValueError, HTTPError) as error:
        if in_cache(source.path):
            return None
        raise DataError(
            f"{source.path} is no file or folder here, and the hub did not answer for it ({first_line(error)}): "
            f"mend {setting}.path, or connect to the hub"
        ) from error
    about = card.to_dict().get("dataset_info", []) if card is not None else []
    parts = about if isinstance(about, list) else [about]
    splits = [split for part in parts for split in part.get("splits", [])]
    return max((int(split["num_examples"]) for split in splits if split["name"] == source.split), default=None)


def in_cache(name: str) -> bool:
    """Whether `datasets` has fetched a data set of the hub before."""
    import datasets

    *owner, own = name.split("/")
    folder = "___".join([*owner, datasets.naming.camelcase_to_snakecase(own)])
    return (Path(datasets.config.HF_DATASETS_CACHE) / folder).is_dir()
