"""NLTK's data `punkt_tab`, with which IFEval counts sentences and words, and which must be downloaded."""

import contextlib
import sys
from pathlib import Path
from typing import Any

from spin_core.errors import ConfigError
from spin_core.evaluation.hub import is_hub_reachable
from spin_core.evaluation.task_rows import SINGLE_TASKS, RowsFolder, read_rows

HOW_TO_GET_PUNKT = (
    "run `python -m nltk.downloader punkt_tab` where there is a network, or set NLTK_DATA to a folder that holds "
    "tokenizers/punkt_tab"
)
"""What to do if the data are missing."""

_COUNTING = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
"""IFEval's instructions that are checked by counting sentences or words."""


def has_punkt() -> bool:
    """Return whether the data are installed."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def needs_punkt(row: dict[str, Any]) -> bool:
    """Return whether an instruction in a row of IFEval is checked by counting sentences or words."""
    return not _COUNTING.isdisjoint(row.get("instruction_id_list") or ())


def require_punkt(data: Path | None) -> None:
    """Download the data if IFEval needs them and they are not installed.

    Args:
        data: The folder of local rows. None means the hub's rows, some of which need the data.

    Raises:
        ConfigError: They are needed and cannot be downloaded.
    """
    path = RowsFolder(data).find(SINGLE_TASKS["ifeval"].file) if data is not None else None
    needed = data is None or (path is not None and any(needs_punkt(row) for row in read_rows(path)))
    if needed and not has_punkt() and not (is_hub_reachable() and _download()):
        raise ConfigError(f"ifeval counts sentences with NLTK's punkt_tab, which is not here: {HOW_TO_GET_PUNKT}")


def _download() -> bool:
    """Download the data, which lm-eval would do in the middle of scoring. Return whether they are installed."""
    import nltk

    with contextlib.redirect_stdout(sys.stderr):
        return bool(nltk.download("punkt_tab", quiet=True)) and has_punkt()
