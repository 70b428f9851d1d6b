"""What the player will see of the data: `spin data`.

The rows go through the steps of phase `prompts`, and the texts are decoded from the token ids that it would publish.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from spin_core.config.controls import DpoConfig
from spin_core.config.run import RunConfig
from spin_core.data import prompts
from spin_core.data.examples import Example, ExampleBuilder
from spin_core.data.files.preview import Beginning, Share, demo_beginning, load_beginning, preview, read_beginning
from spin_core.data.preferences import SETTING, Preference, PreferenceReader, build_pairs, no_preference_left
from spin_core.data.sources import check_demo_is_meant, open_preferences
from spin_core.data.tokenizer import model_ends
from spin_core.errors import DataError
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.models import base_model
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob
from spin_core.store.records import ModelVersion

_CHARACTERS = 4_000_000
"""The most characters of a source that are tokenised, which takes a few seconds."""

QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}


@dataclass(frozen=True)
class SampleRow:
    """One example, as text with its control tokens."""

    prompt: str
    response: str
    """What is trained: the response as far as it is not cut, and the end of turn."""
    prompt_tokens: int
    response_tokens: int
    cut: bool
    """The response is longer than `generate.max_new_tokens`, and its end is not trained."""
    rejected: str | None = None
    """The rejected response of a preference, whose chosen one is `response`; None for SFT data."""
    rejected_tokens: int = 0


@dataclass(frozen=True)
class SourcePreview:
    """What becomes of one source."""

    name: str
    use: str
    """What its rows are for: `train and held out`, `train`, `held out` or `preferences for DPO`."""
    rows: int
    """The number of rows in the source."""
    read: int
    """The number of rows that were tokenised, from the beginning."""
    train: int
    held_out: int
    left_out: Mapping[str, int]
    """Rows that are left out, by reason."""
    fixes: Mapping[str, str]
    """What to do about these, for reasons that are faults."""
    unused_columns: Sequence[str]
    prompt_tokens: Mapping[str, int]
    """Quantiles of the prompts' lengths."""
    response_tokens: Mapping[str, int]
    max_prompt_tokens: int
    max_new_tokens: int
    cut: float
    """The share of responses that are cut."""
    samples: Sequence[SampleRow]
    problem: str = ""
    """Why these rows cannot be divided into training and held-out prompts, with the fix; empty if they can."""


def preview_data(config: RunConfig, rows: int) -> list[SourcePreview]:
    """What becomes of the SFT data, of the held-out source and of DPO's preferences, with their first `rows` examples.

    Raises:
        SpinError: the data, the tokenizer or the chat template cannot be used.
    """
    check_demo_is_meant(config)
    with tempfile.TemporaryDirectory(prefix="spin-data-") as scratch:
        folder = base_model.folder_without_weights(config.model, config.sft, Path(scratch))
        tokenizer = base_model.prepare_tokenizer(folder, config.model)
        renderer = base_model.make_renderer(tokenizer, config.chat, model_ends(folder))
        version = ModelVersion(path=folder, digest="", t=0, parent=None)
        job = phase_jobs.prompts_job(Lineage(Path(), "data", config), version)
        settings = config.prompts
        if settings.sources is None:
            previews = [_preview_source(job, renderer, rows)]
        else:
            previews = _preview_mixture(job, renderer, rows)
        if settings.held_out_source is not None:
            part = settings.model_copy(update={"source": settings.held_out_source})
            previews.append(_preview_held_out(job.model_copy(update={"config": part}), renderer, rows))
        if config.controls.dpo is not None:
            previews.append(_preview_preferences(job, config.controls.dpo, renderer, rows))
        return previews


def _preview_source(job: PromptsJob, renderer: Any, rows: int) -> SourcePreview:
    """The source of the training prompts."""
    config = job.config
    source = demo_beginning(config, job.seed) if config.is_demo else read_beginning(config, _CHARACTERS)
    try:
        result = preview(job, source, renderer, characters=_CHARACTERS)
    except DataError as error:
        if config.is_demo:
            raise
        return _preview_undivided(job, source, renderer, rows, str(error))
    held_out = 0 if config.held_out_source else result.held_out
    return _describe(
        job,
        renderer.tokenizer,
        result.train,
        rows,
        name=config.source.path,
        use="train" if config.held_out_source else "train and held out",
        rows=source.number,
        read=result.read,
        train=result.prompts,
        held_out=held_out,
        left_out=result.drops,
        unused_columns=result.unused_columns,
    )


def _preview_undivided(job: PromptsJob, source: Beginning, renderer: Any, rows: int, problem: str) -> SourcePreview:
    """A source whose prompts cannot be divided. Raises `DataError` if it has none at all."""
    examples, drops, read = load_beginning(job, source, renderer, _CHARACTERS)
    return _describe(
        job,
        renderer.tokenizer,
        examples,
        rows,
        name=job.config.source.path,
        use="train",
        rows=source.number,
        read=read,
        train=len(examples) * source.number // read,
        held_out=0,
        left_out=drops,
        unused_columns=source.unused_columns,
        problem=problem,
    )


def _preview_mixture(job: PromptsJob, renderer: Any, rows: int) -> list[SourcePreview]:
    """Each of several sources, and how many of its rows are taken."""
    parts = {name: job.model_copy(update={"config": part}) for name, part in job.config.parts().items()}
    sources = {
        name: read_beginning(part.config, _CHARACTERS, f"prompts.sources.{name}", f"prompts.sources.{name}")
        for name, part in parts.items()
    }
    shares: Mapping[str, Share] = {}
    problem = ""
    try:
        shares = preview(job, sources, renderer, characters=_CHARACTERS).shares
    except DataError as error:
        problem = str(error)
    loader = prompts.ExampleLoader(job, renderer)
    return [
        _preview_part(part, sources[name], renderer, rows, name, shares.get(name), problem, loader)
        for name, part in parts.items()
    ]


