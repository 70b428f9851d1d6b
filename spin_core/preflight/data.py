"""The findings of `spin check` about the data: rows, lengths, and what phase `prompts` will leave out."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.run import RunConfig
from spin_core.config.train import TrainConfig
from spin_core.errors import DataError, count
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.preflight.findings import Inspection, listed_names
from spin_core.preflight.sizes import Texts, micro_batch_tokens, sides
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import ModelVersion

CHARACTERS = 8_000_000
"""The most characters that are tokenised. Of a longer source only the beginning is."""

_PADDED = 8192
"""The most prompts whose rows are padded for the estimate."""

_CUT = 0.25
"""The share of cut human responses above which there is a warning."""


class Source(NamedTuple):
    """The data before they are tokenised."""

    beginning: Any
    """The `Beginning` of the source, or of each by its name if there are several; None if some are on the hub."""
    number: int | None
    """The number of rows; None if the hub does not say."""


def inspect_source(inspection: Inspection, config: RunConfig) -> Source:
    """The data can be read, and their rows have the configured format."""
    settings = config.prompts
    if settings.sources is None:
        return _inspect_part(inspection, settings, "prompts", config.seed)
    if settings.source != SourceConfig():
        inspection.add("data", f"prompts.sources are read, and prompts.source ({settings.source.path}) is not")
    parts = {
        name: _inspect_part(inspection, part, f"prompts.sources.{name}", config.seed)
        for name, part in settings.parts().items()
    }
    numbers = [part.number for part in parts.values() if part.number is not None]
    number = sum(numbers) if len(numbers) == len(parts) else None
    beginnings = {name: part.beginning for name, part in parts.items() if part.beginning is not None}
    return Source(beginnings if len(beginnings) == len(parts) else None, number)


def _inspect_part(inspection: Inspection, settings: PromptsConfig, setting: str, seed: int) -> Source:
    """One source can be read, and its rows have the configured format."""
    from spin_core.data.files.preview import demo_beginning, read_beginning
    from spin_core.data.sources import on_hub

    source, place = (
        settings.source,
        setting if settings.sources is None and setting != "prompts" else f"{setting}.source",
    )
    if on_hub(source):
        number = rows_on_hub(source, place)
        size = f"has {count(number, 'row')}" if number is not None else "does not say how many rows it has"
        inspection.add("data", f"{source.path} is on the hub and {size}; they are read when the run begins")
        return Source(None, number)
    beginning = (
        demo_beginning(settings, seed) if settings.is_demo else read_beginning(settings, CHARACTERS, setting, place)
    )
    text = f"has {count(beginning.number, 'row')}, {beginning.conversations:,} with a prompt and a response"
    inspection.add("data", f"{source.path} {text}")
    return Source(beginning, beginning.number)


def inspect_preferences(inspection: Inspection, config: RunConfig) -> int:
    """DPO's data can be read and are preferences. Returns their number; 0 without DPO, or if the hub does not say."""
    from spin_core.data.preferences import SETTING, PreferenceReader, no_preference_left
    from spin_core.data.sources import on_hub, open_preferences

    dpo = config.controls.dpo
    if dpo is None:
        return 0
    name = dpo.source.path
    if on_hub(dpo.source):
        number = rows_on_hub(dpo.source, f"{SETTING}.source")
        size = f"has {count(number, 'row')}" if number is not None else "does not say how many rows it has"
        inspection.add("data", f"{name} is on the hub and {size}; DPO reads them when the iterations are done")
        return min(number or 0, dpo.sample or number or 0)
    reader, rows, usable = PreferenceReader(dpo.columns, name), 0, 0
    for part in open_preferences(dpo.source, f"{SETTING}.source", dpo.columns):
        rows, usable = rows + len(part), usable + len(reader.read(part))
    reader.check_columns()
    if not usable:
        raise no_preference_left(name, reader.drops)
    inspection.add("data", f"{name} has {count(rows, 'row')}, {usable:,} with a preference for DPO")
    if reader.unused:
        inspection.add("data", f"{name}: columns without influence: {listed_names(sorted(reader.unused))}")
    return min(usable, dpo.sample or usable)


def inspect_texts(
    inspection: Inspection, config: RunConfig, source: Source, folder: Path, renderer: Any
) -> Texts | None:
    """Number and lengths of the texts that phase `prompts` will make. None if the number of rows is not known."""
    tokenizer = ModelVersion(path=folder, digest="", t=0, parent=None)
    job = phase_jobs.prompts_job(Lineage(Path(), "check", config), tokenizer)
    inspection.run("context", _inspect_context, job)
    return (
        _inspect_rows(inspection, job, source, renderer, config.train)
        if source.beginning is not None
        else _assume_longest(inspection, job, source.number)
    )


def _inspect_context(inspection: Inspection, job: PromptsJob) -> None:
    """The longest prompt and the longest response fit into the model's context together."""
    from spin_core.data.prompts import check_context

    check_context(job)
    inspection.add(
        "context", f"holds prompts of {job.config.max_prompt_tokens} and responses of {job.max_new_tokens} tokens"
    )


