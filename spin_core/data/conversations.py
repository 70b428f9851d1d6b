"""From rows to conversations: a prompt's turns, and the human response.

A source's layout is recognised by the names of its columns (`spin_core.data.formats.columns`).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from spin_core.config.data import PromptsConfig
from spin_core.config.resolve import suggestion
from spin_core.data.chat import Message
from spin_core.data.drops import Drops
from spin_core.data.files.rows import Rows, rows_at
from spin_core.data.formats.columns import INSTANCES, Layout, find_layout, missing_columns, rename
from spin_core.data.formats.context import row_tools, unlearned_by, with_context, with_input
from spin_core.data.formats.marked import divide, looks_marked, split_marked
from spin_core.data.formats.tools import Tools
from spin_core.data.formats.turns import UNLEARNED, Dropped, join_turns, turns_of
from spin_core.data.formats.values import Row, describe, parse_json, text_of
from spin_core.data.templates.thoughts import is_unclosed
from spin_core.errors import DataError


class Conversation(NamedTuple):
    """Turns that end in a user's or a tool's, and the response to them."""

    messages: list[Message]
    response: str
    tools: Tools | None = None
    """The schemas of the tools that the assistant may call."""
    extra: Message = {}
    """The other keys of the response's turn that a template may write, such as `reasoning_content`."""


