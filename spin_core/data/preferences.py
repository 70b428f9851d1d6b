"""Preference data as pairs, for DPO as a control.

Writes `pairs.parquet` as phase `pairs` does, with the chosen response for the real one and the rejected one for the
generated one. A row is one of

    prompt, chosen, rejected           text or turns; the responses may repeat the prompt's turns
    conversations, chosen, rejected    turns, ShareGPT's among them
    chosen, rejected                   whole conversations, or texts whose common beginning is the prompt

with a `system` prompt or without. A row of which nothing can be learned is dropped, and counted by its reason.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from spin_core.config.data import PromptsConfig
from spin_core.data import prompts
from spin_core.data.chat import Message, Renderer
from spin_core.data.conversations import Conversation, Dropped, check, text_of, turns_of
from spin_core.data.prompts import Example
from spin_core.data.sources import Row
from spin_core.errors import DataError
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PreferencesJob, PromptsJob

SETTING = "controls.dpo"

CHOSEN, REJECTED = "chosen", "rejected"

DIALOGUE = re.compile(r"\s*(Human|Assistant): ?")
"""How texts like those of Anthropic's HH-RLHF mark whose turn it is, at the beginning of a line after an empty one."""

CURES = {
    "malformed": "give prompts and responses as text or as turns with role and content",
    "prompts-differ": "give rows whose chosen and rejected responses answer the same prompt",
    "identical": "give rows whose chosen and rejected responses differ",
    "in-held-out": "give preferences about other prompts than the held-out ones",
}
"""What to do when a reason has left no row; `prompts.CURES` has the others."""


class Preference(NamedTuple):
    """A prompt's turns, and the two responses to it."""

    messages: list[Message]
    chosen: str
    rejected: str


def preferences(rows: Sequence[Row], columns: dict[str, str], name: str) -> tuple[list[Preference], Counter[str]]:
    """The preference in each row, and how many rows were dropped, by reason.

    `name` is the source's, for messages. Raises `DataError` if the source holds no preferences.
    """
    rows = [{columns.get(key, key): value for key, value in row.items()} for row in rows]
    missing = [side for side in (CHOSEN, REJECTED) if side not in rows[0]]
    if missing:
        raise DataError(
            f"{name} is no preference data, since it has no column {' or '.join(missing)} "
            f"(found: {', '.join(sorted(rows[0]))}): give other data, or name the column in {SETTING}.columns, "
            f'{{"its name": "{missing[0]}"}}'
        )
    kept: list[Preference] = []
    drops: Counter[str] = Counter()
    for row in rows:
        try:
            kept.append(preference(row))
        except Dropped as reason:
            drops[str(reason)] += 1
        except DataError:
            drops["malformed"] += 1
    return kept, drops


def preference(row: Row) -> Preference:
    """A row's preference. Raises `Dropped`, or `DataError` for a value of the wrong kind."""
    prompt = next((column for column in ("conversations", "prompt") if row.get(column) is not None), None)
    if prompt is not None:
        asked = turns_of(row, prompt, "user")
        sides = [turns_of(row, side, "assistant") for side in (CHOSEN, REJECTED)]
    elif isinstance(row[CHOSEN], str):
        asked, sides = parted(text_of(row, CHOSEN), text_of(row, REJECTED))
    else:
        asked, sides = [], [turns_of(row, side, "assistant") for side in (CHOSEN, REJECTED)]
    system = [{"role": "system", "content": text_of(row, "system")}] if row.get("system") else []
    config = PromptsConfig()
    chosen, rejected = (check(whole(system, asked, side), config) for side in sides)
    if chosen.messages != rejected.messages:
        raise Dropped("prompts-differ")
    return Preference(chosen.messages, chosen.response, rejected.response)


def whole(system: list[Message], asked: list[Message], side: list[Message]) -> list[Message]:
    """A conversation with its response. Many data sets repeat the prompt's turns in their responses."""
    turns = side if side and side[0]["role"] != "assistant" else asked + side
    return turns if turns and turns[0]["role"] == "system" else system + turns


