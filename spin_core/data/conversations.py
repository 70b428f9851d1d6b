"""From rows to conversations: a prompt's turns, and the human response.

A source's format is recognised by the names of its columns:

    messages          `messages` or `conversations`: a list of turns
    spin              `real`: a list of turns, as in SPIN's own data
    prompt-response   `prompt` and `response`: text or turns
    instruction       `instruction`, `output` and perhaps `input`; or `instances` of the latter two
    text              `text`, cut in two; or split at its marks where most rows read "### Human: … ### Assistant: …"
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from spin_core.config.data import PromptsConfig
from spin_core.data.chat import Message
from spin_core.data.formats.marked import mostly_marked, split_marked
from spin_core.data.formats.tools import Tools
from spin_core.data.formats.turns import UNLEARNED, Dropped, turns_of
from spin_core.data.formats.values import Row, describe, text_of
from spin_core.errors import DataError

_JUDGED = 1000
"""How many texts decide whether a source's texts have marks."""

_COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "spin": ("real",),
    "prompt-response": ("prompt", "response"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format needs; also the order in which `auto` tries them."""


class Conversation(NamedTuple):
    """Turns that end in a user's or a tool's, and the response to them."""

    messages: list[Message]
    response: str
    tools: Tools | None = None
    """The schemas of the tools that the assistant may call."""
    extra: Message = {}
    """The other keys of the response's turn that a template may write, such as `reasoning_content`."""


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
    if format == "text" and mostly_marked([row.get("text") for row in rows[:_JUDGED]]):
        return "marked"
    return format


def _turns_in(row: Row, kind: str, config: PromptsConfig) -> list[Message]:
    """A row's turns, the response included."""
    if kind == "text":
        return _split_text(text_of(row, "text"), config)
    if kind == "marked":
        return split_marked(text_of(row, "text"))
    if kind == "instruction":
        input = text_of(row, "input") if row.get("input") else ""
        instruction = text_of(row, "instruction")
        return _exchange(f"{instruction}\n\n{input}" if input.strip() else instruction, text_of(row, "output"))
    if kind == "prompt-response":
        prompt = turns_of(row, "prompt", "user")
        response = turns_of(row, "response", "assistant")
        # Preference data repeat the prompt's turns in their responses.
        return response if response and response[0]["role"] != "assistant" else prompt + response
    column = "real" if kind == "spin" else "messages" if row.get("messages") is not None else "conversations"
    if row.get(column) is None:
        return []
    if not isinstance(row[column], list):
        raise DataError(f"{column} is {describe(row[column])}, not a list of turns: fix that row")
    return turns_of(row, column, "user")


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
    if not response.strip():
        raise Dropped("empty-response")
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