class ConversationReader:
    """Reads the conversations in a source's rows, which may come in parts.

    The first part decides the layout of all.
    """

    def __init__(self, config: PromptsConfig, name: str, setting: str = "prompts") -> None:
        """Take the settings of the rows, and for messages the source's name and where it is configured."""
        self.config, self.name, self.setting = config, name, setting
        self.drops: Drops = Counter()
        """Rows that were left out, by reason."""
        self.unused: set[str] = set()
        """The columns with values that had no influence, by the source's own names."""
        self._flags: set[str] = set()
        """The columns by which rows are not to be learned."""
        self._layout: Layout | None = None
        self._marked = False
        """Whether texts have marks before their turns."""

    def read(self, rows: Sequence[Row]) -> list[Conversation]:
        """The conversation in each row that has one.

        Raises:
            DataError: columns are missing or ambiguous, or a value is of the wrong type.
        """
        source = rows_at(rows, self.name)
        renamed = [self._rename(source, index) for index in range(len(source))]
        if self._layout is None and renamed:
            self._layout = self._find_layout(source, renamed)
        kept: list[Conversation] = []
        for index, row in enumerate(renamed):
            try:
                kept += self._conversations_in(row)
            except DataError as error:
                raise DataError(f"{source.place(index)}: {error}") from error
            self._note_unused(source[index], row)
        self.unused |= source.unread
        self.unused = {name for name in self.unused if self.config.columns.get(name, name) not in self._flags}
        return kept

    def _rename(self, rows: Rows, index: int) -> Row:
        try:
            return rename(rows[index], self.config.columns, f"{self.setting}.columns")
        except DataError as error:
            raise DataError(f"{rows.place(index)}: {error}") from error

    def _find_layout(self, source: Rows, rows: Sequence[Row]) -> Layout:
        """The layout of the first rows. A column without any value counts only if the others make none."""
        self._check_names(source)
        expanded = [inner for row in rows for inner in _expand(row)]
        with_value = {key for row in expanded for key, value in row.items() if value is not None}
        named = {key for row in expanded for key in row}
        try:
            layout = self._layout_of(with_value) or self._layout_of(named)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error
        if layout is None:
            raise missing_columns(self.name, named | source.unread, self.config, self.setting)
        if layout.kind == "text" and self.config.format == "auto":
            self._marked = self._are_marked([text for row in rows if (text := row.get("text"))])
        return layout

    def _are_marked(self, texts: Sequence[Any]) -> bool:
        """Whether marks divide most of the texts into turns. Raises `DataError` if they only look like that."""
        if 2 * sum(bool(divide(text)) for text in texts) > len(texts):
            return True
        marked = [text for text in texts if looks_marked(text)]
        if 2 * len(marked) > len(texts):
            raise DataError(
                f"{self.name}: most texts begin with a mark, such as {marked[0].strip()[:20]!r}, but few can be "
                f"divided into questions and answers: give the turns in a column messages, or set "
                f"{self.setting}.format to text, which trains them as plain text"
            )
        return False

    def _check_names(self, source: Rows) -> None:
        """Raise `DataError` if a column that the configuration renames is in none of the first rows."""
        present = {key for row in source for key in row} | source.unread
        for name in self.config.columns:
            if name not in present:
                raise DataError(
                    f"{self.setting}.columns names {name}, which no row of {self.name} has{suggestion(name, present)}: "
                    "correct the name, or take it out"
                )

    def _layout_of(self, columns: Collection[str]) -> Layout | None:
        return find_layout(columns, self.config, self.setting)

    def _conversations_in(self, row: Row) -> Iterator[Conversation]:
        """The conversations of one row; what has none is counted."""
        if flag := unlearned_by(row):
            self._flags.add(flag)
            self.drops["not-to-be-learned"] += 1
            return
        for inner in _expand(row):
            self._check_columns(inner)
            try:
                turns = self._turns_in(inner)
                tools = None if self._layout and self._layout.kind == "text" else row_tools(inner, self.setting)
                yield check_conversation(turns, self.config)._replace(tools=tools)
            except Dropped as reason:
                self.drops[str(reason)] += 1

    def _check_columns(self, row: Row) -> None:
        """Raise `DataError` if a row has another layout than the first rows."""
        layout = self._layout
        assert layout
        is_whole = all(row.get(column) is not None for column in layout.needed)
        if self.config.format != "auto" or (is_whole and all(row.get(column) is None for column in layout.others)):
            return
        present = [key for key, value in row.items() if value is not None]
        own = self._layout_of(present)
        if own is None or own.kind == "text":
            return
        # The two names for turns are one layout. An instruction may be missing where the input says all.
        is_same = own.needed == layout.needed or own.kind == layout.kind == "messages"
        if not is_same and own.needed != (layout.input, layout.needed[-1]):
            raise DataError(
                f"the row has {' and '.join(own.needed)}, while others have {' and '.join(layout.needed)}: "
                f"put rows of different layouts into sources of their own, or set {self.setting}.format"
            )

    def _turns_in(self, row: Row) -> list[Message]:
        """A row's turns, the response included."""
        layout = self._layout
        assert layout
        if layout.kind == "text":
            return self._turns_in_text(text_of(row, layout.needed[0]))
        if layout.kind == "exchange":
            return with_context(row, _exchange_turns(row, layout, self.setting), self.setting)
        column = layout.turns_column(row)
        turns = row.get(column)
        if turns is None:
            raise Dropped("no-response")
        if isinstance(turns, str) and turns.lstrip().startswith(("[", "{")):
            turns = parse_json(turns, column)
        if not isinstance(turns, list | dict):
            raise DataError(f"{column} is {describe(turns)}, not a list of turns: fix that row")
        return with_context(row, turns_of({column: turns}, column, "user"), self.setting)

    def _turns_in_text(self, text: str) -> list[Message]:
        if self._marked:
            return split_marked(text)
        if self.config.format == "auto" and divide(text):
            raise Dropped("with-marks")
        return _split_text(text, self.config)

    def _note_unused(self, source: Row, row: Row) -> None:
        """Note the columns without influence of a row, by the source's own names."""
        assert self._layout
        used, columns = self._layout.used_in(row), self.config.columns
        for key, value in source.items():
            if columns.get(key, key) not in used and value not in (None, "", [], {}):
                self.unused.add(key)


