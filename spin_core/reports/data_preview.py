"""What the player will see of the data: `spin data`.

The rows go through the steps of phase `prompts`, and the texts are decoded from the token ids that it would publish.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spin_core.config.run import RunConfig
from spin_core.data import prompts, sources
from spin_core.data.conversations import ConversationReader
from spin_core.data.examples import Example
from spin_core.data.formats.columns import wanted_columns
from spin_core.data.tokenizer import model_ends
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


@dataclass(frozen=True)
class SourcePreview:
    """What becomes of one source."""

    name: str
    use: str
    """What its rows are for: `train and held out`, `train` or `held out`."""
    rows: int
    """The number of rows in the source."""
    read: int
    """The number of rows that were tokenised, from the beginning."""
    train: int
    held_out: int
    left_out: Mapping[str, int]
    """Rows that are left out, by reason."""
    cures: Mapping[str, str]
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


def preview_data(config: RunConfig, rows: int) -> list[SourcePreview]:
    """What becomes of the SFT data, and of the held-out source if there is one, with their first `rows` examples.

    Raises:
        SpinError: the data, the tokenizer or the chat template cannot be used.
    """
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
            use = "train" if settings.held_out_source else "train and held out"
            previews = [
                _preview_part(job.model_copy(update={"config": part}), renderer, rows, use, name)
                for name, part in settings.parts().items()
            ]
        if settings.held_out_source is not None:
            part = settings.model_copy(update={"source": settings.held_out_source})
            previews.append(_preview_part(job.model_copy(update={"config": part}), renderer, rows, "held out"))
        return previews


def _preview_source(job: PromptsJob, renderer: Any, rows: int) -> SourcePreview:
    """The source of the training prompts."""
    config = job.config
    if config.is_demo:
        source_rows: Sequence[Any] = sources.demo_rows(config.sample, config.held_out, job.seed)[0]
    else:
        source_rows = sources.prompt_rows(config)[0]
    result = prompts.preview(job, source_rows, renderer, characters=_CHARACTERS)
    held_out = 0 if config.held_out_source else result.held_out
    return _describe(
        job,
        renderer.tokenizer,
        result.train,
        rows,
        name=config.source.path,
        use="train" if config.held_out_source else "train and held out",
        rows=len(source_rows),
        read=result.read,
        train=result.prompts,
        held_out=held_out,
        left_out=result.drops,
        unused_columns=result.unused_columns,
    )


def _preview_part(job: PromptsJob, renderer: Any, rows: int, use: str, name: str = "") -> SourcePreview:
    """A source that is read whole: one of several, or that of the held-out prompts. How it is divided is not known."""
    config, setting = job.config, f"prompts.sources.{name}" if name else "prompts"
    source_rows, _ = sources.read_rows(config.source, setting, wanted_columns(config.columns))
    reader = ConversationReader(config, config.source.path, setting)
    examples, drops = prompts.load_examples(
        job, config.source.path, source_rows, renderer, Progress(out=io.StringIO()), reader=reader
    )
    return _describe(
        job,
        renderer.tokenizer,
        examples,
        rows,
        name=config.source.path,
        use=use,
        rows=len(source_rows),
        read=len(source_rows),
        train=len(examples) if name else 0,
        held_out=0 if name else min(config.held_out, len(examples)),
        left_out=drops,
        unused_columns=sorted(reader.unused),
    )


def _describe(
    job: PromptsJob,
    tokenizer: Any,
    examples: Sequence[Example],
    shown: int,
    *,
    left_out: Mapping[str, int],
    **facts: Any,
) -> SourcePreview:
    """The preview of a source with these examples."""
    left_out = {reason: number for reason, number in sorted(left_out.items(), key=lambda item: -item[1]) if number}
    return SourcePreview(
        left_out=left_out,
        cures={reason: cure for reason in left_out if (cure := prompts.cure_of(reason))},
        prompt_tokens=_quantiles([len(example.prompt_ids) for example in examples]),
        response_tokens=_quantiles([len(example.response_ids) for example in examples]),
        max_prompt_tokens=job.config.max_prompt_tokens,
        max_new_tokens=job.max_new_tokens,
        cut=sum(example.finish_reason == "length" for example in examples) / len(examples),
        samples=[_sample(tokenizer, example) for example in examples[:shown]],
        **facts,
    )


def _sample(tokenizer: Any, example: Example) -> SampleRow:
    def text(ids: Any) -> str:
        decoded: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded

    # Decoded together with the prompt, as the model sees it: some tokenizers drop the space before a first word.
    ids = [*map(int, example.prompt_ids), *map(int, example.response_ids)]
    prompt, whole = text(ids[: len(example.prompt_ids)]), text(ids)
    response = whole.removeprefix(prompt) if whole.startswith(prompt) else text(ids[len(example.prompt_ids) :])
    return SampleRow(
        prompt=prompt,
        response=response,
        prompt_tokens=len(example.prompt_ids),
        response_tokens=len(example.response_ids),
        cut=example.finish_reason == "length",
    )


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    values = np.quantile(lengths, list(QUANTILES.values()), method="nearest")
    return {name: int(value) for name, value in zip(QUANTILES, values, strict=True)}