def _inspect_rows(inspection: Inspection, job: PromptsJob, source: Source, renderer: Any, train: TrainConfig) -> Texts:
    """Rows that are here: how many are kept, how long they are, and how many responses are cut."""
    from spin_core.data.files.preview import preview

    result = preview(job, source.beginning, renderer, characters=CHARACTERS)
    tokens = [(len(example.prompt_ids), len(example.response_ids)) for example in result.train]
    texts = Texts(
        prompts=result.prompts,
        held_out=result.held_out,
        prompt_tokens=sum(prompt for prompt, _ in tokens) / len(tokens),
        response_tokens=sum(response for _, response in tokens) / len(tokens),
        longest_prompt=max(prompt for prompt, _ in tokens),
        longest=max(prompt + response for prompt, response in tokens),
        padding=padding(tokens, train),
    )
    basis = f", judged by the first {count(result.read, 'row')}" if result.read < (source.number or 0) else ""
    lost = ", ".join(f"{number:,} {reason}" for reason, number in sorted(result.drops.items()) if number)
    left_out = f"; left out: {lost}" if lost else ""
    inspection.add("prompts", f"{texts.prompts:,} to train on and {texts.held_out:,} held out{basis}{left_out}")
    if result.unused_columns:
        inspection.add("data", f"columns without influence: {listed_names(result.unused_columns)}")
    cut = sum(example.finish_reason == "length" for example in result.train) / len(result.train)
    means = f"{texts.prompt_tokens:.0f} tokens a prompt and {texts.response_tokens:.0f} a response"
    text = f"{means} on average, at most {texts.longest} together; {cut:.0%} of the responses are cut"
    fix = f": raise generate.max_new_tokens above {job.max_new_tokens}, so that the player sees how responses end"
    inspection.add("lengths", text + fix if cut > _CUT else text, "warn" if cut > _CUT else "ok")
    return texts


def padding(tokens: list[tuple[int, int]], train: TrainConfig) -> float:
    """Tokens of padded rows divided by those of their sequences.

    Batches are cut as `batches.deal_padded` cuts them. The opponent's responses are assumed to be as long as the human
    response to another prompt.

    Args:
        tokens: The lengths of each prompt and its human response.
        train: Training's settings.
    """
    from spin_core.data.batches import micro_batches

    responses = sides(train)
    tokens_N2 = np.random.default_rng(0).permutation(np.array(tokens, np.int64))[:_PADDED]
    lengths_PN = np.stack([tokens_N2[:, 0] + np.roll(tokens_N2[:, 1], side) for side in range(responses)])
    longest_N, padded = lengths_PN.max(axis=0), 0
    for start in range(0, len(longest_N), train.batch_size):
        longest_B = longest_N[start : start + train.batch_size]
        for cut in micro_batches(longest_B, responses, micro_batch_tokens(train)):
            padded += responses * len(cut) * int(longest_B[cut[0]])
    return padded / int(lengths_PN.sum())


def _assume_longest(inspection: Inspection, job: PromptsJob, number: int | None) -> Texts | None:
    """Rows that are still on the hub, each assumed to be as long as the configuration allows."""
    settings = job.config
    prompts = settings.sample if number is None else min(settings.sample or number, number)
    if prompts is None:
        inspection.add(
            "lengths", "unknown, and so are memory, disk and time: set prompts.sample, or fetch the data", "warn"
        )
        return None
    prompt, response = settings.max_prompt_tokens, job.max_new_tokens
    inspection.add(
        "lengths", f"unknown: {count(prompts, 'prompt')} of {prompt} and responses of {response} tokens are assumed"
    )
    return Texts(prompts, settings.held_out, prompt, response, prompt, prompt + response)


def rows_on_hub(source: SourceConfig, setting: str = "prompts.source") -> int | None:
    """The number of rows of a data set on the hub, from its card; None if the card does not say.

    Raises:
        DataError: The data set is neither on the hub nor in its cache.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    from spin_core.errors import first_line

    try:
        card = HfApi().dataset_info(source.path, revision=source.revision, timeout=5).card_data
    except (OSError, ValueError, HTTPError) as error:
        if _is_cached(source.path):
            return None
        raise DataError(
            f"{source.path} is not a file or folder here, and the hub did not answer for it ({first_line(error)}): "
            f"fix {setting}.path, or connect to the hub"
        ) from error
    about = card.to_dict().get("dataset_info", []) if card is not None else []
    parts = about if isinstance(about, list) else [about]
    splits = [split for part in parts for split in part.get("splits", [])]
    return max((int(split["num_examples"]) for split in splits if split["name"] == source.split), default=None)


def _is_cached(name: str) -> bool:
    """Whether `datasets` has fetched this data set of the hub before."""
    import datasets

    *owner, own = name.split("/")
    folder = "___".join([*owner, datasets.naming.camelcase_to_snakecase(own)])
    return (Path(datasets.config.HF_DATASETS_CACHE) / folder).is_dir()