def conversations(rows: Sequence[Row], config: PromptsConfig, name: str) -> tuple[list[Conversation], Drops]:
    """The conversation in each row, and how many rows were dropped, by reason.

    `name` is the source's name, for messages. Raises `DataError` for missing columns, and with the row's place for
    values of the wrong type.
    """
    reader = ConversationReader(config, name)
    return reader.read(rows), reader.drops


def unused_columns(rows: Sequence[Row], config: PromptsConfig, name: str) -> list[str]:
    """The columns with values that have no influence on the conversations, by the source's own names."""
    reader = ConversationReader(config, name)
    reader.read(rows)
    return sorted(reader.unused)


def check_conversation(turns: list[Message], config: PromptsConfig) -> Conversation:
    """Separate the turns into a prompt and its response: a text of the assistant that may be learned.

    Raises `Dropped` if that is not possible.
    """
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise Dropped("no-response")
    answers = [index for index in answers if UNLEARNED not in turns[index]]
    if not answers:
        raise Dropped("not-to-be-learned")
    # A text before a call is not a whole response: the model would learn to stop where it should go on.
    answers = [index for index in answers if "tool_calls" not in turns[index]]
    if not answers:
        raise Dropped("tool-call")
    chosen = answers[0] if config.rounds == "first" else answers[-1]
    messages = [{key: turn[key] for key in turn if key != UNLEARNED} for turn in turns[:chosen]]
    extra = dict(turns[chosen])
    del extra["role"]
    response = extra.pop("content")
    if not _is_in_order([turn["role"] for turn in messages]):
        raise Dropped("turns-out-of-order")
    if not messages[-1]["content"].strip() and messages[-1]["role"] == "user":
        raise Dropped("empty-prompt")
    if any(map(_lacks_content, messages[:-1])):
        raise Dropped("turn-without-content")
    if not response.strip():
        raise Dropped("empty-response")
    if is_unclosed(response):
        raise Dropped("unclosed-thought")
    return Conversation(messages, response, extra=extra)


def _is_in_order(roles: Sequence[str]) -> bool:
    """Whether user and assistant take turns up to a turn to respond to; tools may answer the assistant in between."""
    allowed = {"": "user", "user": "assistant", "assistant": "user tool", "tool": "tool assistant"}
    last = ""
    for role in roles[1:] if roles[:1] == ["system"] else roles:
        if role not in allowed[last].split():
            return False
        last = role
    return last in ("user", "tool")


def _lacks_content(turn: Message) -> bool:
    """Whether a user or the assistant says nothing in a turn, and calls no tool. Its text may be under another key."""
    return turn["role"] in ("user", "assistant") and not turn["content"].strip() and "tool_calls" not in turn


def _expand(row: Row) -> Iterator[Row]:
    """One row for each pair of input and output. Self-instruct's rows hold several of them, in `instances`."""
    instances = row.get(INSTANCES)
    if row.get("output") is not None or not isinstance(instances, list) or not instances:
        yield row
        return
    for instance in instances:
        yield {**row, **instance} if isinstance(instance, dict) else row


def _exchange_turns(row: Row, layout: Layout, setting: str) -> list[Message]:
    """The turns of a prompt and a response, with the input below the prompt."""
    prompt_column, response_column = layout.needed
    prompt = turns_of(row, prompt_column, "user")
    response = turns_of(row, response_column, "assistant")
    prompt = with_input(prompt, prompt_column, row, layout.input, setting)
    return join_turns(prompt, response)


def _split_text(text: str, config: PromptsConfig) -> list[Message]:
    """Cut a text between two words. The response begins with the space, so that prompt + response is the text."""
    text = text.strip()
    if len(text) <= config.text_prompt_chars:
        raise Dropped("text-too-short")
    border = max(text.rfind(space, 0, config.text_prompt_chars + 1) for space in " \n\t")
    prompt = text[: max(border, 0)].rstrip()
    return _exchange(prompt, text[len(prompt) :])


def _exchange(prompt: str, response: str) -> list[Message]:
    """One question and its answer."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
