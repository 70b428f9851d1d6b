"""Write the generated parts of docs/reference: settings, command line, records.

    python docs/generate_reference.py            # write them
    python docs/generate_reference.py --check    # exit with 1 and name the pages that are not current

`make docs` and `make reference` run it. A test fails when a committed page differs from what the code says.
"""

import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flows.command_line.main import main as spin  # noqa: E402
from spin_core.config.base import EXECUTION, SCHEDULE  # noqa: E402
from spin_core.config.run import RunConfig  # noqa: E402
from spin_core.config.train import TrainConfig  # noqa: E402
from spin_core.store import records  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/generate_reference.py from the code: `make reference` writes it again. -->"
BEGIN, END = "<!-- generated: records -->", "<!-- end of generated -->"

SETTINGS = """\
Every setting of a run, as `--set NAME=VALUE`, in a file for `--config`, and in the form of the UI. Recipes set some of
them to other values than the defaults below: `spin recipes NAME` prints them. [Running](../guide/running.md#settings)
says what to set first.

- *schedule*: takes one value, or a list with one value per iteration; the last value holds from there on.
- *execution*: changes how, where or at whose cost a result is computed, and not the result. It may change at any time,
  and what exists is reused."""

COMMANDS = """\
`spin` is in `.venv/bin`. Exit status: 0 done, 1 a phase crashed or files are damaged, 2 the input needs a fix, 75 try
again, 130 stopped by Ctrl-C, 143 stopped by SIGTERM. A user's error is one line."""

RECORDS: tuple[type[BaseModel], ...] = (
    records.PromptSet,
    records.ModelVersion,
    records.GenerationBatch,
    records.PairDataset,
    records.ScoredPairs,
    records.TrainRun,
    records.EvalReport,
    records.Score,
    records.GateDecision,
    records.IterationRecord,
)


def pages() -> dict[Path, str]:
    """The text that each generated page must have."""
    files = REFERENCE / "files.md"
    return {
        REFERENCE / "settings.md": settings_page(),
        REFERENCE / "command-line.md": command_page(),
        files: with_records(files.read_text("utf-8")),
    }


# Settings.


def settings_page() -> str:
    """Every setting of `RunConfig`, one table per section."""
    lines = [NOTE, "", "# Settings", "", SETTINGS, "", "## Top level", ""]
    plain, sections = split(RunConfig)
    lines += settings_table("", plain)
    for name, model, field in sections:
        lines += section(name, model, field, level=2)
    return "\n".join(lines).rstrip() + "\n"


def section(name: str, model: type[BaseModel], field: FieldInfo, level: int) -> Iterator[str]:
    """The heading, help and table of one section, and those below it."""
    about = [help_of(model.__doc__)] if level == 2 else [help_of(field.description), help_of(model.__doc__)]
    yield from ("", f"{'#' * level} {name}", "", " ".join(dict.fromkeys(text for text in about if text)))
    if field.default is None:
        yield from ("", f"`{name}` is null by default. Setting any value below replaces that.")
    if EXECUTION in field.metadata:
        yield from ("", "All settings here are *execution* settings.")
    plain, below = split(model)
    if issubclass(model, TrainConfig) and model is not TrainConfig:
        plain, below = [(part, field) for part, field in plain if part in model.__annotations__], []
        yield from ("", f"Every other setting of [`train`](#train) exists here too: `{name}.batch_size` and so on.")
    yield ""
    if plain:
        yield from settings_table(f"{name}.", plain)
    for part, part_model, part_field in below:
        yield from section(f"{name}.{part}", part_model, part_field, level=3)


