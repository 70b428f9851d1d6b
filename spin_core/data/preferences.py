"""Preference data as pairs, for DPO as a control: the steps of phase `preferences`.

The chosen response takes the place of the real one and the rejected response that of the generated one. A row is one of

    prompt, chosen, rejected           text or turns; the responses may repeat the prompt's turns
    chosen, rejected                   whole conversations, or texts whose common beginning is the prompt

with or without `input`, `system`, `history` and `tools`. The prompt's column has one of several names. A row from which
nothing can be learned is dropped, and counted by its reason.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from spin_core.config.data import PromptsConfig
from spin_core.data.chat import Message
from spin_core.data.conversations import Conversation, check_conversation
from spin_core.data.drops import Drops, nothing_left
from spin_core.data.examples import BATCH, FIXES, Example, ExampleBuilder
from spin_core.data.files.example_files import TOOLS
from spin_core.data.files.rows import Rows, rows_at
from spin_core.data.formats.columns import CHOSEN, CONTEXT, INPUTS, PREFERENCE_PROMPTS, REJECTED, rename
from spin_core.data.formats.context import row_tools, with_context, with_input
from spin_core.data.formats.marked import looks_marked, split_marked
from spin_core.data.formats.tools import Tools
from spin_core.data.formats.turns import Dropped, join_turns, turns_of
from spin_core.data.formats.values import Row, text_of
from spin_core.errors import DataError
from spin_core.runtime.progress import Progress

SETTING = "controls.dpo"
"""Where the configuration names preference data."""

_FIXES = {
    **{reason: fix.replace("prompts.columns", f"{SETTING}.columns") for reason, fix in FIXES.items()},
    "malformed": "give prompts and responses as text or as turns with role and content",
    "prompts-differ": "give rows whose chosen and rejected responses answer the same prompt",
    "identical": "give rows whose chosen and rejected responses differ",
    "in-held-out": "give preferences about other prompts than the held-out ones",
}


class Preference(NamedTuple):
    """A prompt's turns, and the two responses to it."""

    messages: list[Message]
    chosen: str
    rejected: str
    tools: Tools | None = None
    extras: tuple[Message, Message] = ({}, {})
    """Other keys of both responses' turns, such as their thoughts."""

    def conversations(self) -> tuple[Conversation, Conversation]:
        """The prompt with the chosen response, and with the rejected one."""
        chosen, rejected = self.extras
        return (
            Conversation(self.messages, self.chosen, self.tools, chosen),
            Conversation(self.messages, self.rejected, self.tools, rejected),
        )


class PreferenceReader:
    """Reads the preferences in a source's rows, which may come in parts."""

    def __init__(self, columns: dict[str, str], name: str) -> None:
        """Take new names for columns, by the source's own name, and the source's name for messages."""
        self._columns, self._name = columns, name
        self._names: set[str] = set()
        self._unread: set[str] = set()
        self.rows = 0
        """The number of rows that were read."""
        self.drops: Drops = Counter()
        """Rows that were left out, by reason."""
        self.unused: set[str] = set()
        """The columns with values that had no influence, by the source's own names."""
        self._has_prompts: bool | None = None
        """Whether the first rows have a column for the prompt. Then it is never guessed."""

    def read(self, rows: Sequence[Row]) -> list[Preference]:
        """The preference in each row that has one. Raises `DataError` for columns that get one name."""
        source = rows_at(rows, self._name)
        kept: list[Preference] = []
        renamed = [self._rename(source, index) for index in range(len(source))]
        if self._has_prompts is None:
            self._has_prompts = any(_prompt_column(row) for row in renamed)
        for index, row in enumerate(renamed):
            self._names.update(row)
            self._note_unused(source[index], row)
            try:
                kept.append(preference_of(row, has_prompts=self._has_prompts))
            except Dropped as reason:
                self.drops[str(reason)] += 1
            except DataError:
                self.drops["malformed"] += 1
        self.rows += len(source)
        self._unread |= source.unread
        self.unused |= source.unread
        return kept

    def _note_unused(self, source: Row, row: Row) -> None:
        """Note the columns of a row that have a value and no influence."""
        used = {_prompt_column(row), _input_column(row), CHOSEN, REJECTED, *CONTEXT}
        for key, value in source.items():
            if self._columns.get(key, key) not in used and value not in (None, "", [], {}):
                self.unused.add(key)

    def check_columns(self) -> None:
        """Raise `DataError` if no row that was read has one of the two sides."""
        missing = [side for side in (CHOSEN, REJECTED) if side not in self._names]
        if missing:
            present = ", ".join(sorted(self._names | self._unread))
            raise DataError(
                f"{self._name} is not preference data, since it has no column {' or '.join(missing)} "
                f"(found: {present}): give other data, or name the column in {SETTING}.columns, "
                f'{{"its name": "{missing[0]}"}}'
            )

    def _rename(self, rows: Rows, index: int) -> Row:
        try:
            return rename(rows[index], self._columns, f"{SETTING}.columns")
        except DataError as error:
            raise DataError(f"{rows.place(index)}: {error}") from error


