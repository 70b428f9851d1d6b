"""What the columns of a source mean: their names, and the layout that they make together.

messages          `messages` or `conversations`: a list of turns
spin              `real`: a list of turns, as in SPIN's own data
prompt-response   a prompt and a response, text or turns, under one of several names each
instruction       the same, with the text of `input` or `context` below the prompt; or `instances` of input and output
text              `text`
"""

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from spin_core.config.data import PromptsConfig
from spin_core.data.formats.turns import FLAGS
from spin_core.data.formats.values import Row
from spin_core.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "query")
RESPONSES = ("response", "output", "answer", "completion")
INPUTS = ("input", "context")
"""Names of the column with the text that an instruction is about."""

SYSTEMS = ("system", "system_prompt")
HISTORY, INSTANCES = "history", "instances"
TOOLS = ("tools", "functions")
"""Names of the column with the schemas of tools."""

LABEL = "label"
"""The column in which false says that a response is a bad one, as in KTO's data."""

CONTEXT = (*SYSTEMS, HISTORY, *TOOLS)
"""Columns that any conversation may have next to its turns."""

_TURNS = ("messages", "conversations")

_PAIRS = {"prompt-response": ("prompt", "response"), "instruction": ("instruction", "output")}
"""Names that belong together. They are taken though a row has other names of prompts and responses too."""

KNOWN = {*_TURNS, "real", *PROMPTS, *RESPONSES, *INPUTS, *CONTEXT, INSTANCES, "text", *FLAGS, LABEL}
"""All names that have a meaning."""

CHOSEN, REJECTED = "chosen", "rejected"

PREFERENCE_PROMPTS = ("conversations", *PROMPTS, "messages", "input")
"""Names of the prompt's column in preference data, in the order in which they count."""

PREFERENCES = {*PREFERENCE_PROMPTS, *INPUTS, CHOSEN, REJECTED, *CONTEXT}
"""All names that have a meaning in preference data."""

_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (_TURNS,),
    "spin": (("real",),),
    "prompt-response": (PROMPTS, RESPONSES),
    "instruction": (PROMPTS, RESPONSES),
    "text": (("text",),),
}
"""One name of each of these groups makes a format."""


class Layout(NamedTuple):
    """Which columns make a conversation."""

    kind: Literal["messages", "spin", "exchange", "text"]
    needed: tuple[str, ...]
    """The columns that a row must have: those with the turns, or the prompt's and the response's, or the text's."""
    input: str | None = None
    """The column with the text below the prompt."""
    others: tuple[str, ...] = ()
    """Columns with which a row would have a second prompt or response."""

    def turns_column(self, row: Row) -> str:
        """The column with a row's turns: of the two names for them, the one that has a value."""
        (column,) = self.needed
        others = (name for name in _TURNS if row.get(name) is not None)
        return next(others, column) if self.kind == "messages" and row.get(column) is None else column

    def used_in(self, row: Row) -> set[str]:
        """All columns that have an influence on a row's conversation."""
        if self.kind == "text":
            return {*self.needed}
        if self.kind != "exchange":
            return {self.turns_column(row), *CONTEXT}
        return {*self.needed, *([self.input] if self.input else []), *CONTEXT, INSTANCES}


def wanted_columns(columns: Mapping[str, str], known: Collection[str] = KNOWN) -> set[str]:
    """The source's own names of all columns that may have a meaning.

    Args:
        columns: new names by the source's own.
        known: names that have a meaning.
    """
    return {own for own, new in columns.items() if new in known} | (set(known) - set(columns))


def rename(row: Row, columns: Mapping[str, str], setting: str) -> Row:
    """A row under its new names. Raises `DataError` if two columns with a value get the same name.

    Args:
        row: a row of the source.
        columns: new names by the source's own.
        setting: where the configuration names them, for messages.
    """
    if not columns:
        return row
    renamed: Row = {}
    own: dict[str, str] = {}
    for key, value in row.items():
        name = columns.get(key, key)
        if renamed.get(name) is not None and value is not None:
            first, second = sorted((own[name], key), key=lambda column: column == name)
            raise DataError(
                f"{setting} gives {first} the name {name}, but {second} has that name too: "
                f'give {second} another name as well, {{"{second}": "unused"}}, or take {first} out of {setting}'
            )
        if name not in renamed or value is not None:
            renamed[name], own[name] = value, key
    return renamed