def _preview_part(
    job: PromptsJob,
    source: Beginning,
    renderer: Any,
    rows: int,
    name: str,
    share: Share | None,
    problem: str,
    loader: prompts.ExampleLoader,
) -> SourcePreview:
    """One of several sources. Without a share it is not known what is taken of it, because of a problem."""
    setting, characters = f"prompts.sources.{name}", _CHARACTERS // len(job.config.parts())
    examples, drops, read = load_beginning(job, source, renderer, characters, setting, loader)
    usable = len(examples) * source.number // read
    train, held_out = share or Share(usable, 0)
    has_own = job.config.held_out_source is not None
    if share and read == source.number:
        drops["not-taken"] = usable - train - held_out
    return _describe(
        job,
        renderer.tokenizer,
        examples,
        rows,
        name=f"{name} ({job.config.source.path})",
        use="train" if has_own or share is None else "train and held out",
        rows=source.number,
        read=read,
        train=train,
        held_out=held_out,
        left_out=+drops,
        unused_columns=source.unused_columns,
        problem=problem,
    )


def _preview_held_out(job: PromptsJob, renderer: Any, rows: int) -> SourcePreview:
    """The source of the held-out prompts."""
    source = read_beginning(job.config, _CHARACTERS, "prompts", "prompts.held_out_source")
    examples, drops, read = load_beginning(job, source, renderer, _CHARACTERS)
    return _describe(
        job,
        renderer.tokenizer,
        examples,
        rows,
        name=job.config.source.path,
        use="held out",
        rows=source.number,
        read=read,
        train=0,
        held_out=min(job.config.held_out, len(examples) * source.number // read),
        left_out=drops,
        unused_columns=source.unused_columns,
    )


def _preview_preferences(job: PromptsJob, config: DpoConfig, renderer: Any, rows: int) -> SourcePreview:
    """DPO's preferences. Of a long source the first part is shown, and all parts are counted."""
    name = config.source.path
    reader = PreferenceReader(config.columns, name)
    first: list[Preference] = []
    usable = read = 0
    for part in open_preferences(config.source, f"{SETTING}.source", config.columns):
        kept = reader.read(part)
        usable += len(kept)
        if not first:
            first, read = kept, reader.rows
    reader.check_columns()
    builder = ExampleBuilder(renderer, job.config.max_prompt_tokens, job.max_new_tokens)
    pairs, drops = build_pairs(first, builder, (), Progress(out=io.StringIO()))
    if not pairs:
        raise no_preference_left(name, reader.drops + drops)
    return _describe(
        job,
        renderer.tokenizer,
        [_chosen_example(pair) for pair in pairs],
        rows,
        rejected=[pair["generated_ids"] for pair in pairs],
        name=name,
        use="preferences for DPO",
        rows=reader.rows,
        read=read,
        train=min(config.sample or usable, usable * len(pairs) // len(first)),
        held_out=0,
        left_out=reader.drops + drops,
        unused_columns=sorted(reader.unused),
    )


def _chosen_example(pair: Mapping[str, Any]) -> Example:
    """The prompt of a preference with its chosen response."""
    names = ("id", "prompt", "messages", "real", "prompt_ids", "real_ids", "real_finish")
    return Example(*(pair[name] for name in names))


def _describe(
    job: PromptsJob,
    tokenizer: Any,
    examples: Sequence[Example],
    shown: int,
    *,
    left_out: Mapping[str, int],
    rejected: Sequence[Any] = (),
    **facts: Any,
) -> SourcePreview:
    """The preview of a source with these examples."""
    left_out = {reason: number for reason, number in sorted(left_out.items(), key=lambda item: -item[1]) if number}
    return SourcePreview(
        left_out=left_out,
        fixes={reason: fix for reason in left_out if (fix := prompts.fix_of(reason))},
        prompt_tokens=_quantiles([len(example.prompt_ids) for example in examples]),
        response_tokens=_quantiles([len(example.response_ids) for example in examples]),
        max_prompt_tokens=job.config.max_prompt_tokens,
        max_new_tokens=job.max_new_tokens,
        cut=sum(example.finish_reason == "length" for example in examples) / len(examples),
        samples=[
            _sample(tokenizer, example, other) for example, other in zip_longest(examples[:shown], rejected[:shown])
        ],
        **facts,
    )


def _sample(tokenizer: Any, example: Example, rejected: Any | None) -> SampleRow:
    """An example as text, with the token ids of its rejected response if it has one."""

    def text(ids: Sequence[int]) -> str:
        decoded: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded

    def response(response_ids: Any) -> str:
        # Decoded together with the prompt, as the model sees it: some tokenizers drop the space before a first word.
        own = [*map(int, response_ids)]
        whole = text([*prompt_ids, *own])
        return whole.removeprefix(prompt) if whole.startswith(prompt) else text(own)

    prompt_ids = [*map(int, example.prompt_ids)]
    prompt = text(prompt_ids)
    return SampleRow(
        prompt=prompt,
        response=response(example.response_ids),
        prompt_tokens=len(prompt_ids),
        response_tokens=len(example.response_ids),
        cut=example.finish_reason == "length",
        rejected=None if rejected is None else response(rejected),
        rejected_tokens=0 if rejected is None else len(rejected),
    )


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    values = np.quantile(lengths, list(QUANTILES.values()), method="nearest")
    return {name: int(value) for name, value in zip(QUANTILES, values, strict=True)}
