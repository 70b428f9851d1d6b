"""Reading rows: a file, a local folder, a data set on the hub, or the built-in demo.

Files are read in `spin_core.data.files` rather than through `datasets`: so an error names its line, a CSV's numbers
stay text, and no stale copy of an edited file is in a cache.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.run import RunConfig
from spin_core.data import demo
from spin_core.data.files.folders import read_folder, read_hub
from spin_core.data.files.opening import file_kind
from spin_core.data.files.reading import read_parts
from spin_core.data.files.rows import Rows
from spin_core.data.formats.columns import PREFERENCES, wanted_columns
from spin_core.data.formats.values import Row
from spin_core.errors import DataError

DEMO = "demo"
"""The name of the built-in source."""

_DEMO_PREFERENCES = 4
"""How many preferences the built-in source has about each of its prompts."""


def open_source(
    source: SourceConfig, setting: str = "prompts.source", wanted: Collection[str] | None = None
) -> tuple[Iterator[Rows], str | None]:
    """The rows of a source in parts, and the hub's commit they come from, if they do.

    Args:
        source: a file, a folder or a data set on the hub.
        setting: where the configuration names the source, for messages.
        wanted: names of the columns to read where others can be left out; None reads all.

    Raises:
        DataError: the source does not exist or cannot be read, also while its rows are read.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        return read_parts(path, wanted, source.split), None
    if path.is_dir():
        return read_folder(path, source, setting, wanted), None
    if on_hub(source):
        return read_hub(source, setting, wanted)
    raise DataError(f"{source.path} does not exist: set {setting}.path to a file, a folder or a hub name")


def read_rows(
    source: SourceConfig, setting: str = "prompts.source", wanted: Collection[str] | None = None
) -> tuple[Rows, str | None]:
    """All rows of a source, and the hub's commit they come from, if they do. The arguments are those of `open_source`.

    Raises:
        DataError: the source does not exist, cannot be read, or holds no rows.
    """
    parts, revision = open_source(source, setting, wanted)
    rows = Rows([], source.path)
    for part in parts:
        rows.append_rows(part)
    if not rows:
        raise no_rows(source, setting)
    return rows, revision


def prompt_rows(config: PromptsConfig, source: SourceConfig | None = None) -> tuple[Rows, str | None]:
    """All rows of the SFT data, or of another source in their layout. Columns without a meaning may not be read."""
    return read_rows(source or config.source, wanted=wanted_columns(config.columns))


def no_rows(source: SourceConfig, setting: str) -> DataError:
    """The error to raise for a source without rows."""
    return DataError(f"{source.path} holds no rows: set {setting}.path to data with prompts and responses")


def read_file(path: Path) -> list[Row]:
    """The rows of one file, in the format that its suffix names, with all columns."""
    return [row for part in read_parts(path) for row in part]


def on_hub(source: SourceConfig) -> bool:
    """Whether a source may be a data set on the hub: it is neither a file nor a folder here, and has such a name."""
    path = Path(source.path).expanduser()
    is_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source.path, re.ASCII) is not None
    return is_name and file_kind(path) is None and source.path != DEMO and not path.exists()


def check_demo_is_meant(config: RunConfig) -> None:
    """Raise `DataError` if a source is the built-in one, while a file or folder here has the same name.

    The built-in model, which knows only digits, is always trained on the built-in data.
    """
    preferences = config.controls.dpo.source.path if config.controls.dpo else None
    settings = {"prompts.source": config.prompts.is_demo, "controls.dpo.source": preferences == DEMO}
    setting = next((setting for setting, is_demo in settings.items() if is_demo), None)
    if setting and config.model.path and Path(DEMO).exists():
        raise DataError(
            f"{setting}.path is {DEMO}, the built-in data, but {Path(DEMO).absolute()} exists too: "
            f"set {setting}.path to ./{DEMO} to use that, or rename it to use the built-in data"
        )


def demo_rows(sample: int | None, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """The built-in source's training rows and held-out rows.

    Args:
        sample: how many training rows to draw; None for one to each prompt.
        held_out: how many prompts are held out.
        seed: another seed draws other responses.
    """
    size = len(demo.prompts(held_out)[0]) if sample is None else sample
    train, other = demo.demonstrations(size, seed, held_out), demo.held_out_demonstrations(seed, held_out)
    return [{"prompt": p, "response": r} for p, r in train], [{"prompt": p, "response": r} for p, r in other]


def open_preferences(source: SourceConfig, setting: str, columns: Mapping[str, str]) -> Iterator[Rows]:
    """The rows of preference data in parts, where `columns` has new names. The built-in source has its own.

    Raises:
        DataError: the source does not exist, cannot be read, or holds no rows.
    """
    if source.path == DEMO:
        triples = demo.preferences(_DEMO_PREFERENCES)
        yield Rows([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in triples], DEMO)
        return
    parts, _ = open_source(source, setting, wanted_columns(columns, PREFERENCES))
    number = 0
    for part in parts:
        number += len(part)
        yield part
    if not number:
        raise no_rows(source, setting)