def find_layout(present: Collection[str], config: PromptsConfig, setting: str = "prompts") -> Layout | None:
    """The layout of rows with these columns; None if they have none.

    Raises:
        DataError: a row could have several prompts or responses, and nothing says which to take.
    """
    turns = next((column for column in _TURNS if column in present), None)
    texts = {
        "messages": Layout("messages", (turns,)) if turns else None,
        "spin": Layout("spin", ("real",)) if "real" in present else None,
        "text": Layout("text", ("text",)) if "text" in present else None,
    }
    if config.format in texts:
        return texts[config.format]
    if config.format != "auto":
        return _exchange(present, config, setting)
    # A renamed column states an intent. Preference data have `conversations` too, with the response in another column.
    targets = set(config.columns.values())
    if targets & {*PROMPTS} and targets & {*RESPONSES} and (exchange := _exchange(present, config, setting)):
        return exchange
    return texts["messages"] or texts["spin"] or _exchange(present, config, setting) or texts["text"]


def missing_columns(place: str, present: Collection[str], config: PromptsConfig, setting: str = "prompts") -> DataError:
    """The error to raise if rows have no layout."""
    columns = ", ".join(sorted(present)) or "no columns"
    if config.format == "auto":
        needed = f"{' or '.join(_TURNS)}; real; a prompt ({', '.join(PROMPTS)}) and a response ({', '.join(RESPONSES)})"
        return DataError(
            f"{place} has the columns {columns}, but needs one of: {needed}; text. "
            f"Name them in {setting}.columns, for instance {{{_example_names(present)}}}"
        )
    groups = _NEEDED[config.format]
    names = _PAIRS.get(config.format, tuple(group[0] for group in groups))
    missing = [name for name, group in zip(names, groups, strict=True) if not {*group} & {*present}]
    return DataError(
        f"{place} has no column {' or '.join(missing)}, which {setting}.format = {config.format} needs "
        f"(found: {columns}): name it in {setting}.columns, "
        f'{{"its name": "{missing[0]}"}}, or set another {setting}.format'
    )


def _example_names(present: Collection[str]) -> str:
    """New names for columns whose names differ from known ones in case or spaces alone, or else an example."""
    names = {name: name.strip().lower() for name in sorted(present)}
    renamed = {own: new for own, new in names.items() if new in KNOWN and new not in present} or {
        "ask": "prompt",
        "reply": "response",
    }
    return ", ".join(f'"{own}": "{new}"' for own, new in renamed.items())


def _exchange(present: Collection[str], config: PromptsConfig, setting: str) -> Layout | None:
    """The layout of a prompt and a response, each in a column of its own."""
    targets = set(config.columns.values())

    def candidates(names: tuple[str, ...]) -> list[str]:
        stated = [name for name in names if name in present and name in targets]
        return stated or [name for name in names if name in present]

    prompts, responses, inputs = candidates(PROMPTS), candidates(RESPONSES), candidates(INPUTS)
    if not prompts and inputs[:1] == ["input"]:
        prompts, inputs = ["input"], []
    if not prompts or not responses:
        return None
    preferred = [_PAIRS[config.format]] if config.format in _PAIRS else list(_PAIRS.values())
    pair = next((pair for pair in preferred if pair[0] in prompts and pair[1] in responses), None)
    for names in (prompts, responses):
        if pair is None and len(names) > 1:
            raise DataError(
                f"there are the columns {' and '.join(names)}, which mean the same: "
                f'leave one out in {setting}.columns, {{"{names[1]}": "unused"}}'
            )
    prompt, response = pair or (prompts[0], responses[0])
    input = inputs[0] if inputs else None
    stated = pair or (prompt in targets and response in targets)
    others = () if stated else tuple(name for name in (*PROMPTS, *RESPONSES) if name not in (prompt, response))
    return Layout("exchange", (prompt, response), input, others)
