"""Phase `prompts`: the SFT data as token ids, split into training and held-out prompts.

Writes `train.parquet` and `held_out.parquet`. A prompt's `id` is a digest of its token ids, so prompts that the
model cannot tell apart are one prompt: no id is in both files, and none occurs twice in the held-out file. In the
training file it does where people gave it several responses.

The split hangs on the digest of each prompt and the seed alone, so rows that are added to the source later move no
more prompts across it than they must, and a smaller sample is part of a larger one.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.config.model import ModelConfig
from spin_core.data.chat import Encoded, Message, Renderer, decode_responses
from spin_core.data.conversations import Conversation, conversations
from spin_core.data.sources import Row, read_rows
from spin_core.data.tokenizer import context_length
from spin_core.errors import ConfigError, DataError
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PromptsJob

log = logging.getLogger("spin_core")

BATCH = 1024
"""Rows tokenised at a time."""

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

CURES = {
    "prompt-too-long": "raise prompts.max_prompt_tokens",
    "no-response": "give rows with an assistant's turn",
    "empty-response": "give rows with a response, or name its column in prompts.columns",
    "empty-prompt": "give rows with a prompt, or name its column in prompts.columns",
    "unknown-character": "use a tokenizer whose vocabulary covers the responses",
    "control-token": "take the chat format's control tokens out of the texts: they are added here",
    "text-too-short": "lower prompts.text_prompt_chars",
    "turns-out-of-order": "let user and assistant take turns, the user first",
    "unknown-role": "use the roles system, user and assistant",
    "in-held-out": "give training prompts that are not in prompts.held_out_source",
}
"""What to do when a reason has left no row."""


class Example(NamedTuple):
    """A row of the files."""

    id: str
    prompt: str
    messages: str
    response: str
    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    finish_reason: str


def trust(job: PromptsJob) -> ModelConfig:
    """Of the model's settings, the only one that matters to its tokenizer."""
    return ModelConfig(trust_remote_code=job.trust_remote_code)


def check_context(job: PromptsJob) -> None:
    """The longest prompt and the longest response must fit into the model's context together."""
    context = context_length(job.tokenizer.path, trust(job))
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


def divide(
    job: PromptsJob, examples: list[Example], renderer: Renderer, progress: Progress
) -> tuple[list[Example], list[Example], Counter[str]]:
    """Training rows, held-out rows, and the rows that are in neither, by reason."""
    config = job.config
    if config.held_out_source is None:
        train, held_out, moved = split(examples, config.held_out, job.seed, leave=1)
    else:
        rows, _ = read_rows(config.held_out_source)
        other, _ = load(job, config.held_out_source.path, rows, renderer, progress)
        _, held_out, _ = split(other, config.held_out, job.seed, leave=0)
        ids = {example.id for example in held_out}
        train = [example for example in examples if example.id not in ids]
        moved = Counter({"in-held-out": len(examples) - len(train)})
    if config.sample is not None:
        chosen = sample(train, config.sample, job.seed)
        moved["not-sampled"] += len(train) - len(chosen)
        train = chosen
    return train, held_out, moved


def load(
    job: PromptsJob, name: str, rows: Sequence[Row], renderer: Renderer, progress: Progress, *, repeats: bool = False
) -> tuple[list[Example], Counter[str]]:
    """The examples in a source's rows, in their order, and the rows dropped by reason. `repeats` may stay or not."""
    found, drops = conversations(rows, job.config, name)
    progress.start(len(found), "row")
    examples: list[Example] = []
    seen: set[tuple[bytes, bytes]] = set()
    for first in range(0, len(found), BATCH):
        batch = found[first : first + BATCH]
        clean = [item for item in batch if not has_control_token(item, renderer)]
        drops["control-token"] += len(batch) - len(clean)
        for row in renderer.encode(*columns(clean), job.max_new_tokens):
            reason = fault(row, job, renderer)
            example = example_of(row, job, renderer)
            key = example.prompt_ids.tobytes(), example.response_ids.tobytes()
            if reason is None and key in seen and not repeats:
                reason = "duplicate"
            if reason is None:
                seen.add(key)
                examples.append(example)
            else:
                drops[reason] += 1
        progress.tell(min(first + BATCH, len(found)))
    if not examples:
        refuse_empty(name, drops)
    log.info("%s: kept %d of %d rows%s", name, len(examples), len(examples) + drops.total(), listed(drops))
    return examples, drops