def parted(chosen: str, rejected: str) -> tuple[list[Message], list[list[Message]]]:
    """Two texts without a prompt of their own: the prompt's turns, and each response's.

    Texts that mark their turns are taken apart at the marks. Others begin alike, and their prompt ends with the last
    word that they share; the responses begin with the space after it, so that prompt + response is the text.
    """
    dialogues = [dialogue(text) for text in (chosen, rejected)]
    if all(dialogues):
        return [], dialogues
    common = os.path.commonprefix([chosen, rejected])
    prompt = common[: max(common.rfind(space) for space in " \n\t") + 1].rstrip()
    sides = [[{"role": "assistant", "content": text[len(prompt) :]}] for text in (chosen, rejected)]
    return [{"role": "user", "content": prompt}], sides


def dialogue(text: str) -> list[Message]:
    """The turns of a text whose paragraphs say whose they are; none if they do not."""
    found: list[Message] = []
    for paragraph in text.strip().split("\n\n"):
        mark = DIALOGUE.match(paragraph)
        if mark:
            role = "user" if mark[1] == "Human" else "assistant"
            found.append({"role": role, "content": paragraph[mark.end() :]})
        elif found:
            found[-1]["content"] += f"\n\n{paragraph}"
        else:
            return []
    return found


def tokenised(
    found: Sequence[Preference], job: PreferencesJob, renderer: Renderer, progress: Progress
) -> tuple[list[Row], Counter[str]]:
    """Rows of `pairs.parquet`, and how many preferences were dropped, by reason."""
    like, held_out = as_prompts(job), set(pq.read_table(job.prompts.path / "held_out.parquet")["id"].to_pylist())
    progress.start(len(found), "preference")
    kept: list[Row] = []
    drops: Counter[str] = Counter()
    seen: set[tuple[bytes, ...]] = set()
    for first in range(0, len(found), prompts.BATCH):
        batch = found[first : first + prompts.BATCH]
        clean = [item for item in batch if not has_control_token(item, renderer)]
        drops["control-token"] += len(batch) - len(clean)
        messages = [item.messages for item in clean]
        sides = [
            renderer.encode(messages, texts, job.max_new_tokens)
            for texts in ([item.chosen for item in clean], [item.rejected for item in clean])
        ]
        for rows in zip(*sides, strict=True):
            reason = next((fault for row in rows if (fault := prompts.fault(row, like, renderer))), None)
            chosen, rejected = (prompts.example_of(row, like, renderer) for row in rows)
            key = tuple(ids.tobytes() for ids in (chosen.prompt_ids, chosen.response_ids, rejected.response_ids))
            if reason is None and np.array_equal(chosen.response_ids, rejected.response_ids):
                reason = "identical"
            elif reason is None and chosen.id in held_out:
                reason = "in-held-out"
            elif reason is None and key in seen:
                reason = "duplicate"
            if reason is None:
                seen.add(key)
                kept.append(pair_of(chosen, rejected))
            else:
                drops[reason] += 1
        progress.tell(min(first + prompts.BATCH, len(found)))
    return kept, drops


def has_control_token(item: Preference, renderer: Renderer) -> bool:
    """Whether a text would be read as the end or the beginning of a turn."""
    return any(
        prompts.has_control_token(Conversation(item.messages, text), renderer) for text in (item.chosen, item.rejected)
    )


def pair_of(chosen: Example, rejected: Example) -> Row:
    """A row of `pairs.parquet`."""
    return {
        "id": chosen.id,
        "t": 0,
        "prompt": chosen.prompt,
        "messages": chosen.messages,
        "real": chosen.response,
        "generated": rejected.response,
        "prompt_ids": chosen.prompt_ids,
        "real_ids": chosen.response_ids,
        "generated_ids": rejected.response_ids,
        "real_finish": chosen.finish_reason,
        "generated_finish": rejected.finish_reason,
    }


def as_prompts(job: PreferencesJob) -> PromptsJob:
    """What phase `prompts` is asked where both do the same: one tokenisation, one set of limits."""
    return PromptsJob(
        output=job.output,
        config=PromptsConfig(max_prompt_tokens=job.max_prompt_tokens),
        chat=job.chat,
        tokenizer=job.tokenizer,
        max_new_tokens=job.max_new_tokens,
        trust_remote_code=job.trust_remote_code,
    )


def refuse_empty(source: str, drops: Counter[str]) -> None:
    """Say why no preference is left, and what to do about the commonest reason."""
    reason, count = drops.most_common(1)[0]
    cure = CURES.get(reason) or prompts.CURES.get(reason, "give other data")
    raise DataError(
        f"no preference of {source} is left ({count} of {drops.total()} dropped as {reason}): "
        f"{cure.replace('prompts.columns', f'{SETTING}.columns')}"
    )