def split(model: type[BaseModel]) -> tuple[list[tuple[str, FieldInfo]], list[tuple[str, type[BaseModel], FieldInfo]]]:
    """A model's plain settings, and its sections."""
    plain, sections = [], []
    for name, field in model.model_fields.items():
        if kind := model_in(field.annotation):
            sections.append((name, kind, field))
        else:
            plain.append((name, field))
    return plain, sections


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be null."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def settings_table(prefix: str, fields: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    """One row per setting."""
    yield from ("| setting | values | default | meaning |", "|---|---|---|---|")
    for name, field in fields:
        default = "required" if field.is_required() else code(shown(field.default))
        yield f"| `{prefix}{name}` | {values_of(field)} | {default} | {cell(help_of(field.description))} |"


def values_of(field: FieldInfo) -> str:
    """The values that a field takes: `0 < number`, `stop`, `best`, a list of …"""
    marks = [mark for mark in (SCHEDULE, EXECUTION) if mark in field.metadata]
    annotation = get_args(field.annotation)[0] if SCHEDULE in marks else field.annotation
    return cell("; ".join([kind_of(annotation, field.metadata), *marks]))


def kind_of(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type as a reader of settings would name it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(parts[0], (*parts[1:], *metadata))
    if origin is Literal:
        return ", ".join(code(shown(part)) for part in parts)
    if origin in (Union, UnionType):
        kinds = [kind_of(part, metadata) for part in parts if part is not NoneType]
        return " or ".join(dict.fromkeys([*kinds, *(["null"] if NoneType in parts else [])]))
    if origin is tuple:
        return f"list of {kind_of(parts[0])}"
    if origin is dict:
        return "mapping"
    if annotation is bool:
        return "true, false"
    names = {int: "integer", float: "number", str: "text", Path: "path"}
    return f"{names.get(annotation, 'value')}{limits(metadata)}"


def limits(metadata: list[Any] | tuple[Any, ...]) -> str:
    """`, > 0` and `, ≤ 1` from a type's constraints."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    flat: list[Any] = []
    for item in metadata:
        flat += list(item) if isinstance(item, annotated_types.GroupedMetadata) else [item]
        if isinstance(item, FieldInfo):
            flat += item.metadata
    found = [(sign, getattr(item, name, None)) for item in flat for name, sign in signs.items()]
    bounds = [f" {sign} {value:g}" for sign, value in dict.fromkeys(found) if isinstance(value, (int, float))]
    return " and".join(bounds)


# The command line.


def command_page() -> str:
    """Every command of `spin` with its arguments and options."""
    context = click.Context(spin, info_name="spin")
    names = spin.list_commands(context)
    lines = [
        NOTE,
        "",
        "# Command line",
        "",
        help_of(spin.help),
        "",
        COMMANDS,
        "",
        "| command | does |",
        "|---|---|",
        *(f"| [`spin {name}`](#spin-{name}) | {cell(help_of(spin.commands[name].help))} |" for name in names),
    ]
    for name in names:
        lines += command_section(name, spin.commands[name], context)
    return "\n".join(lines).rstrip() + "\n"


def command_section(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    """A command's usage, help and table of options."""
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("", f"## spin {name}", "", help_of(command.help), "", "```text", f"spin {name} {usage}", "```", "")
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        yield from ("| option | default | meaning |", "|---|---|---|")
    for option in options:
        yield f"| {option_names(option)} | {option_default(option)} | {cell(help_of(option.help))} |"


def option_names(option: click.Option) -> str:
    """`-n`, `--limit INTEGER`."""
    value = "" if option.is_flag else f" {option.metavar or choices_of(option.type)}"
    names = [*option.opts, *option.secondary_opts]
    return cell(", ".join(code(name) for name in names[:-1]) + (", " if names[1:] else "") + code(names[-1] + value))


def choices_of(kind: Any) -> str:
    """The placeholder of an option's value."""
    if isinstance(kind, click.Choice):
        return "|".join(choice.value if isinstance(choice, Enum) else str(choice) for choice in kind.choices)
    return str(kind.name.upper().removesuffix(" RANGE"))


def option_default(option: click.Option) -> str:
    """An option's default, and the environment variable that changes it."""
    default = option.default
    empty = option.is_flag or option.multiple or default in (None, "", ()) or "UNSET" in str(default)
    found = [] if empty else [code(str(default))]
    if option.envvar:
        found.append(f"or `{option.envvar}`")
    return ", ".join(found)


# Records.


def with_records(text: str) -> str:
    """The page on files with its generated tables of records."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    tables = [line for record in RECORDS for line in record_section(record)]
    return "\n".join([head + BEGIN, *tables, "", END]) + tail


def record_section(record: type[BaseModel]) -> Iterator[str]:
    """A record's help and its fields."""
    yield from (
        "",
        f"### {record.__name__}",
        "",
        help_of(record.__doc__),
        "",
        "| field | type | meaning |",
        "|---|---|---|",
    )
    for name, field in record.model_fields.items():
        if name == "kind" and get_origin(field.annotation) is Literal:
            yield f"| `kind` | {kind_of(field.annotation)} | |"
            continue
        yield f"| `{name}` | {cell(record_type(field.annotation))} | {cell(help_of(field.description))} |"


def record_type(annotation: Any) -> str:
    """A field's type, with the names of other records."""
    if kind := model_in(annotation):
        return f"list of {kind.__name__}" if get_origin(annotation) is tuple else kind.__name__
    return kind_of(annotation)


# Text.


def help_of(text: str | None) -> str:
    """A docstring as one line."""
    return " ".join((text or "").split("\n\f")[0].split())


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def code(text: str) -> str:
    """Text between backticks."""
    return f"`{text}`"


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(shown(item) for item in value)}]"
    return '""' if value == "" else repr(value) if isinstance(value, str) and "\n" in value else str(value)


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` only compare them."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.relative_to(ROOT)} is not current: run `make reference`")
        else:
            path.write_text(pages()[path], "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