def preference_of(row: Row, *, has_prompts: bool = False) -> Preference:
    """A row's preference.

    Args:
        row: under its new names.
        has_prompts: whether other rows have a column for the prompt, so that it is not guessed where it is missing.

    Raises:
        Dropped: nothing can be learned from the row.
        DataError: a value is of the wrong kind.
    """
    column = _prompt_column(row)
    is_text = isinstance(row.get(CHOSEN), str)
    if column is None and is_text and not has_prompts:
        prompt, sides = _split_texts(text_of(row, CHOSEN), text_of(row, REJECTED))
    else:
        column = column or ("prompt" if is_text else None)
        prompt = turns_of(row, column, "user") if column else []
        prompt = with_input(prompt, column or "", row, _input_column(row), SETTING)
        sides = [turns_of(row, side, "assistant") for side in (CHOSEN, REJECTED)]
    config = PromptsConfig()
    chosen, rejected = (
        check_conversation(with_context(row, join_turns(prompt, side), SETTING), config) for side in sides
    )
    if chosen.messages != rejected.messages:
        raise Dropped("prompts-differ")
    extras = chosen.extra, rejected.extra
    return Preference(chosen.messages, chosen.response, rejected.response, row_tools(row, SETTING), extras)


def build_pairs(
    items: Sequence[Preference], builder: ExampleBuilder, held_out: Collection[str], progress: Progress
) -> tuple[list[Row], Drops]:
    """Tokenise preferences: rows of `pairs.parquet`, and how many preferences were dropped, by reason.

    Args:
        items: the preferences.
        builder: tokenises as phase `prompts` does.
        held_out: ids of held-out prompts; preferences about them are dropped.
        progress: counts the preferences.
    """
    progress.start(len(items), "preference")
    kept: list[Row] = []
    drops: Drops = Counter()
    seen: set[tuple[bytes, ...]] = set()
    for first in range(0, len(items), BATCH):
        batch = [item.conversations() for item in items[first : first + BATCH]]
        faults = [next(filter(None, map(builder.fault_of, sides)), None) for sides in batch]
        drops.update(fault for fault in faults if fault)
        clean = [sides for sides, fault in zip(batch, faults, strict=True) if not fault]
        chosen_side, rejected_side = (builder.build([sides[number] for sides in clean]) for number in range(2))
        for (chosen, reason), (rejected, other_reason) in zip(chosen_side, rejected_side, strict=True):
            key = tuple(ids.tobytes() for ids in (chosen.prompt_ids, chosen.response_ids, rejected.response_ids))
            reason = reason or other_reason
            if reason is None and chosen.id != rejected.id:
                # The template opens an answer without thoughts in another way than one with them.
                reason = "prompts-differ"
            elif reason is None and np.array_equal(chosen.response_ids, rejected.response_ids):
                reason = "identical"
            elif reason is None and chosen.id in held_out:
                reason = "in-held-out"
            elif reason is None and key in seen:
                reason = "duplicate"
            if reason is None:
                seen.add(key)
                kept.append(_pair_of(chosen, rejected))
            else:
                drops[reason] += 1
        progress.report(min(first + BATCH, len(items)))
    return kept, drops


def no_preference_left(name: str, drops: Drops) -> DataError:
    """The error to raise when all preferences of a source were dropped."""
    return nothing_left(f"preference of {name}", drops, _FIXES)


def _prompt_column(row: Row) -> str | None:
    """The column with a row's prompt; None without one."""
    return next((column for column in PREFERENCE_PROMPTS if row.get(column) is not None), None)


def _input_column(row: Row) -> str | None:
    """The column with the text that a row's prompt is about; None without one."""
    return next((column for column in INPUTS if row.get(column) is not None and column != _prompt_column(row)), None)


def _split_texts(chosen: str, rejected: str) -> tuple[list[Message], list[list[Message]]]:
    """Two texts without a prompt of their own: the prompt's turns, and each response's.

    Texts that mark their turns are split at the marks. Others have the same beginning: their prompt ends with the last
    word that they share, and the responses begin with the space after it, so that prompt + response is the text.
    """
    if looks_marked(chosen) and looks_marked(rejected):
        return [], [split_marked(chosen), split_marked(rejected)]
    common = os.path.commonprefix([chosen, rejected])
    prompt = common[: max(common.rfind(space) for space in " \n\t") + 1].rstrip()
    sides = [[{"role": "assistant", "content": text[len(prompt) :]}] for text in (chosen, rejected)]
    return [{"role": "user", "content": prompt}], sides


def _pair_of(chosen: Example, rejected: Example) -> Row:
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
        TOOLS.name: chosen.tools or None,
    }
