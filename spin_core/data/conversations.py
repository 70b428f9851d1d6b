"""From rows to conversations: a prompt's turns, and the human response.

A source's format is recognised by the names of its columns:

    messages          `messages` or `conversations`: a list of turns
    spin              `real`: a list of turns, as in SPIN's own data
    prompt-response   `prompt` and `response`: text or turns
    instruction       `instruction`, `output` and perhaps `input`; or `instances` of the latter two
    text              `text`, cut in two; or split at its marks where all rows read "### Human: … ### Assistant: …"

A turn has `role` and `content`, or ShareGPT's `from` and `value`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from spin_core.config.data import PromptsConfig
from spin_core.data.chat import Message
from spin_core.data.sources import Row
from spin_core.errors import DataError

_COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "spin": ("real",),
    "prompt-response": ("prompt", "response"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format needs; also the order in which `auto` tries them."""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}

_MARKED = re.compile(r"\s*### Human:(?P<prompt>.*?)### Assistant:(?P<response>.*)", re.DOTALL)


class Conversation(NamedTuple):
    """Turns that end in a user's, and the response to them."""

    messages: list[Message]
    response: str


class Dropped(Exception):
    """A row without a usable conversation. The message is the reason under which it is counted."""


def conversations(rows: Sequence[Row], config: PromptsConfig, name: str) -> tuple[list[Conversation], Counter[str]]:
    """The conversation in each row, and how many rows were dropped, by reason.

    `name` is the source's name, for messages. Raises `DataError` for missing columns, and with the row's number for
    values of the wrong type.
    """
    rows = _expand([{config.columns.get(key, key): value for key, value in row.items()} for row in rows])
    kind = _format_of(rows, config, name)
    kept: list[Conversation] = []
    drops: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        try:
            kept.append(check_conversation(_turns_in(row, kind, config), config))
        except Dropped as reason:
            drops[str(reason)] += 1
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from error
    return kept, drops


def _expand(rows: Sequence[Row]) -> list[Row]:
    """One row for each pair of input and output. Self-instruct's rows hold several of them, in `instances`."""

    def instances_of(row: Row) -> Iterator[Row]:
        instances = row.get("instances")
        if "output" in row or not isinstance(instances, list) or not instances:
            yield row
            return
        for instance in instances:
            yield {**row, **instance} if isinstance(instance, dict) else row

    return [expanded for row in rows for expanded in instances_of(row)]


def _format_of(rows: Sequence[Row], config: PromptsConfig, name: str) -> str:
    """The rows' format: the configured one, or the one that fits the first row's columns.

    Raises `DataError`, which says what was expected.
    """
    columns = set(rows[0]) | ({"messages"} if "conversations" in rows[0] else set())
    if config.format != "auto":
        missing = [column for column in _COLUMNS[config.format] if column not in columns]
        if missing:
            raise DataError(
                f"{name} has no column {' or '.join(missing)}, which prompts.format = {config.format} needs "
                f"(found: {', '.join(sorted(rows[0]))}): name it in prompts.columns, "
                f'{{"its name": "{missing[0]}"}}, or set another prompts.format'
            )
        return config.format
    format = next((format for format, needed in _COLUMNS.items() if columns.issuperset(needed)), None)
    # A renamed column states an intent. Preference data have `conversations` too, with the response in another column.
    if {"prompt", "response"} <= set(config.columns.values()):
        format = "prompt-response"
    if format is None:
        wanted = "; ".join(" and ".join(needed) for needed in _COLUMNS.values())
        raise DataError(
            f"{name} has the columns {', '.join(sorted(rows[0]))}, but needs one of: {wanted}. "
            'Name them in prompts.columns, for instance {"question": "prompt", "answer": "response"}'
        )
    if format == "text" and all(isinstance(row.get("text"), str) and _MARKED.match(row["text"]) for row in rows):
        return "marked"
    return format


def _turns_in(row: Row, kind: str, config: PromptsConfig) -> list[Message]:
    """A row's turns, the response included."""
    if kind == "text":
        return _split_text(text_of(row, "text"), config)
    if kind == "marked":
        match = _MARKED.match(text_of(row, "text"))
        assert match, "_format_of matched every row"
        return _exchange(match["prompt"].strip(), match["response"].strip())
    if kind == "instruction":
        input = text_of(row, "input") if row.get("input") else ""
        instruction = text_of(row, "instruction")
        return _exchange(f"{instruction}\n\n{input}" if input.strip() else instruction, text_of(row, "output"))
    if kind == "prompt-response":
        prompt = turns_of(row, "prompt", "user")
        response = turns_of(row, "response", "assistant")
        # Preference data repeat the prompt's turns in their responses.
        return response if response and response[0]["role"] != "assistant" else prompt + response
    column = "real" if kind == "spin" else "messages" if "messages" in row else "conversations"
    if not isinstance(row.get(column), list):
        raise DataError(f"{column} is {_describe(row.get(column))}, not a list of turns: fix that row")
    return turns_of(row, column, "user")


def check_conversation(turns: list[Message], config: PromptsConfig) -> Conversation:
    """Separate the turns into a prompt and its response. Raises `Dropped` if that is not possible."""
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise Dropped("no-response")
    chosen = answers[0] if config.rounds == "first" else answers[-1]
    messages, response = turns[:chosen], turns[chosen]["content"]
    first_turn = 1 if messages and messages[0]["role"] == "system" else 0
    expected = ["user", "assistant"] * len(messages)
    roles = [turn["role"] for turn in messages[first_turn:]]
    if len(roles) % 2 == 0 or roles != expected[: len(roles)]:
        raise Dropped("turns-out-of-order")
    if not messages[-1]["content"].strip():
        raise Dropped("empty-prompt")
    if not response.strip():
        raise Dropped("empty-response")
    return Conversation(messages, response)


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


def turns_of(row: Row, column: str, role: str) -> list[Message]:
    """A column's turns. Bare text is one turn of `role`."""
    value = row.get(column)
    if isinstance(value, str):
        return [{"role": role, "content": text_of(row, column)}]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise DataError(f"{column} is {_describe(value)}, not text or a list of turns: fix that row")
    return [_turn_of(turn, column) for turn in turns]


def _turn_of(turn: Any, column: str) -> Message:
    """One turn under the names `role` and `content`."""
    names = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
    if not isinstance(turn, dict) or not set(names) <= set(turn):
        raise DataError(f"{column} holds {_describe(turn)}, not a turn with role and content: fix that row")
    role = _ROLES.get(str(turn[names[0]]).lower())
    if role is None:
        raise Dropped("unknown-role")
    return {"role": role, "content": text_of(turn, names[1])}


def text_of(row: Row, column: str) -> str:
    """A column's text. Raises `DataError` if it is something else."""
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{column} is {_describe(value)}, not text: fix that row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{column} holds half a character (a lone surrogate): fix that row") from error
    return value


def _describe(value: Any) -> str:
    """A value as it appears in a message."""
    if value is None:
        return "missing"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '…'}"