def has_control_token(item: Conversation, renderer: Renderer) -> bool:
    """Whether a text would be read as the end or the beginning of a turn."""
    texts = (*(turn["content"] for turn in item.messages), renderer.response_text(item.response))
    return any(renderer.has_control_token(text) for text in texts)


def columns(items: Sequence[Conversation]) -> tuple[list[list[Message]], list[str]]:
    """Conversations as two columns."""
    return [item.messages for item in items], [item.response for item in items]


def fault(row: Encoded, job: PromptsJob, renderer: Renderer) -> str | None:
    """The reason for which a tokenised row is dropped, if there is one. `DataError` if it is to be refused."""
    longest = job.config.max_prompt_tokens
    if len(row.prompt_ids) > longest:
        if job.config.too_long == "refuse":
            raise DataError(
                f"a prompt has {len(row.prompt_ids)} tokens, more than prompts.max_prompt_tokens = {longest} "
                f"({row.messages[-1]['content'][:40]!r}…): raise it, or set prompts.too_long to drop"
            )
        return "prompt-too-long"
    if renderer.unknown_id in row.response_ids:
        return "unknown-character"
    return None if row.response.strip() else "empty-response"


def example_of(row: Encoded, job: PromptsJob, renderer: Renderer) -> Example:
    """A tokenised row as it is written. The text of a cut response is cut with it."""
    prompt_ids = np.asarray(row.prompt_ids, np.int32)
    plain = job.chat.template == "plain"
    whole = row.finish_reason == "stop"
    return Example(
        id=hashlib.sha256(prompt_ids.tobytes()).hexdigest()[:16],
        prompt=row.prompt if plain else readable(row.messages),
        # Bare text has no turns, and nothing that is made from it should be written with a chat template.
        messages=json.dumps([] if plain else row.messages, ensure_ascii=False),
        response=row.response if whole else decode_cut(row, renderer),
        prompt_ids=prompt_ids,
        response_ids=np.asarray(row.response_ids, np.int32),
        finish_reason=row.finish_reason,
    )


def decode_cut(row: Encoded, renderer: Renderer) -> str:
    """The text of a cut response."""
    return decode_responses(renderer.tokenizer, [row.prompt_ids], [row.response_ids])[0]


def readable(messages: Sequence[Message]) -> str:
    """A conversation for people: a single question bare, several turns with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def split(
    examples: Sequence[Example], held_out: int, seed: int, *, leave: int
) -> tuple[list[Example], list[Example], Counter[str]]:
    """Training rows, held-out rows with one response each, and how many other responses to those were dropped.

    At least `leave` prompts must be left for training.
    """
    first = {example.id: example for example in reversed(examples)}
    most = len(first) - leave
    if most < held_out:
        cure = f"lower it to at most {most}" if most > 0 else "give more rows"
        raise DataError(f"prompts.held_out is {held_out}, but there are only {len(first)} different prompts: {cure}")
    chosen = set(sorted(first, key=lambda id: order(id, seed))[:held_out])
    train = [example for example in examples if example.id not in chosen]
    kept_out = [example for example in examples if example.id in chosen and first[example.id] is example]
    return train, kept_out, Counter({"other-response-held-out": len(examples) - len(train) - len(kept_out)})


def sample(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """So many rows, chosen by digest and in the order they came; all if there are fewer."""
    ranked = sorted(range(len(examples)), key=lambda place: order(examples[place].id, seed))
    return [examples[place] for place in sorted(ranked[:size])]


def order(id: str, seed: int) -> str:
    """A prompt's place in the seeded order."""
    return hashlib.sha256(f"{seed}:{id}".encode()).hexdigest()


def write(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as Parquet."""
    columns = zip(*examples, strict=True)
    table = pa.table([pa.array(c, type=f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    pq.write_table(table, path)


def refuse_empty(source: str, drops: Counter[str]) -> None:
    """Say why no row is left, and what to do about the commonest reason."""
    reason, count = drops.most_common(1)[0]
    raise DataError(
        f"no row of {source} is left ({count} of {drops.total()} dropped as {reason}): "
        f"{CURES.get(reason, 'give other data')}"
    )


def listed(drops: Counter[str]) -> str:
    """Drops as they appear in the log."""
    parts = [f"{count:,} {reason}" for reason, count in sorted(drops.items()) if count]
    return f"; {', '.join(parts)}" if parts else ""
